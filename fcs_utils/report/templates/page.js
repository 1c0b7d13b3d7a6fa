// '98.65 ± 0.40' and '+1.2 points' sort by their number.
for (const cell of document.querySelectorAll(".sortable td")) {
  const number = cell.textContent.trim().match(/^[+\-−]?\d[\d,]*\.?\d*/);
  if (number && number[0] !== cell.textContent.trim()) cell.dataset.sort = number[0].replaceAll(",", "").replace("−", "-");
}
// What is short stays on one line, and what is long gets room for some words: a wide table scrolls by itself.
for (const cell of document.querySelectorAll("td")) {
  const length = cell.textContent.trim().length;
  if (length <= 20 || length > 26) cell.classList.add(length <= 20 ? "whole" : "long");
}
// Columns of numbers stand flush right, those with a unit, an interval or a number in brackets behind them, too.
const amount = String.raw`[+\-−<]?\s?\d[\d,]*\.?\d*(?:x| %)?`;
const numeric = new RegExp(`^${amount}(?: (?:±|to) ${amount})?(?: points| of epochs)?(?: \\(${amount}(?: to ${amount})?\\))?$`);
for (const table of document.querySelectorAll("table")) {
  const rows = [...table.querySelectorAll("tr")];
  for (let column = 0; column < rows[0].cells.length; column++) {
    const texts = rows.slice(1).map((row) => row.cells[column]?.textContent.trim() ?? "");
    const numbers = texts.filter((text) => numeric.test(text));
    if (numbers.length && numbers.length === texts.filter(Boolean).length)
      for (const row of rows) row.cells[column]?.classList.add("number");
  }
}
// Of the columns of words, the one with the most different ones tells the rows apart; where all are numbers, the first.
for (const table of document.querySelectorAll("table")) {
  const [head, ...rows] = table.querySelectorAll("tr");
  const kinds = [...head.cells].map((cell, column) =>
    cell.classList.contains("number") ? 0 : new Set(rows.map((row) => row.cells[column]?.textContent)).size);
  const column = kinds.indexOf(Math.max(...kinds));
  for (const row of [head, ...rows]) row.cells[column]?.classList.add("pinned");
}
// Where there is room beside the text, the contents stand there, open.
if (matchMedia("(min-width: 1560px)").matches) document.querySelector("details.contents")?.setAttribute("open", "");
