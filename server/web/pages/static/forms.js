// Forms: what they send, what happens then, drafts that survive a failure and a reload.

import { api, ApiError, root, slug } from "./api.js";
import { clearError, make, part, showError } from "./dom.js";
import { onRefresh, refresh } from "./page.js";

const page = (path) => `${root}/${slug}/${path}`;

function fields(form) {
  return Object.fromEntries(new FormData(form));
}

// "agent:<id>" as the API wants it; "" is nobody.
export function assignee(key) {
  const [kind, id] = key.split(":");
  return { assignee_type: id ? kind : null, assignee_id: id || null };
}

const SENDERS = {
  async "create-issue"(form) {
    const { title, description, status, priority, assignee: key } = fields(form);
    needs(title.trim(), "Give the issue a title.");
    const body = { title, description, status, priority, ...(key ? assignee(key) : {}) };
    if (form.dataset.duplicate) body.allow_duplicate = true;
    const issue = await api("POST", "/api/issues", body);
    return () => location.assign(page(`issues/${issue.identifier}`));
  },
  async "update-issue"(form) {
    const values = fields(form);
    if ("title" in values) needs(values.title.trim(), "An issue needs a title.");
    await api("PUT", `/api/issues/${document.body.dataset.issue}`, values);
    return () => stopEditing(form);
  },
  async comment(form) {
    const { content, parent_id: parent } = fields(form);
    needs(content.trim(), "Write something first.");
    const body = { content, ...(parent ? { parent_id: parent } : {}) };
    await api("POST", `/api/issues/${document.body.dataset.issue}/comments`, body);
    return () => replyTo(form, null);
  },
  async "create-agent"(form) {
    await api("POST", "/api/agents", agent(form));
    return () => form.closest("dialog").close();
  },
  async "update-agent"(form) {
    await api("PUT", `/api/agents/${form.dataset.agent}`, agent(form));
    return () => form.closest("dialog").close();
  },
};

function agent(form) {
  const values = fields(form);
  needs(values.name.trim(), "Give the agent a name.");
  return { ...values, max_concurrent_tasks: Number(values.max_concurrent_tasks) };
}

function needs(condition, text) {
  if (!condition) throw new ApiError(400, text);
}

export async function submit(form) {
  const send = SENDERS[form.dataset.form];
  if (!send || form.dataset.busy) return;
  const button = form.querySelector('[type="submit"]');
  form.dataset.busy = "1";
  button.setAttribute("aria-busy", "true");
  clearError(form);
  try {
    const then = await send(form);
    forget(form);
    form.reset();
    then();
    if (form.dataset.form !== "create-issue") await refresh().catch(() => {});
  } catch (error) {
    showError(form, error, ...(isDuplicate(error) ? duplicate(form, error) : []));
    form.querySelector(":invalid")?.focus();
  } finally {
    delete form.dataset.busy;
    delete form.dataset.duplicate;
    button.removeAttribute("aria-busy");
  }
}

const isDuplicate = (error) => error.body?.code === "active_duplicate_issue";

function duplicate(form, error) {
  const ref = error.body.issue?.identifier;
  const anyway = make("button", { type: "button", class: "button small" }, "Create anyway");
  anyway.addEventListener("click", () => {
    form.dataset.duplicate = "1";
    form.requestSubmit();
  });
  const link = ref && make("a", { href: page(`issues/${ref}`) }, `Open ${ref}`);
  return [" ", link ?? "", " ", anyway];
}

// --- drafts ---------------------------------------------------------------------------------

const draftKey = (form) => `bullpen.draft.${slug}.${form.dataset.draft}`;

function keep(form) {
  try {
    sessionStorage.setItem(draftKey(form), JSON.stringify(fields(form)));
  } catch {
    // storage is full or switched off: typing goes on
  }
}

function forget(form) {
  try {
    if (form.dataset.draft) sessionStorage.removeItem(draftKey(form));
  } catch {
    // as above
  }
}

function recall(form) {
  let draft = null;
  try {
    draft = JSON.parse(sessionStorage.getItem(draftKey(form)));
  } catch {
    return;
  }
  for (const [name, value] of Object.entries(draft ?? {})) {
    const field = form.elements.namedItem(name);
    if (!field || field.type === "hidden") continue;
    field.value = value;
    if (field.selectedIndex === -1) field.value = ""; // an option that is gone
  }
}

// --- editing in place -----------------------------------------------------------------------

export function edit(container) {
  const form = container?.querySelector("form");
  if (!form || container.classList.contains("editing")) return;
  container.classList.add("editing");
  form.hidden = false;
  recall(form);
  const field = form.querySelector("textarea, input");
  field.focus();
  field.setSelectionRange(field.value.length, field.value.length);
}

// Leave the form; a draft stays unless `discard`.
export function stopEditing(form, { discard = false } = {}) {
  const container = form.closest(".editable");
  if (discard) forget(form);
  form.reset();
  clearError(form);
  form.hidden = true;
  container.classList.remove("editing");
  container.querySelector('[data-action="edit"]')?.focus();
}

onRefresh({
  before(parsed) {
    for (const container of document.querySelectorAll(".editable.editing")) {
      const field = container.querySelector("textarea, input");
      const now = parsed.getElementById(field.id);
      if (!now || now.defaultValue === field.defaultValue) continue;
      field.defaultValue = now.defaultValue;
      showError(container, "Someone changed this while you were writing. Saving replaces their text.");
    }
  },
});

export function replyTo(form, comment) {
  form.elements.namedItem("parent_id").value = comment?.id ?? "";
  part(form, "replying").hidden = !comment;
  if (!comment) return;
  part(form, "reply-name").textContent = comment.name;
  form.elements.namedItem("content").focus();
}

export function startForms() {
  for (const form of document.querySelectorAll("form[data-draft]")) {
    if (!form.closest(".editable")) recall(form);
  }
  document.addEventListener("input", ({ target }) => {
    if (target.form?.dataset.draft) keep(target.form);
  });
  document.addEventListener("submit", (event) => {
    if (!event.target.dataset.form) return;
    event.preventDefault();
    submit(event.target);
  });
  document.addEventListener("keydown", (event) => {
    const form = event.target.form;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && form?.dataset.form) {
      event.preventDefault();
      form.requestSubmit();
    } else if (event.key === "Escape" && form?.closest(".editing")) {
      stopEditing(form);
    }
  });
}
