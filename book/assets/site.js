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

  // On a phone the first column stays where a table scrolls. Where it does not tell a row, the next ones stand in it, too.
  function name_rows(table) {
    const [head, ...rows] = table.rows;
    const names = () => new Set(rows.map((row) => row.cells[0].textContent)).size;
    for (let next = 1; next < 4 && next < head?.cells.length && names() < rows.length; next++) {
      for (const { cells } of rows) {
        const told = cells[0].appendChild(document.createElement("small"));
        told.textContent = `${head.cells[next].textContent}: ${cells[next].textContent}`;
      }
    }
  }

  window.addEventListener("load", () => innerWidth < 600 && document.querySelectorAll(".cell_output table").forEach(name_rows));
  for (const event of ["load", "resize"]) window.addEventListener(event, mark);
  document.addEventListener("toggle", mark, true); // what is unfolded has a width from then on
  document.addEventListener("click", () => setTimeout(mark));
})();
