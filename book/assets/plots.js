// Draws each measured figure in the place of its picture, from the data that lib/.../report/drawing.py wrote: at the width
// and in the theme of the page, with a text under the pointer. Without this script the picture stays. No network.
(() => {
  "use strict";
  const { svg, html, scale, ticks, path, label_lines, is_upright, choose_box, width_of, SIZE } = window.Drawing;
  const NARROW = 480; // pixels of a panel, below which names stand above their rows
  const WHITE = "#ffffff"; // of markers: they have an edge
  const INK = "#1a1a1a"; // of the picture: here the colour of the page's text
  const DASHES = { dash: "7 4", dot: "2 3", dashdot: "7 3 2 3" };
  const NEAR = 40; // pixels between the pointer and what it points at
  const SHAPES = {
    circle: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", square: "M-3.5-3.5h7v7h-7z", diamond: "M0-5L5 0 0 5-5 0z",
    "triangle-up": "M0-4.5L4.5 3.5h-9z", "triangle-down": "M0 4.5L4.5-3.5h-9z", cross: "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
  };
  const ink = (colour) => (colour === INK ? "currentColor" : colour);
  const number = (value, percent) => (percent ? `${Number((100 * value).toPrecision(6))}%` : value.toLocaleString("en", { maximumSignificantDigits: 4 })).replace("-", "\u2212");

  function draw_marker(parent, item, x = 0, y = 0) {
    const { marker, colour, size = 4, filled } = item;
    const edge = colour === WHITE ? { stroke: INK, "stroke-width": 1.2 } : { stroke: "var(--pst-color-background)", "stroke-width": 0.8 };
    const look = filled ? { fill: ink(colour), ...edge } : { fill: "none", stroke: ink(colour), "stroke-width": 1.6 };
    svg("path", { d: SHAPES[marker], transform: `translate(${x} ${y}) scale(${size / 4})`, ...look }, parent);
  }

  function draw_axes(parent, panel, place, x, y) {
    const { left, right, top, bottom } = place;
    for (const value of panel.rows ? [] : ticks(panel.y.range, 5)) {
      svg("path", { class: "grid", d: `M${left} ${y(value)}H${right}` }, parent);
      svg("text", { class: "axis", x: left - 5, y: y(value) + 4, "text-anchor": "end" }, parent, number(value, panel.y.percent));
    }
    for (const value of ticks(panel.x.range, (right - left) / 70)) {
      svg("path", { class: "grid", d: `M${x(value)} ${bottom}V${top}` }, parent);
      const text = number(value, panel.x.percent), most = right + 8 - width_of(text) / 2; // inside the panel
      svg("text", { class: "axis", x: Math.min(x(value), most), y: bottom + 15, "text-anchor": "middle" }, parent, text);
    }
    svg("text", { class: "axis", x: right, y: bottom + 31, "text-anchor": "end" }, parent, panel.x.title);
    svg("text", { class: "axis", x: 0, y: 11 }, parent, panel.y.title);
  }

  function draw_rows(parent, rows, x, y, narrow) {
    rows.forEach((text, row) => {
      const at = narrow ? { x: 2, y: y(row) - 9 } : { x: x - 8, y: y(row) + 4, "text-anchor": "end" };
      svg("text", { class: "row", ...at }, parent, text);
    });
  }

  // Draws a panel; returns the places that have a text: [x, y, text, colour].
  function draw_panel(place, panel, named) {
    const drawing = place.querySelector("svg"), width = place.clientWidth, narrow = width < NARROW;
    const { rows } = panel, widest = (texts) => Math.max(...texts.map(width_of));
    const tall = rows ? Math.max(panel.height, rows.length * (narrow ? 36 : 20)) : panel.height;
    const height = tall + 52;
    const gutter = rows ? (narrow ? 6 : Math.min(widest(rows) + 12, width / 2)) : widest(ticks(panel.y.range, 5).map((value) => number(value, panel.y.percent))) + 8;
    const box = { left: gutter, right: width - 8, top: rows ? 6 : 18, bottom: height - 36 };
    const x = scale(panel.x.range, [box.left, box.right]), y = scale(panel.y.range, [box.bottom, box.top]);
    drawing.replaceChildren();
    drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    drawing.setAttribute("height", height);
    draw_axes(drawing, panel, box, x, y);
    const points = [], lines = [], drawn = [], notes = [];
    const inside = svg("svg", { x: box.left - 5, y: box.top - 5, width: box.right - box.left + 10, height: box.bottom - box.top + 10, viewBox: `${box.left - 5} ${box.top - 5} ${box.right - box.left + 10} ${box.bottom - box.top + 10}` }, drawing);
    for (const item of panel.items) {
      if (item.kind === "map") draw_map(inside, item, x, y, points);
      if (item.kind !== "line" && item.kind !== "band") continue;
      const at = item.x.map((value, index) => (value === null || item.y[index] === null ? [null, null] : [x(value), y(item.y[index])]));
      if (item.kind === "band") svg("path", { d: `${path(at)}Z`, fill: item.colour, opacity: 0.18 }, inside);
      else draw_line(inside, item, at, points);
      if (item.kind === "line" && item.line) drawn.push({ points: at });
      const is_named = lines.some((line) => line.text === item.label); // by another stroke of the same colour
      if (item.label && item.line && at.length > 1 && !is_named) lines.push({ points: at, text: item.label, colour: ink(item.colour) });
    }
    if (rows) draw_rows(drawing, rows, box.left, y, narrow);
    for (const item of panel.items) {
      if (item.kind === "note") notes.push(draw_note(drawing, item.text, x(item.x), y(item.y), box, drawn, notes));
    }
    if (named) label_lines(drawing, lines.sort((one, other) => is_upright(other.points) - is_upright(one.points)), box, notes);
    return points;
  }

  // A note beside a point, where it has room; returns its box.
  function draw_note(parent, text, x, y, box, drawn, notes) {
    const wide = width_of(text), boxes = [];
    for (const up of [-7, 16, -22, 30, -37, 45]) {
      for (const left of [x + 8, x - 8 - wide]) boxes.push({ left, right: left + wide, top: y + up - SIZE, bottom: y + up + 3 });
    }
    const is_inside = ({ left, right, top, bottom }) => left >= box.left && right <= box.right && top >= box.top && bottom <= box.bottom;
    const chosen = choose_box(boxes.filter(is_inside), drawn, notes) ?? boxes[0];
    svg("text", { class: "note", x: chosen.left, y: chosen.bottom - 3 }, parent, text);
    return chosen;
  }

  function draw_line(parent, item, at, points) {
    const look = { fill: "none", stroke: ink(item.colour), "stroke-width": item.width * 1.3, "stroke-dasharray": DASHES[item.line] ?? "none" };
    if (item.line) svg("path", { d: path(at), ...look }, parent);
    at.forEach(([across, up], index) => {
      if (across === null) return;
      if (item.marker) draw_marker(parent, item, across, up);
      if (item.hover) points.push([across, up, item.hover[index]]);
    });
  }

  function draw_map(parent, { colours, hover }, x, y, points) {
    const wide = x(1) - x(0), high = y(0) - y(1);
    colours.forEach((row, size) => row.forEach((fill, start) => {
      if (!fill) return;
      svg("rect", { x: x(start) - wide / 2, y: y(size + 1) - high / 2, width: wide + 0.3, height: high + 0.3, fill }, parent);
      points.push([x(start), y(size + 1), hover[size][start]]);
    }));
  }

  // The text of the nearest point, beside it.
  function tell(place, tip, points, event) {
    const box = place.querySelector("svg").getBoundingClientRect();
    const off = ([x, y]) => Math.hypot(event.clientX - box.left - x, event.clientY - box.top - y);
    const nearest = points.reduce((best, point) => (!best || off(point) < off(best) ? point : best), null);
    tip.hidden = !nearest || off(nearest) > NEAR;
    if (tip.hidden) return;
    tip.textContent = nearest[2];
    const side = nearest[0] > box.width / 2 ? { right: `${box.width - nearest[0] + 10}px`, left: "auto" } : { left: `${nearest[0] + 10}px`, right: "auto" };
    Object.assign(tip.style, { top: `${nearest[1] + place.querySelector("svg").offsetTop - 10}px`, ...side });
  }

  // What a legend has to say: all names where panels share it, else what no line can carry.
  function draw_legend(place, panels, is_shared) {
    const known = new Map(), items = panels.flatMap((panel) => panel.items);
    const on_lines = new Set(is_shared ? [] : items.filter((item) => item.line && item.x.length > 1).map((item) => item.label));
    for (const item of items) if (item.label && !known.has(item.label) && !on_lines.has(item.label)) known.set(item.label, item);
    for (const item of known.values()) {
      const entry = html("span", { class: "entry" }, place);
      const key = svg("svg", { width: item.line ? 28 : 12, height: 12 }, entry);
      const look = { stroke: ink(item.colour), "stroke-width": (item.width ?? 1) + 1, "stroke-dasharray": DASHES[item.line] ?? "none" };
      if (item.line) svg("path", { d: "M0 6h28", ...look }, key);
      if (item.marker) draw_marker(key, item, item.line ? 14 : 6, 6);
      entry.append(item.label);
    }
  }

  function draw_scale(place, { title, stops, ends }) {
    const bar = html("div", { class: "scale" }, place);
    html("span", {}, bar, number(ends[0]));
    html("span", { class: "bar", style: `background:linear-gradient(to right, ${stops.map(([at, colour]) => `${colour} ${100 * at}%`).join(", ")})` }, bar);
    html("span", {}, bar, number(ends[1]));
    html("span", {}, bar, title);
  }

  function draw(figure) {
    const { panels, columns, scale: colours, legend } = window.FIGURES?.[figure.id] ?? JSON.parse(figure.querySelector(".figure-data").textContent);
    const plot = figure.querySelector(".plot"), alt = plot.querySelector("img").alt;
    draw_legend(html("div", { class: "legend" }, plot), panels, legend);
    const grid = html("div", { class: `panels columns-${columns}`, role: "img", "aria-label": alt }, plot);
    figure.dataset.drawn = "true"; // site.css hides the picture from here on
    for (const panel of panels) {
      const place = html("div", { class: "panel" }, grid);
      if (panel.title) html("p", { class: "head" }, place, panel.title);
      svg("svg", { width: "100%" }, place);
      const tip = html("div", { class: "tip", hidden: "" }, place);
      let points = [];
      const redraw = () => { points = draw_panel(place, panel, !legend); };
      let width = 0;
      new ResizeObserver(() => { if (place.clientWidth && place.clientWidth !== width) { width = place.clientWidth; redraw(); } }).observe(place);
      for (const kind of ["pointermove", "pointerdown"]) place.addEventListener(kind, (event) => tell(place, tip, points, event));
      place.addEventListener("pointerleave", () => { tip.hidden = true; });
    }
    if (colours) draw_scale(plot, colours);
  }

  // In a notebook the picture stands in its page; the link takes it from there.
  for (const figure of document.querySelectorAll("figure.measured")) {
    const link = figure.querySelector(".downloads .picture");
    if (link?.hidden) Object.assign(link, { href: figure.querySelector(".plot img").src, hidden: false });
    try {
      draw(figure);
    } catch (error) {
      delete figure.dataset.drawn;
      console.error(`figure ${figure.id} stays a picture:`, error);
    }
  }
})();
