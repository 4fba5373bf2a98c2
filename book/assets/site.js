// What scrolls sideways can be reached and scrolled by keyboard; what fits is no stop on the way.
(() => {
  "use strict";
  const WIDE = ".cell_output .output, .pst-scrollable-table-container, .table-wrapper, div.math, div.highlight pre";

  function mark() {
    for (const box of document.querySelectorAll(WIDE)) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }

  for (const event of ["load", "resize"]) window.addEventListener(event, mark);
  document.addEventListener("toggle", mark, true); // what is unfolded has a width from then on
  document.addEventListener("click", () => setTimeout(mark));
})();
