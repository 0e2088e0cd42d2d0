// The sign-in page: goes on by itself where somebody is signed in after all, and counts down until
// another code may be asked for. Without it the forms work the same.

import { api, root } from "./api.js";

// Someone who followed a link from another site is signed in, but that request did not say so.
export async function startDoor() {
  for (const button of document.querySelectorAll("[data-wait]")) countDown(button);
  document.addEventListener("submit", sendOnce);
  if (document.body.dataset.next === undefined) return; // a page for who is signed in
  const tried = Number(sessionStorage.getItem("bullpen.door") ?? 0);
  if (Date.now() - tried < 10_000) return;
  try {
    await api("GET", "/api/me");
  } catch {
    return; // not signed in: the page says what to do
  }
  sessionStorage.setItem("bullpen.door", String(Date.now()));
  document.querySelector('[data-part="checking"]').hidden = false;
  location.replace(root + document.body.dataset.next);
}

function countDown(button) {
  const words = button.textContent;
  const until = performance.now() + 1000 * Number(button.dataset.wait);
  const show = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    button.disabled = left > 0;
    button.textContent = left > 0 ? `${words} in ${left} s` : words;
    if (left <= 0) clearInterval(timer);
  };
  const timer = setInterval(show, 250);
  show();
}

// A second press must not ask for a second code, or spend a second guess.
function sendOnce(event) {
  const button = event.target.querySelector('[type="submit"]');
  if (button.hasAttribute("aria-busy")) event.preventDefault();
  button.setAttribute("aria-busy", "true");
}

window.addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("[aria-busy]")) button.removeAttribute("aria-busy");
});
