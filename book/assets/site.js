// What scrolls sideways can be reached and scrolled by keyboard; what fits is no stop on the way. On a phone the rows of a
// table that would scroll are cards (site.css).
(() => {
  "use strict";
  const WIDE = ".cell_output .output, .pst-scrollable-table-container, .table-wrapper, div.math, div.highlight pre";

  function mark() {
    for (const box of document.querySelectorAll(WIDE)) {
      if (innerWidth < 600 && box.scrollWidth > box.clientWidth) box.querySelectorAll("table").forEach(make_cards);
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }

  // Each cell is told its head.
  function make_cards(table) {
    const [head, ...rows] = table.rows;
    for (const { cells } of rows) [...cells].forEach((cell, at) => { cell.dataset.head = head.cells[at]?.textContent ?? ""; });
    table.classList.add("cards");
  }

  for (const event of ["load", "resize"]) window.addEventListener(event, mark);
  document.addEventListener("toggle", mark, true); // what is unfolded has a width from then on
  document.addEventListener("click", () => setTimeout(mark));
})();
