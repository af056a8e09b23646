// Sortable tables: a button in each column's header. Numbers start with the highest, text with the first; a second press reverses, a third restores the order.
"use strict";
const buttons = new Map();
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const collator = new Intl.Collator("en", { numeric: true });
  const text = (row, column) => (row.cells[column].firstChild?.textContent ?? "").trim();
  const number = (row, column) => {
    const plain = text(row, column).replaceAll("\u2212", "-").replace(/,(?=\d{3})/g, "");
    const found = plain.match(/-?\d+(?:\.\d+)?(?:e[+-]?\d+)?/i);
    return found ? Number(found[0]) : null;
  };
  const compare = (column, numeric, sign) => (one, other) => {
    if (!numeric) return sign * collator.compare(text(one, column), text(other, column));
    const [a, b] = [number(one, column), number(other, column)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a - b);
  };
  heads.forEach((head, column) => {
    const numeric = head.classList.contains("number");
    const orders = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    buttons.set(head, button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = orders[orders.indexOf(head.getAttribute("aria-sort")) + 1] ?? "none";
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
      const sorted = order === "none" ? original : [...original].sort(compare(column, numeric, order === "ascending" ? 1 : -1));
      body.append(...sorted);
    });
  });
}
// Folded parts: a link, or the address, opens what it leads to; all are open when printed. The head of a table that goes
// on on another page is printed again there, but not the buttons in it.
const reveal = (hash) => {
  const target = document.getElementById(decodeURIComponent(hash.slice(1)));
  target?.querySelector(":scope > details")?.setAttribute("open", "");
  for (let e = target; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
};
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link) reveal(link.hash);
});
reveal(location.hash);
addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("details")) closed.open = true;
  for (const button of buttons.values()) button.replaceWith(...button.childNodes);
});
addEventListener("afterprint", () => {
  for (const [head, button] of buttons) {
    button.append(...head.childNodes);
    head.append(button);
  }
});
