// A run's transcript: rows in order of seq, each once, with gaps noticed and filled over HTTP.

import { api } from "./api.js";
import { make, part } from "./dom.js";
import { now } from "./times.js";

const PAGE = 1_000; // so many rows at once mean that there may be more
const CLIP_LINES = 12;
const CLIP_CHARACTERS = 1_600;
const TRIES = 3; // reads before a gap is taken for a loss
const RETRY = 400;

export class Transcript {
  constructor(log, taskId) {
    this.log = log;
    this.rows = part(log, "rows");
    this.taskId = taskId;
    this.shown = 0; // every seq up to here is shown or known to be lost
    this.waiting = new Map(); // seq -> message that came before its turn
    this.follow = true; // the reader is at the end
    this.reading = null; // the read under way
    this.again = false; // another read was asked for meanwhile
    this.tries = 0;
    this.lastAt = 0; // when the newest row was written, by the server's clock
    this.onChange = () => {};
    log.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    // Rows may come while the log is not shown yet and has no end to be at.
    new ResizeObserver(() => this.follow && this.toEnd()).observe(log);
  }

  // One message of the live stream.
  add(message) {
    this.#take([message]);
    if (this.waiting.size) this.catchUp().catch(() => {}); // the next reconnect asks again
  }

  // Read everything after the last row shown. Throws ApiError; safe to call at any time.
  catchUp() {
    if (this.reading) {
      this.again = true;
      return this.reading;
    }
    this.reading = this.#read().finally(() => {
      this.reading = null;
    });
    return this.reading;
  }

  async #read() {
    do {
      this.again = false;
      const path = `/api/tasks/${this.taskId}/messages?since=${this.shown}`;
      const messages = await api("GET", path);
      this.#take(messages);
      if (messages.length >= PAGE) this.again = true;
      else if (this.waiting.size) await this.#gap();
    } while (this.again);
  }

  // A later row is here, an earlier one is not: it may still be on its way. Ask again, then say so.
  async #gap() {
    this.tries += 1;
    this.again = true;
    if (this.tries < TRIES) {
      await new Promise((done) => setTimeout(done, RETRY));
      return;
    }
    this.tries = 0;
    const next = Math.min(...this.waiting.keys());
    this.#insert(gapRow(this.shown + 1, next - 1));
    this.shown = next - 1;
    this.#take([]);
    this.again = this.waiting.size > 0;
  }

  #take(messages) {
    for (const message of messages) {
      if (message.seq > this.shown) this.waiting.set(message.seq, message);
      else this.#late(message);
    }
    const fresh = [];
    while (this.waiting.has(this.shown + 1)) {
      this.shown += 1;
      const message = this.waiting.get(this.shown);
      this.waiting.delete(this.shown);
      this.lastAt = Date.parse(message.created_at) || now();
      fresh.push(row(message));
    }
    if (!fresh.length) return;
    this.tries = 0;
    this.#insert(...fresh);
  }

  // A row that was given up for lost and came after all takes its place.
  #late(message) {
    if (this.rows.querySelector(`[data-seq="${message.seq}"]`)) return;
    const after = [...this.rows.children].find((child) => Number(child.dataset.seq) > message.seq);
    this.rows.insertBefore(row(message), after ?? null);
    for (const gap of this.rows.querySelectorAll("[data-gap]")) {
      const [first, last] = gap.dataset.gap.split("-").map(Number);
      const missing = [];
      for (let seq = first; seq <= last; seq += 1) {
        if (!this.rows.querySelector(`[data-seq="${seq}"]`)) missing.push(seq);
      }
      if (missing.length) gap.textContent = gapWords(missing[0], missing.at(-1));
      else gap.remove();
    }
  }

  #insert(...elements) {
    this.rows.append(...elements);
    for (const element of elements) clip(element);
    if (this.follow) this.toEnd();
    this.onChange();
  }

  toEnd() {
    this.follow = true;
    this.log.scrollTop = this.log.scrollHeight;
    this.onChange();
  }

  #scrolled() {
    const below = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight;
    const follow = below < 24;
    if (follow === this.follow) return;
    this.follow = follow;
    this.onChange();
  }
}

