// The figure that takes layers away: a strip of layers and a chart on one axis, a block that is dragged along, and bars of
// what is left without it. The data are cuts.js (book/extension/explorer.py); what is shown stands in the address.
(() => {
  "use strict";
  const { svg, html, scale, path, label_lines } = window.Drawing;
  const TOP = 16, BOTTOM = 26; // of the chart, pixels; below its lines stand the marks of the rules
  const LOW = -0.2, HIGH = 1.18; // shares kept that the chart shows
  const END = 1.1; // right end of the bars
  const EDGE = 9; // pixels at the ends of the block that resize it
  const FORMS = { text: /loss/, easy: /letter/, words: /words/, written: /ritten|GSM8K/ }; // by a task's title: its colour
  const percent = (value) => `${Math.round(100 * value)}%`.replace("-", "\u2212");
  const capital = (text) => text[0].toUpperCase() + text.slice(1);

  function start(root) {
    const models = window.CUTS;
    const find = (name) => root.querySelector(name);
    const [choice, strip, block, chart] = ["select", ".strip", ".block", ".chart"].map(find);
    let model, first, size;

    // ---- what is known -------------------------------------------------------------------------------------------

    const told = (task, at = first, of = size) => model.cuts[`${at},${of}`]?.[task];
    const about = (fact) => model.asked[fact[0]];
    // Of a text: how likely its next token is, beside the whole model. Of all else the share kept above guessing.
    const share = (fact) => (about(fact).loss ? Math.exp(about(fact).whole - fact[4]) : fact[1]);
    const perplexity = (loss) => { const value = Math.exp(loss); return value < 99.5 ? value.toPrecision(2) : Math.round(value).toLocaleString("en"); };
    const colour = (line) => `var(--${line})`;

    // The cuts of this size that have a name.
    function marks() {
      const by = (rule) => model.rules[rule]?.find((cut) => cut.endsWith(`,${size}`))?.split(",")[0];
      const many = size > 1 ? `${size} ` : "";
      return [
        ["similar", "\u25c6", `the ${many}most similar`, by("similarity")],
        ["simple", "\u25b2", `the ${many}before the last`, by("simple")],
        ["last", "\u25a0", `the last ${many}`.trim(), model.layers - size],
      ].filter(([, , , at]) => at !== undefined).map(([name, sign, words, at]) => ({ name, sign, words, at: Number(at) }));
    }

    const layers_in_words = () => (size > 1 ? `layers ${first} to ${first + size - 1}` : `layer ${first}`);

    // ---- what is drawn -------------------------------------------------------------------------------------------

    function draw_strip() {
      for (const cell of strip.querySelectorAll("span")) cell.remove();
      for (let layer = model.layers - 1; layer >= 0; layer--) {
        const dropped = layer >= first && layer < first + size;
        const cell = html("span", dropped ? { class: "dropped" } : {}, null, `${layer}`);
        strip.prepend(cell);
      }
      block.style.left = `${(100 * first) / model.layers}%`;
      block.style.width = `${(100 * size) / model.layers}%`;
      const values = { valuemin: 0, valuemax: model.layers - size, valuenow: first, valuetext: layers_in_words() };
      for (const [name, value] of Object.entries(values)) block.setAttribute(`aria-${name}`, value);
    }

    function draw_chart() {
      const width = chart.clientWidth, height = chart.clientHeight;
      const x = scale([0, model.layers], [0, width]), y = scale([LOW, HIGH], [height - BOTTOM, TOP]);
      chart.replaceChildren();
      chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg("rect", { class: "gone", x: x(first), y: 0, width: x(size) - x(0), height: height - BOTTOM }, chart);
      for (const [level, words] of [[0, "guessing"], [0.5, "half"], [1, "whole model"]]) {
        svg("path", { class: "level", d: `M0 ${y(level)}H${width}` }, chart);
        svg("text", { class: "axis", x: 2, y: y(level) - 4 }, chart, words);
      }
      const lines = [], dots = [];
      for (const [line, tasks] of Object.entries(model.lines)) {
        const starts = (task) => [...Array(model.layers).keys()].filter((at) => told(task, at) && share(told(task, at)) !== null);
        const task = Object.keys(tasks).reduce((best, other) => (starts(other).length > starts(best).length ? other : best));
        const points = [];
        for (const at of starts(task)) {
          const end = points.at(-1);
          if (end && at - end[2] > 1) points.push([null, null, at]);
          points.push([x(at + size / 2), y(Math.min(Math.max(share(told(task, at)), LOW), HIGH)), at]);
        }
        if (!points.length) continue;
        svg("path", { class: "line", stroke: colour(line), d: path(points) }, chart);
        points.forEach(([across, up, at], index) => {
          const alone = points[index - 1]?.[1] == null && points[index + 1]?.[1] == null;
          if (up !== null && (at === first || alone)) dots.push([across, up, line, at === first]);
        });
        lines.push({ points, text: capital(tasks[task]), colour: colour(line) });
      }
      for (const [cx, cy, line, here] of dots) svg("circle", { class: "dot", cx, cy, r: here ? 5.5 : 3.5, fill: colour(line) }, chart);
      label_lines(chart, lines, { left: 90, right: width - 4, top: 0, bottom: height - BOTTOM });
      if (letters_return()) svg("text", { class: "axis note", x: width - 2, y: 10, "text-anchor": "end" }, chart, "the last layer gone too: letters are back");
      for (const { name, sign, words, at } of marks()) {
        const place = { class: "mark", x: x(at + size / 2), y: height - 8, "text-anchor": "middle", fill: colour(name) };
        const mark = svg("text", place, chart, sign);
        svg("title", {}, mark, words);
        mark.addEventListener("click", () => move(at));
      }
    }

    // Letters that fall without late blocks, and are there again without the last one, as long as the text is not.
    function letters_return() {
      const task = Object.keys(model.lines.letters ?? {})[0], end = model.layers - size;
      const kept = (at) => (told(task, at) ? share(told(task, at)) : null);
      return kept(end) > 0.9 && [size, size - 1].some((back) => kept(end - back) !== null && kept(end - back) < 0.5);
    }

    function draw_marks() {
      const buttons = marks().map(({ name, sign, words, at }) => {
        const made = html("button", { type: "button", "aria-pressed": at === first });
        html("span", { style: `color:${colour(name)}`, "aria-hidden": "true" }, made, `${sign} `);
        made.append(words);
        made.addEventListener("click", () => move(at));
        return made;
      });
      const before = [...find(".marks").children].indexOf(document.activeElement);
      find(".marks").replaceChildren(...buttons);
      buttons[before]?.focus();
    }

    function draw_bars() {
      const rows = Object.entries(model.lines).map(([line, tasks]) => {
        const names = Object.keys(tasks), task = names.find((name) => told(name)) ?? names[0], fact = told(task);
        const row = html("div", { class: "bar" });
        const value = fact && share(fact), is_text = about_text(task);
        html("span", { class: "title" }, row, capital(tasks[task]) + (is_text ? ", perplexity" : ""));
        const track = html("span", { class: "track" }, row);
        if (value != null) draw_bar(track, fact, line);
        html("span", { class: "whole", style: `left:${width_of(1)}%` }, track);
        const words = !fact ? "not measured" : value === null ? "only guesses" : is_text ? perplexities(fact) : percent(value);
        html("strong", fact && value !== null ? {} : { class: "missing" }, row, words);
        return row;
      });
      find(".bars").replaceChildren(...rows);
      find(".over").textContent = `Left without ${layers_in_words()}`;
    }

    const perplexities = (fact) => `${perplexity(about(fact).whole)} \u2192 ${perplexity(fact[4])}`;
    const width_of = (value) => 100 * Math.min(Math.max(value / END, 0), 1);

    // What is kept, and the interval where it is not of a text.
    function draw_bar(track, fact, line) {
      const [, , low, high] = fact;
      html("span", { class: "kept", style: `width:${width_of(share(fact))}%;background:${colour(line)}` }, track);
      if (!about(fact).loss) html("span", { class: "band", style: `left:${width_of(low)}%;width:${width_of(high) - width_of(low)}%` }, track);
    }

    const about_text = (task) => model.asked.some((asked) => asked.task === task && asked.loss);

    function sentence() {
      const named = marks().find(({ at }) => at === first), kept = [], missing = [], unknown = [];
      let text = "";
      for (const tasks of Object.values(model.lines)) {
        const names = Object.keys(tasks), task = names.find((name) => told(name)), fact = told(task);
        if (!fact) missing.push(tasks[names[0]]);
        else if (about(fact).loss) text = ` ${tasks[task]}\u2019s perplexity goes from ${perplexity(about(fact).whole)} to ${perplexity(fact[4])}.`;
        else if (share(fact) === null) unknown.push(tasks[task]);
        else kept.push(`${percent(share(fact))} of ${tasks[task]}`);
      }
      const list = (words) => [words.slice(0, -1).join(", "), words.at(-1)].filter(Boolean).join(" and ");
      const head = `Without ${layers_in_words()}${named ? `, ${named.words} of ${model.layers}` : ` of ${model.layers}`}, ${model.name} `;
      return head + (kept.length ? `keeps ${list(kept)}.` : "was not asked what these lines ask.") + text
        + (unknown.length ? ` The whole model only guesses at ${list(unknown)}.` : "")
        + (missing.length ? ` Not measured: ${list(missing)}.` : "");
    }

    // Every task of this cut, where the page has room for them.
    function draw_tasks() {
      const all = find(".tasks");
      if (!all) return;
      const seen = [], others = { "The whole model only guesses": [], "Not measured without these layers": [] };
      for (const task of model.tasks) {
        const title = model.asked.find((asked) => asked.task === task).title, fact = told(task);
        if (!fact) others["Not measured without these layers"].push(title);
        else if (fact[1] === null) others["The whole model only guesses"].push(title);
        else seen.push(task_row(fact));
      }
      all.replaceChildren(...seen);
      find(".others").textContent = Object.entries(others).filter(([, titles]) => titles.length)
        .map(([what, titles]) => `${what}: ${titles.join("; ")}.`).join(" ");
    }

    function task_row(fact) {
      const [, kept, low, high, score] = fact, { title, loss, whole, items } = about(fact);
      const row = html("div", { class: "task" }), track = html("span", { class: "track" });
      const own = Object.entries(model.lines).find(([, tasks]) => about(fact).task in tasks)?.[0];
      const line = own ?? Object.keys(FORMS).find((form) => FORMS[form].test(title)) ?? "other";
      html("span", { class: "title" }, row, title);
      draw_bar(track, fact, line);
      html("span", { class: "whole", style: `left:${width_of(1)}%` }, track);
      row.append(track);
      const words = html("span", {}, row, loss ? `perplexity ${perplexities(fact)}` : `keeps ${percent(kept)} (${percent(low)} to ${percent(high)})`);
      html("small", {}, words, loss ? `loss ${whole.toFixed(2)}, now ${score.toFixed(2)} nats; ${items} texts` : `${percent(score)} right, whole model ${percent(whole)}, ${items} items`);
      return row;
    }

    function draw() {
      draw_strip();
      draw_chart();
      draw_marks();
      draw_bars();
      draw_tasks();
      find(".size output").textContent = `${size}`;
      const words = sentence();
      find(".cut").textContent = words;
      chart.setAttribute("aria-label", words);
    }

    // ---- what a reader does --------------------------------------------------------------------------------------

    // Another block; it stays inside the model, and the address follows.
    function move(at, of = size) {
      size = Math.min(Math.max(of, 1), model.layers - 1);
      first = Math.min(Math.max(at, 0), model.layers - size);
      draw();
      history.replaceState(null, "", `#${new URLSearchParams({ model: model.name, start: first, size })}`);
    }

    function open_on(cut, name = models[0].name) {
      model = models.find((one) => one.name === name) ?? models[0];
      choice.value = model.name;
      [first, size] = (cut || model.opens || "0,1").split(",").map(Number);
      size = Math.min(Math.max(size || 1, 1), model.layers - 1);
      first = Math.min(Math.max(first || 0, 0), model.layers - size);
      draw();
    }

    function read_address() {
      const asked = new URLSearchParams(location.hash.slice(1));
      if (!asked.has("model")) return false;
      open_on(asked.has("start") && asked.has("size") ? `${asked.get("start")},${asked.get("size")}` : "", asked.get("model"));
      return true;
    }

    // The block follows the pointer; an end that is held moves alone, and a press elsewhere brings the block there.
    function grab(event) {
      const box = strip.getBoundingClientRect(), cell = box.width / model.layers;
      const layer_at = (moved) => Math.floor((moved.clientX - box.left) / cell);
      const edge_at = (moved) => Math.round((moved.clientX - box.left) / cell);
      const begin = first, end = first + size;
      const off = (edge) => Math.abs(event.clientX - box.left - edge * cell);
      const held = layer_at(event) - first;
      const is_inside = held >= 0 && held < size;
      const hold = is_inside ? held : Math.floor(size / 2);
      let follow = (moved) => move(layer_at(moved) - hold);
      if (off(begin) < EDGE) {
        follow = (moved) => { const edge = Math.min(Math.max(edge_at(moved), 0), end - 1); move(edge, end - edge); };
      } else if (off(end) < EDGE) {
        follow = (moved) => move(begin, Math.min(Math.max(edge_at(moved), begin + 1), model.layers) - begin);
      } else if (!is_inside) {
        follow(event);
      }
      const target = event.currentTarget;
      function release() {
        target.removeEventListener("pointermove", follow);
        for (const kind of ["pointerup", "pointercancel"]) target.removeEventListener(kind, release);
      }
      target.setPointerCapture(event.pointerId);
      target.addEventListener("pointermove", follow);
      for (const kind of ["pointerup", "pointercancel"]) target.addEventListener(kind, release);
      block.focus({ preventScroll: true });
      event.preventDefault();
    }

    function press(event) {
      const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
      if (step && event.shiftKey) move(first, size + step);
      else if (step) move(first + step);
      else if (event.key === "Home") move(0);
      else if (event.key === "End") move(model.layers);
      else return;
      event.preventDefault();
    }

    for (const one of models) html("option", { value: one.name }, choice, one.name);
    find(".model").hidden = models.length < 2;
    choice.addEventListener("change", () => { open_on("", choice.value); move(first); });
    find(".less").addEventListener("click", () => move(first, size - 1));
    find(".more").addEventListener("click", () => move(Math.min(first, model.layers - size - 1), size + 1));
    strip.addEventListener("pointerdown", grab);
    chart.addEventListener("pointerdown", (event) => event.target.matches(".mark") || grab(event));
    block.addEventListener("keydown", press);
    find("form").addEventListener("submit", (event) => event.preventDefault());
    root.dataset.ready = "true"; // site.css shows the drawing from here on, so that it has a width
    if (!read_address()) open_on("");
    window.addEventListener("hashchange", read_address);
    new ResizeObserver(draw_chart).observe(strip);
  }

  document.querySelectorAll(".explorer").forEach(start);
})();
