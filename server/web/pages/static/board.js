// The board: its filter, kept in the address so that a reload and a shared link show the same.

import { onRefresh, refreshSoon } from "./page.js";
import { part } from "./dom.js";

const form = document.querySelector("[data-filter]");

function apply() {
  const words = form.q.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const who = form.assignee.value;
  const active = words.length > 0 || who !== "*";
  let shown = 0;
  for (const column of document.querySelectorAll(".column")) {
    let here = 0;
    for (const card of column.querySelectorAll(".card")) {
      const text = card.textContent.toLowerCase();
      const match = words.every((word) => text.includes(word));
      card.hidden = !(match && (who === "*" || card.dataset.assignee === who));
      here += card.hidden ? 0 : 1;
    }
    const count = part(column, "count");
    count.dataset.all ??= count.textContent;
    count.textContent = active ? here : count.dataset.all;
    column.toggleAttribute("data-filtered-out", active && here === 0);
    shown += here;
  }
  const nothing = part(document, "no-match");
  if (nothing) nothing.hidden = !active || shown > 0;
}

function remember() {
  const address = new URL(location.href);
  for (const [name, value, none] of [["q", form.q.value, ""], ["assignee", form.assignee.value, "*"]]) {
    if (value === none) address.searchParams.delete(name);
    else address.searchParams.set(name, value);
  }
  history.replaceState(null, "", address);
}

export function onEvent(type) {
  if (type !== "task:message" && type !== "task:progress") refreshSoon();
}

export const actions = {
  "clear-filter"() {
    form.q.value = "";
    form.assignee.value = "*";
    remember();
    apply();
    form.q.focus();
  },
};

// Move between cards: j and k, as in lists elsewhere.
export function step(direction) {
  const links = [...document.querySelectorAll(".card:not([hidden]) .card-link")];
  if (!links.length) return;
  const at = links.indexOf(document.activeElement);
  const next = at === -1 ? (direction > 0 ? 0 : links.length - 1) : at + direction;
  links[Math.max(0, Math.min(next, links.length - 1))].focus();
}

export function startBoard() {
  const given = new URL(location.href).searchParams;
  form.q.value = given.get("q") ?? "";
  form.assignee.value = given.get("assignee") ?? "*";
  if (form.assignee.selectedIndex === -1) form.assignee.value = "*";
  form.addEventListener("input", () => {
    remember();
    apply();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.q.addEventListener("keydown", (event) => event.key === "Escape" && form.q.blur());
  onRefresh({ after: apply });
  apply();
}
