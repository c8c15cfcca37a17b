// Asks the service. Every module asks through here, with the routes that all clients have.

/** The service refused, or did not answer. `error` is its error body, or null; `answer` all of it. */
export class Refused extends Error {
  constructor(message, status, error, answer = null) {
    super(message);
    Object.assign(this, { status, error, answer });
  }
}

const WITHOUT_A_KEY = "The service wants a valid key. Load this page again to be asked for it.";

/**
 * Ask a route. Returns { answer, headers, milliseconds }, the time as the browser sees it.
 * key: of an administrator; else the browser sends what it was given for this page, if anything.
 * Throws Refused, or AbortError.
 */
export async function ask(method, path, { body, signal, key } = {}) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = `Bearer ${key}`;
  const began = performance.now();
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The service does not answer.", 0, null);
  }
  const text = await response.text();
  const milliseconds = performance.now() - began;
  const isJson = (response.headers.get("Content-Type") ?? "").startsWith("application/json");
  const answer = isJson && text ? JSON.parse(text) : text;
  if (response.ok) return { answer, headers: response.headers, milliseconds };
  const error = answer.error ?? null;
  const message = response.status === 401 && !key ? WITHOUT_A_KEY : error?.message;
  throw new Refused(message ?? `The service answered ${response.status}.`, response.status, error, answer);
}

const known = new Map();

/** Whether a browser takes an id for a step of the path, so that no address can have it. */
export function isDots(id) {
  return id === "." || id === "..";
}

/** Remember items that an answer has brought with title, categories and attributes. */
export function rememberItems(items) {
  for (const item of items) known.set(item.item_id, item);
}

/** An item, asked for once. An id that the bundle does not have is an item without a title. */
export async function itemOf(itemId) {
  if (!known.has(itemId)) {
    const untitled = { item_id: itemId, title: itemId, categories: [], attributes: {} };
    if (isDots(itemId)) return { ...untitled, unknown: true };
    try {
      rememberItems([(await ask("GET", `/items/${encodeURIComponent(itemId)}`)).answer]);
    } catch (error) {
      if (error.status !== 404) return untitled;
      known.set(itemId, { ...untitled, unknown: true });
    }
  }
  return known.get(itemId);
}

/** The request as a command line. Nobody's key is in it. */
export function curlOf(path, body, isKeyed) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = isKeyed ? ' \\\n  -H "Authorization: Bearer $UNMASK_KEY"' : "";
  return `curl -s ${location.origin}${path} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '${quoted}'`;
}