function gapWords(first, last) {
  return first === last ? `Entry ${first} was lost.` : `Entries ${first} to ${last} were lost.`;
}

function gapRow(first, last) {
  return make("li", { class: "gap", "data-gap": `${first}-${last}` }, gapWords(first, last));
}

function row(message) {
  const build = ROWS[message.type] ?? textRow;
  const known = message.type in ROWS ? message.type : "text";
  return make("li", { class: `entry ${known}`, "data-seq": message.seq }, ...build(message));
}

const ROWS = {
  text: textRow,
  thinking: thinkingRow,
  tool_use: toolRow,
  tool_result: resultRow,
  error: errorRow,
};

function textRow(message) {
  return [make("div", { class: "text" }, message.content ?? message.output ?? "")];
}

function errorRow(message) {
  return [make("strong", {}, "Error "), make("span", { class: "text" }, message.content ?? "")];
}

function thinkingRow(message) {
  const text = (message.content ?? "").trim();
  const first = text.split("\n")[0];
  return [
    make(
      "details",
      {},
      make("summary", {}, make("span", { class: "label" }, "Thinking"), make("span", { class: "preview" }, first)),
      make("div", { class: "text" }, text),
    ),
  ];
}

function toolRow(message) {
  const input = message.input ?? {};
  const head = [
    make("span", { class: "label" }, message.tool || "Tool"),
    make("code", { class: "preview" }, summary(input)),
  ];
  const keys = Object.keys(input);
  if (!keys.length) return [make("div", { class: "tool-head" }, ...head)];
  const list = make("dl", { class: "input-list" });
  for (const key of keys) {
    const value = typeof input[key] === "string" ? input[key] : JSON.stringify(input[key], null, 2);
    list.append(make("div", {}, make("dt", {}, key), make("dd", {}, make("pre", {}, value))));
  }
  return [make("details", {}, make("summary", { class: "tool-head" }, ...head), list)];
}

function resultRow(message) {
  const output = (message.output ?? message.content ?? "").replace(/\s+$/, "");
  const label = make("span", { class: "visually-hidden" }, `Output of ${message.tool || "tool"}: `);
  if (!output) return [label, make("span", { class: "nothing" }, "no output")];
  const lines = output.split("\n").length;
  const block = make("pre", { class: "output" }, output);
  if (lines <= CLIP_LINES && output.length <= CLIP_CHARACTERS) return [label, block];
  block.classList.add("clipped");
  const size = lines > CLIP_LINES ? `${lines} lines` : `${output.length} characters`;
  const more = make("button", { type: "button", class: "link", "data-action": "show-all", "aria-expanded": "false", "data-size": size }, `Show all ${size}`);
  return [label, block, more];
}

const SUMMARIES = ["command", "file_path", "pattern", "query", "url", "path", "description", "prompt"];

// What a call is about, in one line.
function summary(input) {
  for (const key of SUMMARIES) {
    if (typeof input[key] === "string" && input[key]) return input[key].split("\n")[0];
  }
  const text = JSON.stringify(input);
  return text === "{}" ? "" : text;
}

// A clipped block that fits after all needs no button.
function clip(element) {
  const block = element.querySelector("pre.clipped");
  if (block && block.clientHeight && block.scrollHeight <= block.clientHeight + 2) {
    block.classList.remove("clipped");
    element.querySelector('[data-action="show-all"]')?.remove();
  }
}

export function toggleAll(button) {
  const block = button.parentElement.querySelector("pre.output");
  const open = block.classList.toggle("clipped") === false;
  button.setAttribute("aria-expanded", String(open));
  button.textContent = open ? "Show less" : `Show all ${button.dataset.size}`;
}
