// Puts live plots in the place of each measured figure's picture (lib/deeper_layers_companion/report/drawing.py): one for each
// panel, in a grid, with one legend and one scale of colours for all. Without this script, or without plotly, the
// picture stays. No other dependency, no network.
(() => {
  "use strict";
  const NARROW = 600; // pixels
  const INK = "#1a1a1a"; // of the picture: here the colour of the page's text
  const DASHES = { dash: "8 5", dot: "2.5 3", dashdot: "8 3 2.5 3" }; // of a line 29 pixels long
  const AXIS = { zeroline: false, gridcolor: "rgba(128,128,128,0.25)", linecolor: "#8a8a8a", nticks: 6, automargin: true };
  const SHARED = {
    font: { size: 12 },
    hovermode: "closest",
    showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    "modebar.orientation": "v",
  };

  function ink() {
    return document.documentElement.dataset.theme === "dark" ? "#e8e8e8" : INK;
  }

  // What the page decides: its width and its theme.
  function changes(plot) {
    const paper = document.documentElement.dataset.theme === "dark" ? "#222222" : "#ffffff";
    return {
      "font.color": ink(),
      "hoverlabel.bgcolor": paper,
      "hoverlabel.font.color": ink(),
      "modebar.bgcolor": "rgba(0,0,0,0)",
      "modebar.color": "#8a8a8a",
      "modebar.activecolor": ink(),
      dragmode: innerWidth < NARROW ? false : "zoom", // on a phone, dragging scrolls the page
    };
  }

  function repaint(plot, lines) {
    if (lines.length) Plotly.restyle(plot, { "line.color": ink(), "marker.color": ink() }, lines);
  }

  function element(kind, className, parent) {
    const made = parent.appendChild(document.createElement(kind));
    made.className = className;
    return made;
  }

  // On a phone a long title is cut off at both ends.
  function in_two_lines(title) {
    const space = title.indexOf(" ", title.length / 2 - 3);
    return innerWidth < NARROW && title.length > 36 && space > 0 ? `${title.slice(0, space)}<br>${title.slice(space)}` : title;
  }

  const colour_of = (trace) => trace.line?.color ?? trace.marker?.color;

  async function draw_panel(grid, panel, label, filename) {
    const place = element("div", "panel", grid);
    element("p", "head", place).innerHTML = panel.layout.title.text; // escaped where it was written, as plotly wants it
    const plot = element("div", "live", place);
    plot.setAttribute("role", "group"); // not "img": its buttons would be out of reach
    plot.setAttribute("aria-label", label);
    const { xaxis, yaxis, height, rows } = panel.layout;
    const layout = {
      ...SHARED,
      xaxis: { ...AXIS, ...xaxis, title: { text: in_two_lines(xaxis.title), standoff: 6 } },
      yaxis: { ...AXIS, ...yaxis, title: { text: yaxis.title, standoff: 6 } },
      height: height + 52,
      margin: { l: 48, r: 12, t: 8, b: 44 },
    };
    if (rows) {
      // on a phone in short lines, and as high as the one of most lines needs
      const ticktext = innerWidth < NARROW ? rows.map((text) => text.replace(/(.{11,}?) (?=.{6})/g, "$1<br>")) : rows;
      const most = Math.max(...ticktext.map((text) => text.split("<br>").length));
      Object.assign(layout.yaxis, { tickvals: rows.map((_, place) => place), ticktext, tickfont: { size: most > 1 ? 11 : 12 } });
      layout.height = Math.max(layout.height, 72 + rows.length * (8 + 14 * most));
    }
    const inked = panel.data.flatMap((trace, index) => (colour_of(trace) === INK ? [index] : []));
    const options = {
      responsive: true,
      displaylogo: false,
      displayModeBar: innerWidth < NARROW ? false : "hover",
      modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
      toImageButtonOptions: { format: "svg", filename },
    };
    await Plotly.newPlot(plot, panel.data, layout, options);
    await Plotly.relayout(plot, changes(plot));
    repaint(plot, inked);
    return { plot, inked };
  }

  // One entry for each name: a click hides it in all panels.
  function draw_legend(legend, plots) {
    const known = new Map();
    for (const { plot } of plots) {
      for (const trace of plot.data) if (trace.name && trace.showlegend && !known.has(trace.name)) known.set(trace.name, trace);
    }
    for (const [name, trace] of known) {
      const is_key = !trace.x.length && !trace.marker; // of a stroke, which lines of several colours have
      const entry = element(is_key ? "span" : "button", "entry", legend);
      const swatch = element("span", trace.line ? "swatch" : `swatch dots ${trace.marker?.symbol}`, entry);
      if (colour_of(trace) !== INK) swatch.style.color = colour_of(trace); // else that of the text
      if (trace.line) {
        const look = `stroke="currentColor" stroke-width="${trace.line.width + 1}" stroke-dasharray="${DASHES[trace.line.dash] ?? "none"}"`;
        swatch.innerHTML = `<svg width="29" height="6"><path d="M0 3h29" ${look}/></svg>`;
      }
      element("span", "", entry).innerHTML = name; // escaped where it was written, as plotly wants it
      if (is_key) continue;
      entry.type = "button";
      entry.setAttribute("aria-pressed", "true");
      entry.addEventListener("click", () => {
        const shown = entry.getAttribute("aria-pressed") !== "true";
        entry.setAttribute("aria-pressed", String(shown));
        for (const { plot } of plots) {
          const these = plot.data.flatMap((of, index) => (of.name === name ? [index] : []));
          if (these.length) Plotly.restyle(plot, { visible: shown }, these);
        }
      });
    }
  }

  function draw_scale(place, { title, stops, ends }) {
    const scale = element("div", "scale", place);
    const [low, bar, high] = ["span", "span", "span"].map((kind) => element(kind, "", scale));
    [low.textContent, high.textContent] = ends;
    bar.className = "bar";
    bar.style.background = `linear-gradient(to right, ${stops.map(([at, colour]) => `${colour} ${100 * at}%`).join(", ")})`;
    element("span", "", scale).textContent = title;
  }

  async function draw(figure) {
    const { panels, columns, scale } = JSON.parse(figure.querySelector("script.plotly-data").textContent);
    const place = figure.querySelector(".plot");
    const legend = element("div", "legend", place);
    const grid = element("div", "panels", place);
    grid.style.setProperty("--columns", columns);
    const plots = [];
    try {
      for (const [number, panel] of panels.entries()) {
        plots.push(await draw_panel(grid, panel, number ? panel.layout.title.text : place.querySelector("img").alt, figure.id));
      }
    } catch (error) {
      for (const made of [legend, grid]) made.remove(); // the picture is still there
      throw error;
    }
    draw_legend(legend, plots);
    if (scale) draw_scale(place, scale);
    figure.dataset.drawn = "true"; // site.css hides the picture from here on
    return () => plots.forEach(({ plot, inked }) => Plotly.relayout(plot, changes(plot)).then(() => repaint(plot, inked)));
  }

  // The picture stands on the page once; the link takes it from there.
  function offer(figure) {
    const link = figure.querySelector(".downloads .picture");
    if (!link) return;
    link.href = figure.querySelector(".plot img").src;
    link.hidden = false;
  }

  async function start() {
    document.querySelectorAll("figure.measured").forEach(offer);
    if (!window.Plotly) return;
    const drawn = [];
    for (const figure of document.querySelectorAll("figure.measured")) {
      try {
        drawn.push(await draw(figure));
      } catch (error) {
        console.error(`figure ${figure.id} stays a picture:`, error);
      }
    }
    new MutationObserver(() => drawn.forEach((update) => update())).observe(document.documentElement, {
      attributeFilter: ["data-theme"],
    });
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
