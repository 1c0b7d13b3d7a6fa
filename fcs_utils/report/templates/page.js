// '98.65 ± 0.40' and '+1.2 points' sort by their number.
for (const cell of document.querySelectorAll(".sortable td")) {
  const number = cell.textContent.trim().match(/^[+\-−]?\d[\d,]*\.?\d*/);
  if (number && number[0] !== cell.textContent.trim()) cell.dataset.sort = number[0].replaceAll(",", "").replace("−", "-");
  if (cell.textContent.includes(" ± ")) cell.classList.add("whole");
}
