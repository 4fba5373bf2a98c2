// What all drawings of this site share: SVG elements, scales, lines with gaps, and names that stand on their lines.
window.Drawing = (() => {
  "use strict";
  const STEP = 4; // pixels between two places where a line's height is known
  const SIZE = 12; // of letters, pixels
  const measure = document.createElement("canvas").getContext("2d");

  function svg(kind, attributes = {}, parent = null, text = "") {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text) made.textContent = text;
    return parent ? parent.appendChild(made) : made;
  }

  function html(kind, attributes = {}, parent = null, text = "") {
    const made = document.createElement(kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text) made.textContent = text;
    return parent ? parent.appendChild(made) : made;
  }

  const scale = ([low, high], [from, to]) => (value) => from + ((value - low) / (high - low)) * (to - from);

  // Round numbers in a range, about so many.
  function ticks([low, high], about = 5) {
    const rough = Math.abs(high - low) / about;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
    const [least, most] = [Math.min(low, high), Math.max(low, high)];
    const found = [];
    for (let place = Math.ceil(least / step - 1e-9); place * step <= most + step * 1e-9; place++) found.push(Number((place * step).toPrecision(6)));
    return found;
  }

  // The path through points; one without a height is a gap.
  function path(points) {
    let open = false;
    return points.map(([x, y]) => {
      if (x === null || y === null) return (open = false), "";
      const letter = open ? "L" : "M";
      open = true;
      return `${letter}${x.toFixed(1)} ${y.toFixed(1)}`;
    }).join("");
  }

  function width_of(text) {
    measure.font = `600 ${SIZE}px ${getComputedStyle(document.body).fontFamily}`;
    return measure.measureText(text).width;
  }

  // The heights of a line on a grid of STEP pixels, by the number of the step.
  function sample(points) {
    const heights = new Map();
    points.forEach(([x, y], index) => {
      if (y === null) return;
      heights.set(Math.round(x / STEP), y);
      const [next_x, next_y] = points[index + 1] ?? [null, null];
      if (next_x === null || next_y === null) return;
      for (let step = Math.ceil(x / STEP); step * STEP <= next_x; step++) heights.set(step, y + ((step * STEP - x) / (next_x - x)) * (next_y - y));
    });
    return heights;
  }

  const is_upright = (points) => points.length > 1 && points.every(([x]) => x === points[0][0]);

  const touch = (box, other) => box.left < other.right && other.left < box.right && box.top < other.bottom && other.top < box.bottom;

  // How much is in the way of a text: lines that run through its box, and boxes where something is written already.
  function count_in_the_way(box, lines, taken) {
    let found = 20 * taken.filter((other) => touch(box, other)).length;
    for (const { points } of lines) {
      const flat = is_upright(points) ? points.map(([x]) => [x, (box.top + box.bottom) / 2]) : [];
      const heights = flat.length ? flat : [...sample(points)].map(([step, y]) => [step * STEP, y]);
      found += heights.filter(([x, y]) => touch(box, { left: x, right: x + 1, top: y - 2, bottom: y + 2 })).length;
    }
    return found;
  }

  // Of several boxes for one text the one that has least in its way; the first one among equals.
  function choose_box(boxes, lines, taken) {
    const ways = boxes.map((box) => count_in_the_way(box, lines, taken));
    return boxes[ways.indexOf(Math.min(...ways))];
  }

  // Each name beside its line, where it meets no line and no other name: flat stretches with air around them win.
  // `taken` are boxes where something is written already. The name of an upright line runs along it, above or below, in
  // smaller letters.
  function label_lines(parent, lines, { left, right, top, bottom }, taken = []) {
    const sampled = lines.map((line) => sample(line.points));
    lines.forEach((line, number) => {
      if (is_upright(line.points)) {
        const x = line.points[0][0], long = width_of(line.text) * 0.85, ends = { left: x - SIZE - 3, right: x - 1 };
        const boxes = [{ ...ends, top, bottom: top + long + 2 }, { ...ends, top: bottom - long - 2, bottom }];
        const box = choose_box(boxes, lines, taken), is_above = box === boxes[0];
        const at = `translate(${x - 3} ${is_above ? top + 2 : bottom - 2}) rotate(-90)`;
        svg("text", { transform: at, class: "upright", "text-anchor": is_above ? "end" : "start" }, parent, line.text);
        taken.push(box);
        return;
      }
      const half = width_of(line.text) / 2 + 3;
      let best = null;
      for (let x = left + half; x <= right - half; x += 2 * STEP) {
        const steps = [];
        for (let step = Math.ceil((x - half) / STEP); step * STEP <= x + half; step++) steps.push(step);
        const own = steps.map((step) => sampled[number].get(step)).filter((y) => y !== undefined);
        if (!own.length) continue;
        const [highest, lowest] = [Math.min(...own), Math.max(...own)];
        for (const y of [highest - 5, lowest + SIZE + 3]) {
          const box = { left: x - half, right: x + half, top: y - SIZE, bottom: y + 3 };
          if (box.top < top || box.bottom > bottom) continue;
          const clash = taken.filter((other) => box.left < other.right && other.left < box.right && box.top < other.bottom && other.top < box.bottom);
          let air = 40;
          for (const [other, heights] of sampled.entries()) {
            if (other === number) continue;
            for (const step of steps) {
              const height = heights.get(step);
              if (height !== undefined) air = Math.min(air, Math.max(box.top - height, height - box.bottom));
            }
          }
          const score = Math.min(air, 14) * 4 + air - (lowest - highest) - 500 * clash.length - (own.length < steps.length / 2 ? 20 : 0);
          if (!best || score > best.score) best = { x, y, box, score };
        }
      }
      if (!best) return;
      taken.push(best.box);
      const made = svg("text", { x: best.x, y: best.y, class: "name", "text-anchor": "middle" }, parent, line.text);
      made.style.setProperty("--colour", line.colour);
    });
  }

  return { svg, html, scale, ticks, path, label_lines, is_upright, choose_box, width_of, SIZE };
})();
