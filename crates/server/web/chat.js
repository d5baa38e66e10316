// One answer's way: the request, its stream, the figures, and what is kept of it.
import { apiError, complete } from "./api.js";
import { chunks } from "./stream.js";
import { requestMessages } from "./tree.js";
import { requestFields } from "./settings.js";

const SAVE_EVERY_MS = 2000;
// A burst that came at once says nothing about the model's speed.
const SHORTEST_S = 0.01;

/** Runs the request for an answer's node until it is done, failed or stopped. `view` may be set and taken away. */
export class Run {
  view = null;
  #controller = new AbortController();
  #calls = new Map();
  #started = 0;
  #first = 0;
  #last = 0;
  #deltas = 0;
  #usage = null;
  #timings = null;
  #reason = null;
  #saved = performance.now();

  constructor(conversation, node, model, { save, report }) {
    Object.assign(this, { conversation, node, model, save, report });
  }

  stop() {
    this.#controller.abort();
  }

  async go() {
    const { node } = this;
    const signal = this.#controller.signal;
    try {
      const request = {
        ...(this.model && { model: this.model }),
        messages: requestMessages(this.conversation, node),
        stream: true,
        stream_options: { include_usage: true },
        ...requestFields(),
      };
      const response = await complete(request, signal, (state) => {
        if (state.state !== "ready") this.view?.wait(state);
        this.report(state);
        // Waiting for the model to load is not the model's time: it counts from the last asking.
        if (state.state === "asked") this.#started = performance.now();
      });
      for await (const chunk of chunks(response)) this.#take(chunk);
      if (!this.#reason) node.note = "The connection ended before the answer was complete.";
    } catch (error) {
      if (signal.aborted) node.note = "Stopped.";
      else node.error = this.#first ? `The answer broke off: ${error.message}` : error.message;
    }
    this.#finish();
  }

  #take(chunk) {
    if (chunk.error) throw apiError(0, chunk.error);
    if (typeof chunk.model === "string") this.node.model = chunk.model;
    this.#usage = chunk.usage ?? this.#usage;
    this.#timings = chunk.timings ?? this.#timings;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const delta = choice.delta ?? {};
    const reasoning = delta.reasoning_content ?? delta.reasoning;
    if (typeof reasoning === "string" && reasoning) this.#text("reasoning", reasoning);
    if (typeof delta.content === "string" && delta.content) this.#text("text", delta.content);
    for (const [at, call] of (delta.tool_calls ?? []).entries()) this.#call(call.index ?? at, call);
    if (delta.biplane?.tool_result) this.#result(delta.biplane.tool_result);
    this.#reason = choice.finish_reason ?? this.#reason;
    if (performance.now() - this.#saved > SAVE_EVERY_MS) {
      this.#saved = performance.now();
      this.save(this.conversation);
    }
  }

  #tick() {
    const now = performance.now();
    if (!this.#first) {
      this.#first = now;
      this.view?.wait(null);
    }
    this.#last = now;
    this.#deltas++;
  }

  #part(part) {
    this.#endReasoning();
    this.node.parts.push(part);
    return part;
  }

  #endReasoning() {
    const part = this.node.parts.at(-1);
    if (part?.type === "reasoning" && part.ms === undefined) part.ms = Math.round(performance.now() - part.since);
  }

  #text(type, text) {
    this.#tick();
    let part = this.node.parts.at(-1);
    if (part?.type === type) part.text += text;
    else {
      part = this.#part({ type, text });
      // Kept out of what is stored: a page's clock means nothing later.
      if (type === "reasoning") Object.defineProperty(part, "since", { value: performance.now() });
    }
    this.view?.feed(part, text);
  }

  /** Pieces of a call come by index; a server that runs tools itself begins anew at 0 with another id. */
  #call(index, { id, function: called = {} }) {
    this.#tick();
    let part = this.#calls.get(index);
    if (!part || (id && part.id && part.id !== id)) {
      part = this.#part({ type: "tool", id: id ?? `call_${this.node.parts.length}`, name: "", args: "" });
      this.#calls.set(index, part);
    }
    part.name += called.name ?? "";
    part.args += called.arguments ?? "";
    this.view?.feed(part, "");
  }

  #result({ tool_call_id: id, name, arguments: args, content, is_error: failed }) {
    const calls = this.node.parts.filter((part) => part.type === "tool");
    let part = calls.find((call) => call.id === id) ?? (id ? null : calls.findLast((call) => call.result === undefined));
    part ??= this.#part({ type: "tool", id: id ?? "", name: name ?? "", args: args ?? "" });
    part.result = typeof content === "string" ? content : JSON.stringify(content ?? null);
    part.failed = failed === true;
    this.view?.feed(part, "");
  }

  #finish() {
    const { node } = this;
    this.#endReasoning();
    node.done = true;
    node.model ??= this.model;
    if (this.#reason === "length") node.note = "The answer ended at the limit of tokens.";
    else if (this.#reason === "content_filter") node.note = "The server withheld the rest of the answer.";
    if (this.#first) node.stats = this.#figures();
    else if (!node.error && !node.note && node.parts.length === 0) node.note = "The model gave an empty answer.";
  }

  /** The server's own figures first, then the usage it counted, then what was measured here. */
  #figures() {
    const usage = this.#usage ?? {};
    const timings = this.#timings ?? {};
    const counted = timings.predicted_n ?? usage.completion_tokens;
    const predicted = counted ?? this.#deltas;
    const seconds = (this.#last - this.#first) / 1000;
    const stats = {
      prompt: timings.prompt_n !== undefined && usage.prompt_tokens === undefined ? timings.prompt_n + (timings.cached_n ?? 0) : usage.prompt_tokens,
      cached: timings.cached_n ?? usage.prompt_tokens_details?.cached_tokens,
      predicted,
      rate: timings.predicted_per_second ?? (predicted > 1 && seconds > SHORTEST_S ? (predicted - 1) / seconds : undefined),
      promptRate: timings.prompt_per_second,
      first: timings.time_to_first_token_ms ?? this.#first - this.#started,
      guessed: counted === undefined ? 1 : undefined,
    };
    return Object.fromEntries(Object.entries(stats).filter(([, value]) => Number.isFinite(value)));
  }
}
