// Sliders that take layers away. The data stand in the page (book/extension/explorer.py); no network.
(() => {
  "use strict";
  const END = 1.25; // right end of the scales: a model can keep more than the whole of what it had
  const percent = (value) => `${Math.round(100 * value)}`.replace("-", "\u2212");

  function element(name, attributes = {}, text = "") {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  }

  function start(root) {
    const models = JSON.parse(root.querySelector("script").textContent);
    const [choice, size, first] = ["select", ".size input", ".start input"].map((name) => root.querySelector(name));
    const by = root.querySelector(".rule");
    let rule = "", wanted = 0;
    const model = () => models[choice.selectedIndex];
    const sizes = () => [...new Set(Object.keys(model().cuts).map((cut) => Number(cut.split(",")[1])))].sort((a, b) => a - b);
    const starts = () => Object.keys(model().cuts).map((cut) => cut.split(",").map(Number))
      .filter(([, layers]) => layers === sizes()[size.value]).map(([layer]) => layer).sort((a, b) => a - b);

    // The first layer that the rule chose at this size, else the one nearest to what was wanted last.
    function place() {
      const own = (model().rules[rule] || []).find((cut) => cut.endsWith(`,${sizes()[size.value]}`));
      if (own) wanted = Number(own.split(",")[0]);
      const off = (layer) => Math.abs(layer - wanted), all = starts();
      first.max = all.length - 1;
      first.value = all.reduce((best, layer, index) => (off(layer) < off(all[best]) ? index : best), 0);
      show();
    }

    function refill() {
      const before = sizes()[size.value];
      size.max = sizes().length - 1;
      if (before === undefined) size.value = 0;
      const rules = ["", ...Object.keys(model().rules)];
      by.replaceChildren(by.firstElementChild, ...rules.map((name) => {
        const label = element("label"), button = element("input", { type: "radio", name: "rule" });
        button.checked = name === rule;
        button.addEventListener("change", () => { rule = name; place(); });
        label.append(button, name || "by hand");
        return label;
      }));
      place();
    }

    function task([number, kept, low, high, score]) {
      const about = model().asked[number];
      const row = element("div", { class: "task" }), scale = element("span", { class: "scale" });
      const at = (value) => 100 * Math.min(Math.max(value / END, 0), 1);
      const unit = (value) => (about.loss ? `${value.toFixed(2)} nats` : `${percent(value)}%`);
      scale.append(element("span", { class: "kept", style: `width:${at(kept)}%` }));
      scale.append(element("span", { class: "band", style: `left:${at(low)}%;width:${at(high) - at(low)}%` }));
      scale.append(element("span", { class: "whole", style: `left:${at(1)}%` }));
      const words = element("span", {}, `keeps ${percent(kept)}% (${percent(low)} to ${percent(high)}%)`);
      words.append(element("small", {}, `${unit(score)}, whole model ${unit(about.whole)}, ${about.items} items`));
      row.append(element("span", { class: "title" }, about.title), scale, words);
      return row;
    }

    // Every task is told of: what it keeps, that nothing can be seen, or that it was not measured.
    function tell(told) {
      const title = (name) => model().asked.find((asked) => asked.task === name).title;
      const seen = [], others = { "The whole model only guesses": [], "Not measured without these layers": [] };
      for (const name of model().tasks) {
        if (!told[name]) others["Not measured without these layers"].push(title(name));
        else if (told[name][1] === null) others["The whole model only guesses"].push(title(name));
        else seen.push(task(told[name]));
      }
      root.querySelector(".tasks").replaceChildren(...seen);
      root.querySelector(".others").textContent = Object.entries(others).filter(([, names]) => names.length)
        .map(([what, names]) => `${what}: ${names.join("; ")}.`).join(" ");
    }

    function show() {
      const { name, layers, cuts } = model(), dropped = sizes()[size.value], layer = starts()[first.value];
      const last = layer + dropped - 1, those = dropped > 1 ? `layers ${layer} to ${last}` : `layer ${layer}`;
      root.querySelector(".size output").textContent = `${dropped} of ${layers}`;
      root.querySelector(".start output").textContent = `${layer}`;
      first.setAttribute("aria-valuetext", those);
      size.setAttribute("aria-valuetext", `${dropped} of ${layers} layers`);
      root.querySelector(".cut").textContent = `${name} without ${those}${last === layers - 1 ? ", the last ones" : ""}`;
      const bars = Array.from({ length: layers }, (_, index) =>
        element("span", index >= layer && index <= last ? { class: "dropped" } : {}));
      root.querySelector(".stack").replaceChildren(...bars);
      root.querySelector(".stack").setAttribute("aria-label", `${layers} layers, without ${those}`);
      tell(cuts[`${layer},${dropped}`]);
    }

    choice.replaceChildren(...models.map((one) => element("option", {}, one.name)));
    choice.addEventListener("change", refill);
    size.addEventListener("input", place);
    first.addEventListener("input", () => {
      [rule, wanted] = ["", starts()[first.value]];
      const hand = by.querySelector("input");
      if (hand) hand.checked = true;
      show();
    });
    root.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    size.max = sizes().length - 1;
    size.value = Math.max(sizes().indexOf(4), 0);
    wanted = model().layers; // what a reader would think of first: the deepest
    refill();
    root.dataset.ready = "true";
  }

  document.querySelectorAll(".explorer").forEach(start);
})();
