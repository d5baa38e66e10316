// Server-sent events from a fetch body: chunks may end anywhere, also within a character, a line end or a field name.

/** Collects text and gives the data of the events it completes. */
export class SseParser {
  #rest = "";
  #scanned = 0;
  #data = [];

  /** Takes a piece of the stream; returns the data of every event that it completed. */
  push(text) {
    const events = [];
    // Scanning goes on where it stopped, so that one long line in many pieces costs its length once.
    this.#rest += text;
    let start = 0;
    let at = this.#scanned;
    for (; at < this.#rest.length; at++) {
      const code = this.#rest.charCodeAt(at);
      if (code !== 10 && code !== 13) continue;
      // A carriage return at the very end may be half of a CRLF.
      if (code === 13 && at + 1 === this.#rest.length) break;
      this.#line(this.#rest.slice(start, at), events);
      if (code === 13 && this.#rest.charCodeAt(at + 1) === 10) at++;
      start = at + 1;
    }
    this.#rest = this.#rest.slice(start);
    this.#scanned = at - start;
    return events;
  }

  /** The stream is over: a last event may lack its blank line. */
  end() {
    const events = [];
    for (const line of this.#rest.split(/\r\n|\r|\n/)) this.#line(line, events);
    this.#rest = "";
    this.#line("", events);
    return events;
  }

  #line(line, events) {
    if (line === "") {
      if (this.#data.length > 0) events.push(this.#data.join("\n"));
      this.#data = [];
      return;
    }
    const colon = line.indexOf(":");
    // A line that begins with a colon is a comment, which servers send to keep a connection open.
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    if (field !== "data") return;
    const value = colon < 0 ? "" : line.slice(colon + 1);
    this.#data.push(value.startsWith(" ") ? value.slice(1) : value);
  }
}

/** The JSON objects of a streamed completion, up to [DONE] or the end. A server that does not stream gives one. */
export async function* chunks(response) {
  if ((response.headers.get("content-type") ?? "").includes("application/json")) {
    const whole = await response.json();
    for (const choice of whole.choices ?? []) choice.delta ??= choice.message;
    yield whole;
    return;
  }
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const events = done
        ? [...parser.push(decoder.decode()), ...parser.end()]
        : parser.push(decoder.decode(value, { stream: true }));
      for (const data of events) {
        if (data.trim() === "[DONE]") return;
        yield parse(data);
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(data) {
  let value;
  try {
    value = JSON.parse(data);
  } catch {
    throw new Error(`The server sent something that is not JSON: ${data.slice(0, 120)}`);
  }
  if (value === null || typeof value !== "object") throw new Error(`The server sent ${data.slice(0, 120)} where an object belongs.`);
  return value;
}
