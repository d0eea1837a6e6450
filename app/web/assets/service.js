// Requests to the service: with the key of this tab, and event streams that outlive their connection.

const STORED = "jobcache.key";
const SILENT_MS = 60_000; // two heartbeats, which are at most 30 s apart
const root = new URL(".", document.baseURI); // a proxy may serve the page under a path

export class ServiceError extends Error {
  constructor(status, detail, retryAfter) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export class ConnectionLost extends Error {}

// The key is changed by page.js, which shows the dialog. `ask` resolves once it has been closed.
export const access = {
  get key() { return sessionStorage.getItem(STORED); },
  set key(value) {
    if (value === null) sessionStorage.removeItem(STORED);
    else sessionStorage.setItem(STORED, value);
    entered.dispatchEvent(new Event("key"));
  },
  ask: async (reason) => {},
};
const entered = new EventTarget();

export function nextKey(signal) {
  return new Promise((resolve) => {
    entered.addEventListener("key", resolve, { once: true });
    signal?.addEventListener("abort", resolve, { once: true });
  });
}

// Return the response to a request, or throw ServiceError or ConnectionLost. Where a key is missing
// or wrong, ask for one, and send the request again with it.
export async function send(path, { method = "GET", headers = {}, json, signal } = {}) {
  for (;;) {
    const key = access.key;
    const response = await sendOnce(path, key, { method, headers, json, signal });
    if (response.ok || response.status === 304) return response;
    const error = await asError(response);
    if (error.status !== 401) throw error;
    if (access.key === key) await access.ask(key === null ? "This service needs a key." : error.message);
    if (access.key === key || access.key === null) throw error; // the dialog was dismissed
  }
}

async function sendOnce(path, key, { method, headers, json, signal }) {
  const all = { ...headers };
  if (key !== null) all.Authorization = `Bearer ${key}`;
  if (json !== undefined) all["Content-Type"] = "application/json";
  try {
    return await fetch(new URL(path, root), {
      method,
      headers: all,
      body: json === undefined ? undefined : JSON.stringify(json),
      signal,
      cache: "no-store", // the browser's cache would answer polls that are to be measured
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ConnectionLost("The service cannot be reached.");
  }
}

async function asError(response) {
  const retry = Number(response.headers.get("Retry-After"));
  let detail = `The service answered ${response.status}.`;
  try {
    const problem = await response.json();
    const fields = (problem.errors ?? []).map((each) => `${each.field}: ${each.message}`);
    detail = [problem.detail, ...fields].join(" ");
  } catch { /* a proxy answered */ }
  return new ServiceError(response.status, detail, retry > 0 ? retry : 2);
}

export async function getJson(path, options) {
  const response = await send(path, options);
  try {
    return await response.json();
  } catch {
    throw new ConnectionLost("The answer of the service was cut off.");
  }
}

export function post(path, json, headers) {
  return getJson(path, { method: "POST", json, headers });
}

export function pause(seconds, signal) {
  return new Promise((resolve) => {
    const done = () => { clearTimeout(timer); window.removeEventListener("online", done); resolve(); };
    const timer = setTimeout(done, seconds * 1000);
    window.addEventListener("online", done); // no need to wait any longer
    signal?.addEventListener("abort", done, { once: true });
  });
}

// Follow a job by server-sent events until it has ended: call `changed` with each version, and
// `connected` with true or false. EventSource would not do, because it cannot send a key.
export async function follow(path, signal, changed, connected) {
  let seen = null;
  let wait = 2;
  while (!signal.aborted) {
    const stream = new AbortController();
    const stop = () => stream.abort();
    signal.addEventListener("abort", stop, { once: true });
    let silent = setTimeout(stop, SILENT_MS);
    try {
      const headers = seen === null ? {} : { "Last-Event-ID": seen };
      const response = await send(path, { headers, signal: stream.signal });
      connected(true);
      if (response.status === 204) return; // the version that was seen is the last one
      for await (const event of events(response.body)) {
        clearTimeout(silent);
        silent = setTimeout(stop, SILENT_MS);
        if (event.retry !== undefined) wait = Number(event.retry) / 1000;
        if (event.data === undefined) continue;
        seen = event.id;
        const job = JSON.parse(event.data);
        changed(job);
        if (job.terminal) return;
      }
      // The service ends long streams; the next one continues behind the version that was seen.
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ServiceError && error.status === 401) {
        await nextKey(signal);
        continue;
      }
      connected(error instanceof ServiceError); // otherwise nothing has answered
      if (error instanceof ServiceError && error.status < 500 && error.status !== 429) throw error;
      if (error instanceof ServiceError) wait = error.retryAfter;
    } finally {
      clearTimeout(silent);
      signal.removeEventListener("abort", stop);
    }
    await pause(wait, signal);
  }
}

// Yield the fields of each event of a stream, an object; a comment is an object without fields.
async function* events(body) {
  let text = "";
  for await (const piece of pieces(body.pipeThrough(new TextDecoderStream()))) {
    text += piece;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const event = {};
      for (const line of block.split("\n")) {
        const at = line.indexOf(":");
        if (at <= 0) continue;
        const name = line.slice(0, at);
        const value = line.slice(at + 1).replace(/^ /, "");
        event[name] = name === "data" && name in event ? `${event[name]}\n${value}` : value;
      }
      yield event;
    }
  }
}

async function* pieces(stream) { // not every browser can iterate over a stream
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
