// Building elements from data, and making a shown region equal to a newly rendered one.

// make("p", { class: "x", hidden: true }, "text", child): data only ever becomes text.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child != null && child !== ""));
  return element;
}

// Show an error, as the server worded it, next to what caused it.
export function showError(container, error, ...more) {
  const place = container && (container.matches('[data-part="error"]') ? container : part(container, "error"));
  if (!place) return;
  place.replaceChildren(error.message ?? String(error), ...more);
  place.hidden = false;
}

export function clearError(container) {
  const place = container && part(container, "error");
  if (place) place.hidden = true;
}

export const part = (root, name) => root.querySelector(`[data-part="${name}"]`);

// Make `current` look like `next` while touching as little as possible: what has focus, is open,
// is being edited or scrolled stays the same element. Elements meet by `data-key`, else by place.
// `data-keep` elements belong to the script: their attributes and content are left alone.
export function morph(current, next) {
  if (current.isEqualNode(next)) return;
  if (current.nodeType !== Node.ELEMENT_NODE) {
    current.data = next.data;
    return;
  }
  if (current.hasAttribute("data-keep") || current.classList.contains("editing")) return;
  morphAttributes(current, next);
  if (current.localName === "select") {
    morphSelect(current, next);
    return;
  }
  if (current.localName === "input") return;
  if (current.localName === "textarea") {
    current.defaultValue = next.defaultValue; // shown unless the reader has typed
    return;
  }
  morphChildren(current, next);
}

const UI_ATTRIBUTES = new Set(["open", "data-ui"]); // what the reader changed, not the server

function morphAttributes(current, next) {
  for (const { name } of [...current.attributes]) {
    if (!next.hasAttribute(name) && !UI_ATTRIBUTES.has(name)) current.removeAttribute(name);
  }
  for (const { name, value } of [...next.attributes]) {
    if (!UI_ATTRIBUTES.has(name) && current.getAttribute(name) !== value) {
      current.setAttribute(name, value);
    }
  }
}

function morphSelect(current, next) {
  if (document.activeElement === current) return; // the reader is choosing
  const value = next.value;
  morphChildren(current, next);
  current.value = value;
}

function morphChildren(current, next) {
  const wantedKeys = new Set([...next.children].map((child) => child.dataset.key).filter(Boolean));
  const keyed = new Map();
  for (const child of [...current.children]) {
    const key = child.dataset.key;
    if (!key) continue;
    if (wantedKeys.has(key)) keyed.set(key, child);
    else child.remove(); // first, so that what stays need not move and keeps its focus
  }
  let place = current.firstChild;
  const step = (node) => {
    place = node.nextSibling;
    return node;
  };
  for (const wanted of [...next.childNodes]) {
    const match = isElement(wanted) ? keyed.get(wanted.dataset.key) : undefined;
    if (match) {
      while (place && place !== match && isBlank(place)) step(place).remove();
      if (match === place) step(place);
      else current.insertBefore(match, place);
      morph(match, wanted);
      continue;
    }
    const fresh = isElement(wanted) && wanted.dataset.key;
    if (!fresh) while (place && isElement(place) && place.dataset.key) step(place);
    if (!fresh && place && sameKind(place, wanted)) morph(step(place), wanted);
    else current.insertBefore(document.importNode(wanted, true), place);
  }
  while (place) {
    const gone = step(place);
    if (!(isElement(gone) && gone.dataset.key)) gone.remove();
  }
}

const isElement = (node) => node.nodeType === Node.ELEMENT_NODE;
const isBlank = (node) => node.nodeType === Node.TEXT_NODE && !node.data.trim();

function sameKind(one, other) {
  if (one.nodeName !== other.nodeName) return false;
  return one.nodeType !== Node.ELEMENT_NODE || one.dataset.part === other.dataset.part;
}
