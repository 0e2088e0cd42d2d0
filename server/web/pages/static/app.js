// The page's entry: starts what the page needs and gives clicks and keys their meaning.
//
// Sections live in modules: api (requests), connection (websocket), page (refresh), transcript and
// issue (live cards), board (filter), forms (sending and drafts), door (signing in), dom and times
// (small tools).

import { api, root } from "./api.js";
import * as board from "./board.js";
import { Connection } from "./connection.js";
import { showError } from "./dom.js";
import { startDoor } from "./door.js";
import { edit, replyTo, startForms, stopEditing } from "./forms.js";
import * as issue from "./issue.js";
import { refresh, refreshSoon } from "./page.js";
import { refreshTimes, setServerTime } from "./times.js";
import { toggleAll } from "./transcript.js";

const { page, slug } = document.body.dataset;

// --- actions of buttons -----------------------------------------------------------------------

const actions = {
  "new-issue": () => openDialog("new-issue"),
  help: () => openDialog("help"),
  "open-dialog": (button) => openDialog(button.dataset.dialog),
  "close-dialog": (button) => button.closest("dialog").close(),
  theme: nextTheme,
  async "sign-out"() {
    await api("POST", "/auth/logout", {}).catch(() => {});
    location.assign(`${root}/login`);
  },
  edit: (button) => edit(button.closest(".editable")),
  "stop-edit": (button) => stopEditing(button.form, { discard: true }),
  reply: (button) => replyTo(composer(), { id: button.dataset.comment, name: button.dataset.name }),
  "no-reply": () => replyTo(composer(), null),
  "show-all": toggleAll,
  "archive-agent": (button) => agentAction(button, "archive"),
  "restore-agent": (button) => agentAction(button, "restore"),
  ...issue.actions,
  ...board.actions,
};

const composer = () => document.querySelector(".composer");

async function agentAction(button, what) {
  const dialog = button.closest("dialog");
  button.disabled = true;
  try {
    await api("POST", `/api/agents/${button.dataset.agent}/${what}`, {});
    dialog.close();
    refreshSoon();
  } catch (error) {
    showError(dialog, error);
  } finally {
    button.disabled = false;
  }
}

function openDialog(id) {
  const dialog = document.getElementById(id);
  if (!dialog || dialog.open) return;
  closeMenus();
  dialog.showModal();
  dialog.querySelector("input, textarea, select")?.focus();
}

function closeMenus(except) {
  for (const menu of document.querySelectorAll("[data-menu][open]")) {
    if (menu !== except) menu.open = false;
  }
}

document.addEventListener("click", (event) => {
  const { target } = event;
  const button = target.closest("[data-action]");
  if (button && button.dataset.action in actions) {
    actions[button.dataset.action](button);
    return;
  }
  closeMenus(target.closest("[data-menu]"));
  if (target.localName === "dialog" && outside(target, event)) target.close();
});

function outside(dialog, { clientX: x, clientY: y }) {
  const box = dialog.getBoundingClientRect();
  return x < box.left || x > box.right || y < box.top || y > box.bottom;
}

// --- theme --------------------------------------------------------------------------------------

const THEMES = { system: "as the system", light: "light", dark: "dark" };

function nextTheme() {
  const names = Object.keys(THEMES);
  const current = document.documentElement.dataset.theme ?? "system";
  const next = names[(names.indexOf(current) + 1) % names.length];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    if (next === "system") localStorage.removeItem("bullpen.theme");
    else localStorage.setItem("bullpen.theme", next);
  } catch {
    // storage is switched off: the choice lasts until the next page
  }
  showTheme();
}

function showTheme() {
  const label = document.querySelector('[data-part="theme"]');
  if (label) label.textContent = THEMES[document.documentElement.dataset.theme ?? "system"];
}

// --- keys ---------------------------------------------------------------------------------------

const KEYS = {
  c: () => openDialog("new-issue"),
  "?": () => openDialog("help"),
  "/": () => document.getElementById("filter-text")?.focus(),
  e: () => edit(document.querySelector('[data-editable="description"]')),
  m: () => document.getElementById("comment-text")?.focus(),
  j: () => page === "issues" && board.step(1),
  k: () => page === "issues" && board.step(-1),
};
const PLACES = { i: "issues", a: "agents", r: "runtimes" };
let going = 0; // when "g" was pressed

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") closeMenus();
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.target.closest("input, textarea, select, dialog")) return;
  if (event.key === "g") {
    going = event.timeStamp;
    return;
  }
  if (event.timeStamp - going < 1500 && event.key in PLACES) {
    location.assign(`${root}/${slug}/${PLACES[event.key]}`);
    return;
  }
  going = -Infinity;
  const act = KEYS[event.key];
  if (!act || !slug) return;
  event.preventDefault();
  act();
});

// --- start --------------------------------------------------------------------------------------

const PAGES = {
  issues: { start: board.startBoard, onEvent: board.onEvent },
  issue: { start: issue.startIssue, onEvent: issue.onEvent, catchUp: issue.catchUp },
  agents: { onEvent: board.onEvent },
  runtimes: { onEvent: board.onEvent, every: 30_000 }, // heartbeats send no events
};

function startWorkspace() {
  const here = PAGES[page];
  startForms();
  here.start?.();
  const connection = new Connection({
    onEvent: here.onEvent,
    async refresh() {
      await refresh();
      await here.catchUp?.();
    },
  });
  connection.start();
  if (here.every) setInterval(refreshSoon, here.every);
}

setServerTime(document.body.dataset.now);
refreshTimes();
setInterval(refreshTimes, 10_000);
showTheme();
if (slug && page in PAGES) startWorkspace();
else if (page === "login") startDoor();
