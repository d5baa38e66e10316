// Talks to the server: keys, errors in OpenAI's shape, and waiting while the model loads or the server is busy.
import { byId } from "./dom.js";

const KEY = "biplane.key";
const TRIES = 5;
const LONGEST_WAIT_S = 120;
const url = (path) => new URL(path, document.baseURI);

/** What the server answered instead of what was asked. */
export class ApiError extends Error {
  constructor(status, error, retryAfter = null) {
    super(error.message || `The server answered with status ${status}.`);
    Object.assign(this, { status, type: error.type ?? null, param: error.param ?? null, code: error.code ?? null, retryAfter });
  }
}

/** An error object within a stream or a body, whatever of it is there. */
export function apiError(status, error, retryAfter = null) {
  return new ApiError(status, typeof error === "string" ? { message: error } : (error ?? {}), retryAfter);
}

async function errorOf(response) {
  const text = await response.text().catch(() => "");
  let error = { message: text.trimStart().startsWith("<") ? "" : text.slice(0, 500) };
  try {
    error = JSON.parse(text).error ?? error;
  } catch {
    // Proxies answer in plain text or HTML.
  }
  return apiError(response.status, error, retryAfter(response.headers.get("retry-after")));
}

/** Retry-After in seconds; it is a number or a date. */
export function retryAfter(value) {
  if (!value) return null;
  const seconds = /^\s*\d+(\.\d+)?\s*$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : null;
}

function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => (clearTimeout(timer), reject(new DOMException("Stopped", "AbortError")));
    const timer = setTimeout(() => (signal?.removeEventListener("abort", abort), resolve()), seconds * 1000);
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort, { once: true });
  });
}

function key() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return key.memory ?? null;
  }
}

function keep(value) {
  key.memory = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // Storage forbidden: the key lasts as long as the page.
  }
}

async function send(path, init = {}) {
  const headers = { ...init.headers };
  if (key()) headers.authorization = `Bearer ${key()}`;
  try {
    return await fetch(url(path), { ...init, headers, cache: "no-store", credentials: "same-origin", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it running?");
  }
}

let asking = null;

/** Asks for the API key; requests that are refused meanwhile share one dialog. False when the reader gives up. */
function askKey(message, used) {
  if (key() && key() !== used) return Promise.resolve(true);
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const input = byId("key-input");
    byId("key-message").textContent = message;
    input.value = "";
    const submit = (event) => {
      event.preventDefault();
      const value = input.value.trim();
      if (!value) return;
      // Anything else cannot stand in a header.
      if (!/^[\x21-\x7e]+$/.test(value)) {
        byId("key-message").textContent = "A key holds letters, digits and signs of ASCII only.";
        return;
      }
      keep(value);
      dialog.close("ok");
    };
    byId("key-form").addEventListener("submit", submit);
    byId("key-cancel").onclick = () => dialog.close("");
    dialog.addEventListener("close", () => {
      byId("key-form").removeEventListener("submit", submit);
      input.value = "";
      asking = null;
      resolve(dialog.returnValue === "ok");
    }, { once: true });
    dialog.returnValue = "";
    dialog.showModal();
  });
  return asking;
}

/** The state of the server: ready, loading with a progress, or failed. A server without /health counts as ready. */
async function health(signal) {
  const response = await send("health", { signal });
  const body = await response.json().catch(() => ({}));
  if (body.status === "loading") {
    const progress = Number.isFinite(body.progress) ? Math.min(1, Math.max(0, body.progress)) : null;
    return { state: "loading", progress, message: String(body.message ?? "") };
  }
  if (body.status === "error" || body.status === "failed") throw apiError(response.status, body.error ?? { message: body.message });
  return { state: "ready" };
}

/** Waits until the model is loaded and reports what it sees; says whether there was anything to wait for. */
export async function whenReady(signal, report) {
  for (let waited = false; ; waited = true) {
    const now = await health(signal);
    report(now);
    if (now.state === "ready") return waited;
    await sleep(0.5, signal);
  }
}

/** Sends a request until it is answered with success, or with an error that waiting does not heal. */
async function persist(path, init, report) {
  for (let tries = 1; ; tries++) {
    const used = key();
    report({ state: "asked" });
    const response = await send(path, init);
    if (response.ok) {
      report({ state: "ready" });
      return response;
    }
    const error = await errorOf(response);
    if (error.status === 401) {
      if (!(await askKey(error.message, used))) throw error;
      tries = 0;
      init.signal?.throwIfAborted();
    } else if (error.status === 503 && (await whenReady(init.signal, report))) {
      tries = 0;
    } else if ((error.status === 429 || error.status === 503) && tries < TRIES) {
      const wait = error.retryAfter ?? tries;
      if (wait > LONGEST_WAIT_S) throw error;
      for (let left = Math.ceil(wait); left > 0; left--) {
        report({ state: "busy", seconds: left, message: error.message });
        await sleep(Math.min(1, wait), init.signal);
      }
    } else {
      throw error;
    }
  }
}

/** The names of the models that the server offers. */
export async function listModels(report = () => {}) {
  const response = await persist("v1/models", {}, report);
  const body = await response.json();
  return (Array.isArray(body.data) ? body.data : []).map((model) => String(model.id));
}

/** Starts a completion and returns the response whose body streams it. */
export function complete(request, signal, report) {
  const init = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(request), signal };
  return persist("v1/chat/completions", init, report);
}
