"use strict";
// Tables are sorted by a click on a heading, and filtered by words that all have to be in a row.
for (const part of document.querySelectorAll(".table")) {
  const body = part.querySelector("tbody");
  const heads = [...part.querySelectorAll("thead th")];
  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    return cell.className ? cell.textContent : Number(cell.textContent.replaceAll("\u00a0", ""));
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), undefined, { numeric: true });
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const falls = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      const rows = [...body.rows];
      rows.sort((a, b) => (falls ? -1 : 1) * compare(value(a, column), value(b, column)));
      body.append(...rows);
    });
  });
  const filter = part.querySelector("input");
  if (!filter) continue;
  const left = part.querySelector("output");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    left.textContent = words.length ? `${shown} of ${body.rows.length}` : "";
  });
}
