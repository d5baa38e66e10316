// One message on the page: its parts, what can be done with it, and an answer's figures.
import { copyFrom, h, icon, iconButton } from "./dom.js";
import { Markdown } from "./markdown.js";
import { textOf } from "./tree.js";

const LONG_TEXT = 3000;

/** Draws a part as its text grows: reasoning and text as markdown, a tool call as it is. */
class PartView {
  #markdown = null;
  #pending = "";

  constructor(part, live) {
    this.part = part;
    if (part.type === "text") {
      this.element = h("div", { class: "markdown" });
      this.#markdown = new Markdown(this.element);
    } else if (part.type === "reasoning") {
      const body = h("div", { class: "markdown" });
      this.summary = h("span", {});
      this.element = h("details", { class: "fold reasoning", open: live }, h("summary", {}, icon("right"), this.summary), body);
      this.#markdown = new Markdown(body);
    } else {
      this.summary = h("span", {});
      this.args = h("pre", { tabindex: "0" });
      this.result = h("div", {});
      this.element = h("details", { class: "fold tool" }, h("summary", {}, icon("right"), this.summary), h("h4", {}, "Arguments"), this.args, this.result);
    }
    this.#pending = part.text ?? "";
    this.draw();
  }

  /** More text of the part, drawn by the next `draw`. */
  feed(text) {
    this.#pending += text;
  }

  draw() {
    if (this.#markdown) {
      if (this.#pending) this.#markdown.push(this.#pending);
      this.#pending = "";
    }
    if (this.part.type === "reasoning") {
      const { ms } = this.part;
      this.summary.textContent = ms === undefined ? "Thinking…" : `Thought for ${(ms / 1000).toFixed(1)} s`;
    } else if (this.part.type === "tool") this.#drawTool();
  }

  #drawTool() {
    const { name, args, result, failed } = this.part;
    const state = result === undefined ? "" : failed ? " · failed" : " · done";
    this.summary.replaceChildren("Tool ", h("code", {}, name || "…"), state);
    if (this.args.textContent !== args) this.args.textContent = result === undefined ? args : pretty(args);
    if (result !== undefined && !this.result.hasChildNodes()) {
      this.result.append(h("h4", {}, failed ? "Error" : "Result"), h("pre", { tabindex: "0" }, pretty(result)));
    }
  }

  close() {
    this.draw();
    this.#markdown?.end();
    if (this.part.type === "tool") this.args.textContent = pretty(this.part.args);
    // The reader opens it again when it matters; the answer comes first.
    if (this.part.type === "reasoning") this.element.open = false;
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** A message's article. `actions` are the page's: edit, again, remove, step. */
export class MessageView {
  #views = new Map();
  #frame = 0;
  #closed = new Set();

  constructor(node, actions, { live = false, drawn = () => {} } = {}) {
    this.node = node;
    this.actions = actions;
    this.live = live;
    this.drawn = drawn;
    this.body = h("div", { class: "body" });
    this.status = h("div", { class: "status", hidden: true });
    this.foot = h("footer", {});
    const who = node.role === "user" ? "You" : "Answer";
    this.element = h("article", { class: `message ${node.role}`, "aria-label": who, "data-id": node.id }, this.body, this.status, this.foot);
    if (node.role === "user") this.#drawUser();
    else for (const part of node.parts) this.#view(part);
    if (live) {
      this.element.setAttribute("aria-busy", "true");
      this.element.classList.add("live");
    } else if (node.role === "assistant") this.#closeParts(null);
    this.refresh(0, 1);
  }

  #drawUser() {
    const text = textOf(this.node);
    const body = h("div", { class: "user-text" }, text);
    this.body.replaceChildren(body);
    if (text.length <= LONG_TEXT) return;
    body.classList.add("cut");
    const more = h("button", { type: "button", class: "link", "aria-expanded": "false" }, "Show all");
    more.addEventListener("click", () => {
      const cut = body.classList.toggle("cut");
      more.textContent = cut ? "Show all" : "Show less";
      more.setAttribute("aria-expanded", String(!cut));
    });
    this.body.append(more);
  }

  #view(part) {
    let view = this.#views.get(part);
    if (!view) {
      view = new PartView(part, this.live);
      this.#views.set(part, view);
      this.body.append(view.element);
    }
    return view;
  }

  #closeParts(but) {
    for (const [part, view] of this.#views) {
      if (part === but || this.#closed.has(part)) continue;
      this.#closed.add(part);
      view.close();
    }
  }

