// Keeping the shown page equal to what the server would render now.

import { fetchPage } from "./api.js";
import { morph } from "./dom.js";
import { refreshTimes, setServerTime } from "./times.js";

const SETTLE = 120; // events come in bursts: one read for all of them

const hooks = { before: [], after: [] };
let running = null;
let again = false;
let timer = null;

// before(parsed) runs when the new page is here and the old one still stands, after() when it is
// in place.
export function onRefresh(hook) {
  if (hook.before) hooks.before.push(hook.before);
  if (hook.after) hooks.after.push(hook.after);
}

// Read the page again now. Throws ApiError.
export function refresh() {
  if (running) {
    again = true;
    return running;
  }
  running = read().finally(() => {
    running = null;
  });
  return running;
}

// Read it again soon; a failure is the connection's business, which reads again by itself.
export function refreshSoon() {
  if (timer !== null || document.hidden) return;
  timer = setTimeout(() => {
    timer = null;
    refresh().catch(() => {});
  }, SETTLE);
}

document.addEventListener("visibilitychange", refreshSoon);

async function read() {
  do {
    again = false;
    const parsed = await fetchPage(location.href);
    if (parsed.body.dataset.page !== document.body.dataset.page) location.reload();
    setServerTime(parsed.body.dataset.now);
    for (const hook of hooks.before) hook(parsed);
    document.title = parsed.title;
    for (const region of document.querySelectorAll("[data-region]")) {
      const next = parsed.querySelector(`[data-region="${region.dataset.region}"]`);
      if (next) morph(region, next);
    }
    for (const hook of hooks.after) hook();
    refreshTimes();
  } while (again);
}
