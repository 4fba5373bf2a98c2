// Puts a live plot in the place of each measured figure's picture (lib/figures.py, `_repr_html_`).
// Without this script, or without plotly, the picture stays. No other dependency, no network.
(() => {
  "use strict";
  const NARROW = 600; // pixels; layout.meta holds the changes for narrower and for wider figures

  function colours() {
    const dark = document.documentElement.dataset.theme === "dark";
    const ink = dark ? "#e8e8e8" : "#1a1a1a";
    return { ink, paper: dark ? "#222222" : "#ffffff" };
  }

  // What the page decides: its width and its theme.
  function changes(plot, layout) {
    const { ink, paper } = colours();
    return {
      ...layout.meta[plot.clientWidth < NARROW ? "narrow" : "wide"],
      "font.color": ink,
      "hoverlabel.bgcolor": paper,
      "hoverlabel.font.color": ink,
      "modebar.orientation": "v", // beside the plot: above it is the legend
      "modebar.bgcolor": "rgba(0,0,0,0)",
      "modebar.color": "#8a8a8a",
      "modebar.activecolor": ink,
    };
  }

  // Some lines have the colour of the text.
  function repaint(plot) {
    const lines = plot.data.flatMap((trace, index) => (trace.meta === "ink" ? [index] : []));
    const { ink } = colours();
    if (lines.length) Plotly.restyle(plot, { "line.color": ink, "marker.color": ink }, lines);
  }

  async function draw(figure) {
    const { data, layout } = JSON.parse(figure.querySelector("script.plotly-data").textContent);
    const image = figure.querySelector(".plot img");
    const plot = document.createElement("div");
    plot.className = "live";
    plot.setAttribute("role", "group"); // not "img": its buttons would be out of reach
    plot.setAttribute("aria-label", image.alt);
    image.after(plot);
    try {
      await Plotly.newPlot(plot, data, layout, {
        responsive: true,
        displaylogo: false,
        showEditInChartStudio: false,
        displayModeBar: plot.clientWidth < NARROW ? false : "hover",
        modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
        toImageButtonOptions: { format: "svg", filename: figure.id },
      });
      await Plotly.relayout(plot, changes(plot, layout));
      repaint(plot);
    } catch (error) {
      plot.remove(); // the picture is still there
      throw error;
    }
    figure.dataset.drawn = "true"; // plots.css hides the picture from here on
    let width = plot.clientWidth;
    // The width also changes without the window: a sidebar opens, a tab is shown.
    new ResizeObserver(() => {
      if (plot.clientWidth === width || !plot.clientWidth) return;
      width = plot.clientWidth;
      Plotly.relayout(plot, { ...changes(plot, layout), autosize: true });
    }).observe(plot);
    return () => Plotly.relayout(plot, changes(plot, layout)).then(() => repaint(plot));
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