  /** A part grew by `text`, or changed; drawn with the next frame. A new part ends those before it. */
  feed(part, text) {
    if (!this.#views.has(part)) {
      if (part.type !== "tool") this.#closeParts(part);
      this.#view(part);
    } else if (text) this.#view(part).feed(text);
    this.#schedule();
  }

  #schedule() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  #draw() {
    for (const [part, view] of this.#views) if (!this.#closed.has(part) || part.type === "tool") view.draw();
    this.drawn();
  }

  /** What the page waits for while nothing comes: loading, a queue. */
  wait(state) {
    this.status.hidden = state === null;
    if (state === null) return;
    this.status.className = "status waiting";
    let text = "Waiting for the answer…";
    if (state.state === "loading") {
      const share = state.progress === null ? "" : ` ${Math.round(state.progress * 100)} %`;
      text = `The model is loading…${share}`;
    } else if (state.state === "busy") text = `The server is busy; trying again in ${state.seconds} s.`;
    this.status.textContent = text;
  }

  /** The answer is complete, stopped or failed. */
  finish() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.live = false;
    this.#draw();
    this.#closeParts(null);
    this.element.classList.remove("live");
    this.element.removeAttribute("aria-busy");
    this.status.hidden = true;
    this.drawn();
  }

  /** Draws what stands below the message: errors, figures, buttons, and which of how many versions it is. */
  refresh(index, count) {
    const { node, actions } = this;
    this.foot.replaceChildren();
    if (this.live) return;
    const error = node.error ? h("div", { class: "error", role: "alert" }, h("span", {}, node.error), h("button", { type: "button", class: "plain", onclick: () => actions.again(node) }, "Try again")) : null;
    const note = node.note ?? (node.role === "assistant" && !node.done ? "This answer is not complete." : null);
    if (error) this.foot.append(error);
    if (note) this.foot.append(h("div", { class: "note" }, note));
    const figures = node.role === "assistant" ? figuresOf(node) : "";
    const row = h("div", { class: "tools" }, figures ? h("span", { class: "figures" }, figures) : null);
    if (count > 1) {
      const left = iconButton("left", "Previous version", () => actions.step(node, -1), { disabled: index === 0 });
      const right = iconButton("right", "Next version", () => actions.step(node, 1), { disabled: index === count - 1 });
      row.append(h("span", { class: "versions" }, left, h("span", { "aria-label": `Version ${index + 1} of ${count}` }, `${index + 1}/${count}`), right));
    }
    const copy = iconButton("copy", "Copy", () => copyFrom(copy, textOf(node)));
    row.append(copy);
    if (node.role === "user") row.append(iconButton("edit", "Edit", () => actions.edit(node)));
    else row.append(iconButton("again", "Answer again", () => actions.again(node)));
    row.append(iconButton("trash", "Delete", () => actions.remove(node)));
    this.foot.append(row);
  }

  /** Shows a field in place of the text; `done` gets the new text, or null. */
  edit(done) {
    const area = h("textarea", { class: "edit-area", "aria-label": "Edit the message" });
    area.value = textOf(this.node);
    const close = (text) => {
      this.element.classList.remove("editing");
      this.#drawUser();
      done(text);
    };
    const submit = () => close(area.value.trim() ? area.value : null);
    area.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") {
        event.stopPropagation();
        close(null);
      } else if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        submit();
      }
    });
    const buttons = h("div", { class: "edit-buttons" },
      h("button", { type: "button", class: "plain", onclick: () => close(null) }, "Cancel"),
      h("button", { type: "button", class: "main", onclick: submit }, "Send"));
    this.element.classList.add("editing");
    this.body.replaceChildren(area, buttons);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}

/** "model · 37 + 128 tokens · 103.1 tok/s · first token 85 ms", of what is known. */
export function figuresOf({ model, stats = {} }) {
  const out = model ? [model] : [];
  const { prompt, cached, predicted, rate, promptRate, first, guessed } = stats;
  if (Number.isFinite(predicted)) {
    const before = Number.isFinite(prompt) ? `${prompt}${cached ? ` (${cached} cached)` : ""} + ` : "";
    out.push(`${before}${guessed ? "≈" : ""}${predicted} tokens`);
  }
  if (Number.isFinite(rate) && rate > 0) out.push(`${rate.toFixed(1)} tok/s`);
  if (Number.isFinite(first)) out.push(`first token ${first < 10000 ? `${Math.round(first)} ms` : `${(first / 1000).toFixed(1)} s`}`);
  if (Number.isFinite(promptRate) && promptRate > 0) out.push(`prompt ${promptRate.toFixed(0)} tok/s`);
  return out.join(" · ");
}
