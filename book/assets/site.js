// What scrolls sideways can be reached and scrolled by keyboard; what fits is no stop on the way.
(() => {
  "use strict";
  const WIDE = ".wide-table, .scrolls, .cell_output table, div.math, div.highlight pre";

  function mark() {
    for (const box of document.querySelectorAll(WIDE)) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", mark);
  else mark();
  window.addEventListener("load", mark);
  window.addEventListener("resize", mark);
  document.addEventListener("toggle", mark, true); // what is unfolded has a width from then on

  // on paper nothing can be opened
  window.addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll(".claims details")) folded.open = true;
  });
})();

// The theme folds the pages of a model behind an arrow without a name: a screen reader is told whose they are.
document.addEventListener("DOMContentLoaded", () => {
  for (const arrow of document.querySelectorAll("li.has-children > details > summary")) {
    const link = arrow.closest("li").querySelector("a");
    arrow.setAttribute("aria-label", `Pages of ${link.textContent.trim()}`);
  }
});
