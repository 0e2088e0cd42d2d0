// The live connection: one websocket that is opened again for ever, a mark that says whether the
// page is live, and plain HTTP every few seconds while it is not.

import { root, slug } from "./api.js";

const PING_EVERY = 20_000; // a proxy that cuts silent connections rarely waits less than 30 s
const PONG_WITHIN = 8_000;
const POLL_EVERY = 4_000;
const RETRY_FROM = 400;
const RETRY_UP_TO = 8_000;

const WORDS = {
  connecting: "Connecting",
  live: "Live",
  polling: "Not live",
  unreachable: "Not live",
  offline: "Offline",
  out: "Signed out",
};

const BANNERS = {
  polling: "Live updates do not get through (a proxy may block websockets). This page updates every few seconds instead.",
  unreachable: "The server does not answer. This page shows what it last heard and goes on as soon as the server is back.",
  offline: "This device is offline. The page goes on when the network is back; what you write is kept.",
};

export class Connection {
  // onEvent(type, payload) for every event; refresh() reads over HTTP what may have been missed,
  // and throws an ApiError when that fails.
  constructor({ onEvent, refresh }) {
    this.onEvent = onEvent;
    this.refresh = refresh;
    this.socket = null;
    this.failures = 0; // changed by #retry and #opened
    this.reached = true; // whether the last HTTP read worked; changed by #poll
    this.timers = {};
  }

  start() {
    addEventListener("online", () => this.#now());
    addEventListener("offline", () => this.#down());
    addEventListener("pagehide", () => this.#drop());
    addEventListener("pageshow", (event) => event.persisted && this.#now());
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") this.#probe();
    });
    this.#open();
  }

  #open() {
    clearTimeout(this.timers.retry);
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const query = `workspace_slug=${encodeURIComponent(slug)}&client_platform=web`;
    const socket = new WebSocket(`${scheme}://${location.host}${root}/ws?${query}`);
    this.socket = socket;
    socket.onopen = () => socket === this.socket && this.#opened();
    socket.onclose = () => socket === this.socket && this.#down();
    socket.onmessage = (message) => {
      if (socket !== this.socket) return;
      let frame;
      try {
        frame = JSON.parse(message.data);
      } catch {
        return; // nothing of ours
      }
      clearTimeout(this.timers.pong); // whatever arrives shows that the connection lives
      if (frame.type && frame.type !== "pong") this.onEvent(frame.type, frame.payload ?? {});
    };
  }

  #opened() {
    this.failures = 0;
    this.reached = true;
    clearInterval(this.timers.poll);
    clearInterval(this.timers.ping);
    this.timers.ping = setInterval(() => this.#probe(), PING_EVERY);
    this.#show("live");
    this.refresh().catch((error) => this.#failed(error)); // what happened while there was no socket
  }

  // Ask for a sign of life; without one the connection counts as dead.
  #probe() {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    this.socket.send('{"type":"ping"}');
    clearTimeout(this.timers.pong);
    this.timers.pong = setTimeout(() => this.#down(), PONG_WITHIN);
  }

  #drop() {
    for (const timer of Object.values(this.timers)) clearTimeout(timer);
    const socket = this.socket;
    this.socket = null;
    if (socket?.readyState === WebSocket.CONNECTING) socket.onopen = () => socket.close();
    else socket?.close();
  }

  #down() {
    this.#drop();
    this.failures += 1;
    this.#show(this.#reason());
    const wait = Math.min(RETRY_FROM * 2 ** Math.min(this.failures - 1, 6), RETRY_UP_TO);
    this.timers.retry = setTimeout(() => this.#open(), wait * (0.5 + Math.random() / 2));
    this.timers.poll = setInterval(() => this.#poll(), POLL_EVERY);
    if (this.failures === 2) this.#poll(); // says soon whether it is the socket or the server
  }

  #now() {
    this.#drop();
    this.failures = 0;
    this.#open();
  }

  #poll() {
    this.refresh().then(
      () => {
        this.reached = true;
        this.#show(this.#reason());
      },
      (error) => this.#failed(error),
    );
  }

  #failed(error) {
    if (error.status === 401) {
      this.#drop();
      this.#show("out");
    } else if (this.socket?.readyState !== WebSocket.OPEN) {
      this.reached = error.status !== 0 && error.status < 500;
      this.#show(this.#reason());
    }
  }

  #reason() {
    if (this.socket?.readyState === WebSocket.OPEN) return "live";
    if (!navigator.onLine) return "offline";
    if (!this.reached) return "unreachable";
    return this.failures > 2 ? "polling" : "connecting";
  }

  #show(state) {
    const mark = document.querySelector("[data-live]");
    if (mark && mark.dataset.live !== state) {
      mark.dataset.live = state;
      const again = state === "connecting" && this.failures > 0;
      mark.querySelector(".live-text").textContent = again ? "Not live" : WORDS[state];
    }
    const banner = document.querySelector("[data-banner]");
    if (!banner || banner.dataset.state === state) return;
    banner.dataset.state = state;
    if (state === "out") {
      const link = document.createElement("a");
      link.href = `${root}/login?next=${encodeURIComponent(location.pathname.slice(root.length))}`;
      link.textContent = "Sign in again";
      banner.replaceChildren("You were signed out. ", link, "; what you wrote is kept.");
    } else {
      banner.textContent = BANNERS[state] ?? "";
    }
    banner.hidden = !(state in BANNERS) && state !== "out";
  }
}
