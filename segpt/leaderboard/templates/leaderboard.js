
"use strict";
(() => {
  const status = document.getElementById("status");

  const before = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? (a < b ? -1 : a > b ? 1 : 0) : x - y;
  };

  const sort = (table, heads, column) => {
    const down = heads[column].getAttribute("aria-sort") === "ascending";
    const key = (body, place) => body.rows[0].cells[place].dataset.sort;
    const bodies = [...table.tBodies].sort((a, b) => {
      const [x, y] = [key(a, column), key(b, column)];
      if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1) || before(key(a, 0), key(b, 0));
      return (down ? -1 : 1) * before(x, y) || before(key(a, 0), key(b, 0));
    });
    table.append(...bodies);
    for (const head of heads) head.removeAttribute("aria-sort");
    const order = down ? "descending" : "ascending";
    heads[column].setAttribute("aria-sort", order);
    status.textContent = `Sorted by ${heads[column].innerText.trim()}, ${order}.`;
  };

  for (const table of document.querySelectorAll("table.board")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, heads, column));
      head.append(button);
    });
  }

  const reveal = () => {
    const entry = document.getElementById(location.hash.slice(1));
    if (entry && entry.tagName === "TBODY") entry.querySelector("details").open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();
})();
