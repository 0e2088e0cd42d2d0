// The issue page: live cards that fill while agents work, and the history they turn into.

import { api } from "./api.js";
import { clearError, make, part, showError } from "./dom.js";
import { assignee } from "./forms.js";
import { onRefresh, refresh, refreshSoon } from "./page.js";
import { duration, now } from "./times.js";
import { Transcript } from "./transcript.js";

const QUIET_AFTER = 30_000; // a model's long thought; beyond it the reader should know

const issue = document.body.dataset.issue;
const cards = new Map(); // task id -> Transcript of a run that has not ended
const past = new Map(); // task id -> Transcript of one that has, once it was opened

// --- live cards -----------------------------------------------------------------------------

const cardOf = (taskId) => document.querySelector(`[data-card="${taskId}"]`);

function adopt(card) {
  const taskId = card.dataset.card;
  const transcript = new Transcript(part(card, "log"), taskId);
  const jump = card.querySelector('[data-action="jump"]');
  transcript.onChange = () => {
    jump.hidden = transcript.follow;
  };
  cards.set(taskId, transcript);
  const place = part(card, "progress");
  const { summary, step, total } = place.dataset;
  showProgress({ task_id: taskId, summary, step: Number(step), total: Number(total) });
  transcript.catchUp().catch((error) => showError(card, error));
}

function showProgress({ task_id: taskId, summary, step, total }) {
  const card = cardOf(taskId);
  if (!card || !summary) return;
  const bar = total > 0 && make("progress", { max: total, value: step, "aria-label": "Progress" });
  const count = total > 0 ? ` (${step} of ${total})` : "";
  part(card, "progress").replaceChildren(bar || "", make("span", {}, summary + count));
}

function tick() {
  for (const [taskId, transcript] of cards) {
    const card = cardOf(taskId);
    if (!card) continue;
    part(card, "elapsed").textContent = duration(now() - Date.parse(card.dataset.begun));
    const silent = transcript.lastAt ? now() - transcript.lastAt : 0;
    const quiet = card.dataset.status === "running" && silent > QUIET_AFTER;
    part(card, "quiet").textContent = quiet ? `Nothing new for ${duration(silent)}` : "";
  }
}

// --- what the server says -------------------------------------------------------------------

export function onEvent(type, payload) {
  const taskId = payload.task_id;
  if (type === "task:message") {
    if (cards.has(taskId)) cards.get(taskId).add(payload);
    else if (past.has(taskId)) past.get(taskId).add(payload);
    else if (payload.issue_id === issue) refreshSoon(); // a card is missing
    return;
  }
  if (type === "task:progress") {
    showProgress(payload);
    return;
  }
  const about = payload.issue_id ?? payload.issue?.id ?? payload.comment?.issue_id;
  const everyones = type.startsWith("agent:") || type.startsWith("daemon:");
  if (about === issue || everyones || cards.has(taskId)) refreshSoon();
}

// What may have been missed: every open transcript after its last row.
export async function catchUp() {
  await Promise.all([...cards.values()].map((transcript) => transcript.catchUp()));
}

let ending = []; // runs that have just ended, between the two hooks

onRefresh({
  before(parsed) {
    ending = [];
    for (const [taskId, transcript] of cards) {
      if (parsed.querySelector(`[data-card="${taskId}"]`)) continue;
      const card = cardOf(taskId);
      const busy = card?.contains(document.activeElement) || !transcript.follow;
      ending.push({ taskId, transcript, busy, top: transcript.log.scrollTop });
      cards.delete(taskId);
    }
  },
  after() {
    ending.forEach(settle);
    for (const card of document.querySelectorAll("[data-card]")) {
      if (!cards.has(card.dataset.card)) adopt(card);
    }
  },
});

// A card's transcript becomes that of its row in the history; what the reader looks at stays open.
function settle({ taskId, transcript, busy, top }) {
  const details = document.querySelector(`[data-run="${taskId}"]`);
  if (!details) return;
  const log = transcript.log;
  log.classList.add("ended");
  log.setAttribute("role", "region");
  part(details, "log").replaceWith(log);
  transcript.onChange = () => {};
  past.set(taskId, transcript);
  transcript.catchUp().catch(() => {}); // the last rows may have come after the last event
  if (!busy) return;
  details.open = true;
  log.scrollTop = top;
  details.querySelector("summary").focus({ preventScroll: true });
}

function openRun(details) {
  const taskId = details.dataset.run;
  if (!details.open || past.has(taskId)) return;
  const log = part(details, "log");
  const transcript = new Transcript(log, taskId);
  transcript.follow = false; // read from the start
  past.set(taskId, transcript);
  transcript.catchUp().then(
    () => {
      if (!transcript.rows.children.length) {
        transcript.rows.append(make("li", { class: "gap" }, "This run left no transcript."));
      }
    },
    (error) => {
      past.delete(taskId);
      transcript.rows.replaceChildren(make("li", { class: "entry error" }, error.message));
    },
  );
}

// --- what the reader does -------------------------------------------------------------------

export const actions = {
  jump(button) {
    cards.get(button.closest("[data-card]").dataset.card)?.toEnd();
  },
  async "stop-run"(button) {
    const card = button.closest("[data-card]");
    button.disabled = true;
    button.textContent = "Stopping";
    try {
      await api("POST", `/api/tasks/${button.dataset.task}/cancel`, {});
      await refresh();
    } catch (error) {
      showError(card, error);
      button.disabled = false;
      button.textContent = "Stop";
    }
  },
  async "run-again"(button) {
    button.disabled = true;
    try {
      await api("POST", `/api/issues/${issue}/rerun`, { task_id: button.dataset.task });
      await refresh();
    } catch (error) {
      button.disabled = false;
      button.parentElement.querySelector(".form-error")?.remove();
      button.after(make("span", { class: "form-error", role: "alert" }, error.message));
    }
  },
};

async function setField(select) {
  const { field } = select.dataset;
  const panel = select.closest(".properties");
  clearError(panel);
  select.setAttribute("aria-busy", "true");
  const body = field === "assignee" ? assignee(select.value) : { [field]: select.value };
  try {
    await api("PUT", `/api/issues/${issue}`, body);
  } catch (error) {
    for (const option of select.options) option.selected = option.defaultSelected;
    showError(panel, error);
  } finally {
    select.removeAttribute("aria-busy");
  }
  await refresh().catch(() => {});
}

export function startIssue() {
  for (const card of document.querySelectorAll("[data-card]")) adopt(card);
  setInterval(tick, 1000);
  document.addEventListener("toggle", ({ target }) => target.dataset?.run && openRun(target), true);
  document.addEventListener("change", ({ target }) => target.dataset.field && setField(target));
}
