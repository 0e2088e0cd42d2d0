// Requests to the server: one function, one kind of error whose text can be shown as it is.

export class ApiError extends Error {
  constructor(status, text, body) {
    super(text);
    this.status = status; // 0: the server was not reached
    this.body = body ?? {};
  }
}

export const slug = document.body.dataset.slug ?? "";

// The path this server's addresses begin with; a proxy in front of it may give it one.
export const root = document.body.dataset.root ?? "";

function cookie(name) {
  const found = document.cookie.split("; ").find((part) => part.startsWith(`${name}=`));
  return found ? decodeURIComponent(found.slice(name.length + 1)) : "";
}

// Answers the decoded JSON, or null for an empty answer. Throws ApiError.
export async function api(method, path, body) {
  const headers = { "X-Workspace-Slug": slug, "X-Client-Platform": "web" };
  if (method !== "GET") headers["X-CSRF-Token"] = cookie("multica_csrf");
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await reach(root + path, {
    method,
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await answer.text();
  let value = null;
  try {
    value = text ? JSON.parse(text) : null;
  } catch {
    // not JSON: a proxy's page, or the server's plain text
  }
  if (!answer.ok) throw new ApiError(answer.status, words(answer.status, value, text), value);
  return value;
}

// Fetches a page of ours and answers its parsed document.
export async function fetchPage(address) {
  const answer = await reach(address, { headers: { Accept: "text/html" } });
  if (new URL(answer.url).pathname === `${root}/login`) throw new ApiError(401, "Signed out.");
  const text = await answer.text();
  const parsed = new DOMParser().parseFromString(text, "text/html");
  if (!answer.ok) {
    const heading = parsed.querySelector("h1")?.textContent;
    throw new ApiError(answer.status, heading ?? words(answer.status, null, text));
  }
  return parsed;
}

async function reach(address, options) {
  try {
    return await fetch(address, {
      credentials: "same-origin",
      signal: AbortSignal.timeout(20_000), // longer than any answer of a healthy server takes
      ...options,
    });
  } catch (error) {
    throw new ApiError(
      0,
      error.name === "TimeoutError"
        ? "The server did not answer within 20 seconds. Nothing you wrote is lost; try again."
        : "The server cannot be reached. Nothing you wrote is lost; try again.",
    );
  }
}

function words(status, value, text) {
  if (value && typeof value.error === "string") return value.error;
  const first = text.trim().split("\n")[0].slice(0, 200);
  return first && !first.startsWith("<") ? first : `The server answered ${status}.`;
}
