// The blocks that hold text: paragraphs and headings, code, tables. Each takes pieces of lines (`add`), ends of lines
// (`newline`), draws what it has (`draw`), and is drawn for the last time by `close`.
import { copyFrom, h, iconButton } from "./dom.js";
import { inline, safeCut } from "./inline.js";
import { highlighter } from "./highlight.js";

const OPEN_TEXT = 2000;
const FORCED_CUT = 8000;
// Longer lines are coloured when they are complete, and not at all when longer still.
const LIVE_LINE = 400;
const COLOURED_LINE = 20000;

/** A paragraph or a heading. Text before the last safe cut is drawn for good. */
export class TextLeaf {
  #text = "";
  #break = false;
  #fixed = 0;
  #cut = false;
  #dirty = false;

  constructor(kind, element) {
    this.kind = kind;
    this.element = element;
  }

  add(text) {
    this.#text += this.#break ? `\n${text}` : text;
    this.#break = false;
    this.#dirty = true;
  }

  newline() {
    this.#break = true;
    this.#text = this.#text.replace(/[ \t\r]+$/, "");
  }

  draw(open) {
    if (!this.#dirty) return;
    this.#dirty = false;
    while (this.element.childNodes.length > this.#fixed) this.element.lastChild.remove();
    while (this.#text.length > OPEN_TEXT) {
      let at = safeCut(this.#text.slice(0, FORCED_CUT));
      if (at < OPEN_TEXT / 2) {
        if (this.#text.length <= FORCED_CUT) break;
        at = Math.max(this.#text.lastIndexOf(" ", FORCED_CUT), OPEN_TEXT);
      }
      this.element.append(inline(this.#text.slice(0, at)));
      this.#fixed = this.element.childNodes.length;
      this.#text = this.#text.slice(at);
      this.#cut = true;
    }
    this.element.append(inline(this.#text, open));
  }

  close() {
    if (this.kind === "heading") this.#text = this.#text.replace(/\s+#+\s*$/, "");
    // Bold that was only begun was shown as bold while more could come.
    this.#dirty = true;
    this.draw(false);
  }

  /** The last line, when it is whole and nothing of it is drawn for good. */
  lastLine() {
    const at = this.#text.lastIndexOf("\n");
    return at < 0 && this.#cut ? "" : this.#text.slice(at + 1);
  }

  takeLastLine() {
    const at = this.#text.lastIndexOf("\n");
    const line = this.#text.slice(at + 1);
    this.#text = this.#text.slice(0, Math.max(at, 0));
    this.#dirty = true;
    if (this.#text === "" && this.#fixed === 0) this.element.remove();
    return line;
  }
}

/** A fenced block of code with its language and a copy button. */
export class CodeLeaf {
  kind = "code";
  #lines = [];
  #line = "";
  // The nodes of the line being written begin here.
  #mark = 0;
  #plain = null;
  #state = null;
  #started = false;

  constructor(fence, language, indent) {
    this.fence = fence;
    this.indent = indent;
    this.paint = highlighter(language);
    this.code = h("code");
    const copy = iconButton("copy", "Copy code", () => copyFrom(copy, [...this.#lines, this.#line].join("\n")));
    const head = h("div", { class: "code-head" }, h("span", {}, language || "text"), copy);
    this.element = h("div", { class: "code" }, head, h("pre", { tabindex: "0" }, this.code));
  }

  add(piece) {
    this.#started = true;
    this.#line += piece;
  }

  /** The end of the fence's own line is not one of the code. */
  newline() {
    if (!this.#started) {
      this.#started = true;
      return;
    }
    this.#complete();
    this.code.append("\n");
    this.#mark = this.code.childNodes.length;
    this.#line = "";
  }

  draw() {
    if (this.#line.length <= LIVE_LINE) {
      this.#clear();
      this.#append(this.#line, this.#state);
      return;
    }
    if (!this.#plain) {
      this.#clear();
      this.#plain = document.createTextNode("");
      this.code.append(this.#plain);
    }
    this.#plain.appendData(this.#line.slice(this.#plain.length));
  }

  close() {
    // A last line may be without its end: the stream broke off, or the answer ended within the code.
    if (this.#line) this.draw();
    this.#plain = null;
  }

  #complete() {
    this.#line = this.#line.replace(/\r$/, "");
    this.#clear();
    this.#state = this.#append(this.#line, this.#state);
    this.#lines.push(this.#line);
  }

  #clear() {
    while (this.code.childNodes.length > this.#mark) this.code.lastChild.remove();
    this.#plain = null;
  }

  #append(line, state) {
    if (!this.paint || line.length > COLOURED_LINE) {
      this.code.append(line);
      return state;
    }
    const { tokens, state: next } = this.paint(line, state);
    for (const [kind, text] of tokens) this.code.append(kind ? h("span", { class: `tok-${kind}` }, text) : text);
    return next;
  }
}

/** A table; rows come as whole lines. */
export class TableLeaf {
  kind = "table";
  #sides;
  #body = h("tbody");

  constructor(head, sides) {
    this.#sides = sides;
    const table = h("table", {}, h("thead", {}, this.#row("th", head)), this.#body);
    this.element = h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, table);
  }

  row(texts) {
    // A line has the head's number of cells, whatever it says.
    this.#body.append(this.#row("td", this.#sides.map((_, at) => texts[at] ?? "")));
  }

  add() {}
  newline() {}
  draw() {}
  close() {}

  #row(tag, texts) {
    return h("tr", {}, ...texts.map((text, at) => h(tag, { class: this.#sides[at] ? `to-${this.#sides[at]}` : null }, inline(text))));
  }
}

/** The cells of a table's line; a bar within code or after a backslash is text. */
export function cells(line) {
  const found = [""];
  let code = false;
  const text = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  for (let at = 0; at < text.length; at++) {
    if (text[at] === "\\" && text[at + 1] === "|") found[found.length - 1] += text[++at];
    else if (text[at] === "|" && !code) found.push("");
    else {
      if (text[at] === "`") code = !code;
      found[found.length - 1] += text[at];
    }
  }
  return found.map((cell) => cell.trim());
}
