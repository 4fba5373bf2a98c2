// The page where a slider removes layers. The data stand in the page (book/explorer.py); no network.
(() => {
  "use strict";
  const root = document.getElementById("explorer");
  if (!root) return;
  const models = JSON.parse(root.querySelector("script.explorer-data").textContent);
  const [model, rule, size] = ["model", "rule", "size"].map((name) => document.getElementById(`explorer-${name}`));
  const part = (name) => root.querySelector(`.explorer-${name}`);

  function element(name, attributes = {}, text = "") {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  }

  const number = (value) => value.toLocaleString("en");
  const percent = (value) => `${(100 * value).toFixed(1)}%`;
  const chosen = () => models[model.selectedIndex];
  // a task may have any name, that of a property of every object too
  const of = (step, about) => (Object.hasOwn(step.accuracy, about.key) ? step.accuracy[about.key] : undefined);
  const steps = () => chosen().rules[rule.value];

  function refill() {
    const before = rule.value;
    rule.replaceChildren(...Object.keys(chosen().rules).map((name) => element("option", {}, name)));
    if (before in chosen().rules) rule.value = before;
    limits();
  }

  // Another rule may have been asked for other sizes: the nearest to what was wanted last.
  let wanted = 0;
  function limits() {
    part("about").textContent = `Drops ${chosen().about[rule.value]}.`;
    size.max = steps().length - 1;
    const off = (step) => Math.abs(step.size - wanted);
    size.value = steps().reduce((best, step, index, all) => (off(step) < off(all[best]) ? index : best), 0);
    show();
  }

  // One bar a layer, from the first at the left: dropped ones are hollow, those without attention or MLP half so.
  function stack(step, layers) {
    const block = Array.from({ length: step.size }, (_, index) => step.start + index);
    const [dropped, halves] = [new Set(step.layers || block), new Set(step.halves || [])];
    const bars = [];
    for (let layer = 0; layer < layers; layer += 1) {
      const kind = dropped.has(layer) ? "dropped" : halves.has(layer) ? "half" : "kept";
      bars.push(element("span", { class: kind, title: `layer ${layer}` }));
    }
    part("stack").replaceChildren(...bars);
    part("stack").setAttribute("aria-label", step.kept);
  }

  function task(about, step, whole) {
    const row = element("div", { class: "task" });
    const found = of(step, about);
    row.append(element("span", { class: "title" }, about.title));
    const scale = element("span", { class: "scale" });
    if (found) {
      const [value, low, high, flipped, start] = found;
      const place = (from, to) => `left:${100 * from}%;width:${Math.max(100 * (to - from), 0.4)}%`;
      scale.append(element("span", { class: "interval", style: place(low, high) }));
      scale.append(element("span", { class: "value", style: `left:${100 * value}%` }));
      if (about.guessing !== null) {
        scale.append(element("span", { class: "guessing", style: `left:${100 * about.guessing}%`, title: "guessing" }));
      }
      if (whole) scale.append(element("span", { class: "whole", style: `left:${100 * whole[0]}%`, title: "unpruned" }));
      const other = start === undefined ? "" : `, block from layer ${start}`;
      const flips = flipped === null || !step.size ? "" : `; ${percent(flipped)} of answers flip`;
      row.append(scale, element("span", { class: "number" },
        `${percent(value)} (${percent(low)} to ${percent(high)})${flips}${other}`));
    } else {
      row.append(scale, element("span", { class: "number" }, "not measured"));
    }
    return row;
  }

  function show() {
    const { layers, tasks, weights } = chosen();
    const step = steps()[Number(size.value)];
    const whole = steps()[0];
    size.setAttribute("aria-valuetext", `${step.size} of ${layers} layers`);
    part("cut").textContent = `${chosen().name} (${weights} weights) ${step.kept}.`;
    stack(step, layers);
    part("tasks").replaceChildren(...tasks.map((about) => task(about, step, of(whole, about))));
    const distance = step.distance === undefined ? "not measured" : step.distance.toFixed(4);
    function time(way) {
      if (!whole.time) return "not measured";
      const [share, least, most, tokens] = (step.time || {})[way] || [];
      if (share === undefined) return "not measured at this size";
      const range = step.size ? ` (${percent(least)} to ${percent(most)})` : "";
      return `${percent(share)} of the whole model's time${range}, ${tokens} tokens`;
    }
    const loss = (found) => (found === undefined ? "not measured" : `${found[0].toFixed(3)} (${found[1]})`);
    const facts = [
      ["Layers dropped", step.halves && step.halves.length ?
        `${step.layers.length} of ${layers} as a whole, and of ${step.halves.length} more their attention or MLP` :
        `${step.size} of ${layers}, ${percent(step.size / layers)}`],
      ["Parameters", step.weights === undefined ? "not measured" : number(step.weights[0])],
      ["Memory of the weights", step.weights === undefined ? "not measured" :
        `${number(Math.round(step.weights[1] / 2 ** 20))} MiB in ${step.weights[2]}`],
      ["Reading a prompt takes", time("prefill")],
      ["Writing takes", time("decode")],
      ["Angular distance of the block", !step.size ? "nothing is dropped" : step.layers ? "no block" : distance],
      ["Loss on text, nats a token", loss(step.loss)],
      ["The same after healing", loss(step.healed)],
      ["Healed on", step.healing === undefined ? "not measured" :
        `${number(step.healing[0])} tokens, ${number(step.healing[1])} parameters trained, ${number(step.healing[2])} s`],
    ];
    part("facts").replaceChildren(
      ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
    );
  }

  model.addEventListener("change", refill);
  rule.addEventListener("change", limits);
  size.addEventListener("input", () => {
    wanted = steps()[Number(size.value)].size;
    show();
  });
  root.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  refill();
  root.dataset.ready = "true";
})();
