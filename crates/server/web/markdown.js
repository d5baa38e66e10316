// Markdown to DOM nodes while it streams. Every line is looked at once: finished blocks are never touched again, a
// paragraph is redrawn only from its last safe cut on, and code is coloured line by line. So a long answer costs its
// length, not its square.
import { h } from "./dom.js";
import { CodeLeaf, TableLeaf, TextLeaf, cells } from "./leaves.js";

// A line whose kind is not sure yet is held back: it may become a list, a rule, a fence, a task or a table's row.
const UNDECIDED = /^(#{0,6}|[-*+_\s]*|\d{0,9}[.)]?|`{1,2}|`{3,}[^`]*|~.*|\|.*|[\s|:-]*|\[[ xX]?\]?\s?)$/;
const MARKS = /^[\s>]*(?:(?:[-*+]|\d{1,9}[.)])\s+)*/;
const FENCE = /^(`{3,})([^`]*)$|^(~{3,})(.*)$/;
const RULE = /^(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const ITEM = /^([-*+]|(\d{1,9})[.)])(\s+|$)/;
const QUOTE = /^\s{0,3}>\s?/;
const HEADING = /^(#{1,6})(?:\s+|$)/;
const TASK = /^\[([ xX])\]\s+/;
const TABLE_RULE = /^\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?$/;
const LONGEST_UNDECIDED = 8000;
const DEEPEST = 24;

const indentOf = (text) => text.length - text.trimStart().length;
// Bullets of all kinds make one list, as models mix them; "1." and "1)" make two.
const markOf = (item) => (item[2] === undefined ? "" : item[1].at(-1));
const itemOf = (text) => (RULE.test(text) ? null : ITEM.exec(text));

/** Draws a text into `root` as it comes: `push` pieces, then `end`. */
export class Markdown {
  // Open containers: the root, quotes, and list items, which know their list and the column of their marker.
  #stack;
  #leaf = null;
  #line = "";
  // Whether the line's kind is known and its text goes straight to the leaf.
  #flowing = false;
  #blank = false;

  constructor(root) {
    this.#stack = [{ kind: "root", element: root }];
  }

  push(text) {
    let start = 0;
    for (let at; (at = text.indexOf("\n", start)) >= 0; start = at + 1) {
      this.#take(text.slice(start, at));
      this.#finishLine();
    }
    if (start < text.length) this.#take(text.slice(start));
    this.#leaf?.draw(true);
  }

  end() {
    if (this.#line || this.#flowing) this.#finishLine();
    this.#closeLeaf();
  }

  /** More of the current line. */
  #take(piece) {
    if (this.#flowing) return this.#leaf.add(piece);
    this.#line += piece;
    if (this.#leaf?.kind === "table") return;
    if (this.#leaf?.kind === "code") {
      const inner = this.#inCode(this.#line);
      // What might be the closing fence, or the indentation before it, waits for the end of the line.
      if (inner === null || /^\s*[`~]*\s*$/.test(inner)) return;
      this.#leaf.add(inner);
    } else {
      if (UNDECIDED.test(this.#line.replace(MARKS, "")) && this.#line.length < LONGEST_UNDECIDED) return;
      this.#begin(this.#line);
    }
    this.#line = "";
    this.#flowing = this.#leaf !== null;
  }

  #finishLine() {
    if (!this.#flowing) this.#whole(this.#line.replace(/\r$/, ""));
    this.#flowing = false;
    this.#line = "";
    this.#leaf?.newline();
    if (this.#leaf?.kind === "heading") this.#closeLeaf();
  }

  /** A complete line that nothing was drawn of. */
  #whole(line) {
    if (this.#leaf?.kind === "code") {
      const inner = this.#inCode(line);
      const fence = inner === null ? null : /^\s{0,3}(`{3,}|~{3,})\s*$/.exec(inner);
      if (inner !== null && !fence?.[1].startsWith(this.#leaf.fence)) return this.#leaf.add(inner);
      this.#closeLeaf();
      if (inner !== null) return;
    }
    if (line.trim() !== "") return this.#begin(line);
    this.#blank = true;
    this.#closeLeaf();
    // A quote ends with the first line that is not marked; a list may go on.
    const quote = this.#stack.findIndex((box) => box.kind === "quote");
    if (quote >= 0) this.#stack.length = quote;
  }

  /** What of a line lies within the fence's containers; null when it lies outside of a quote. */
  #inCode(line) {
    let rest = line;
    for (const box of this.#stack) {
      if (box.kind !== "quote") continue;
      const mark = QUOTE.exec(rest);
      if (!mark) return null;
      rest = rest.slice(mark[0].length);
    }
    // Models indent code in lists now more, now less: at most the fence's own indentation is taken away.
    let cut = 0;
    while (cut < this.#leaf.indent && (rest[cut] === " " || rest[cut] === "\t")) cut++;
    return rest.slice(cut);
  }

  /** Finds the containers that a line goes on with, and puts the rest of it into a leaf. */
  #begin(line) {
    let rest = line.replace(/^\t+/, (tabs) => "    ".repeat(tabs.length));
    let depth = 1;
    for (; depth < this.#stack.length; depth++) {
      const box = this.#stack[depth];
      if (box.kind === "quote") {
        const mark = QUOTE.exec(rest);
        if (!mark) break;
        rest = rest.slice(mark[0].length);
        // Two columns more than the marker are enough: models nest by two as often as by the text's column.
      } else if (indentOf(rest) < box.column + 2) break;
    }
    const blank = this.#blank;
    this.#blank = false;
    const text = rest.trimStart();
    if (text === "") {
      this.#closeLeaf();
      this.#blank = true;
      return;
    }
    const all = depth === this.#stack.length;
    const starts = this.#starts(text);
    if (this.#leaf?.kind === "paragraph" && !blank && !starts) {
      // A line without marks goes on with the paragraph before it, however deep that lies.
      if (!this.#tableRule(text)) return this.#leaf.add(text);
      if (all) return this.#openTable(text);
    }
    if (this.#leaf?.kind === "table" && text.includes("|") && !starts && all) return this.#leaf.row(cells(text));
    const next = this.#stack[depth];
    const item = itemOf(text);
    const list = next?.kind === "item" && item && next.mark === markOf(item) ? next.list : null;
    this.#closeLeaf();
    this.#stack.length = depth;
    this.#open(text, indentOf(rest), list);
  }

  /** Whether a line begins a block even right after a paragraph's line. */
  #starts(text) {
    const item = itemOf(text);
    // "1986. A year" is a sentence unless a list is open.
    if (item) return item[2] === undefined || Number(item[2]) <= 1 || this.#stack.at(-1).kind === "item";
    return text.startsWith(">") || HEADING.test(text) || FENCE.test(text) || RULE.test(text);
  }

  /** Opens what a line's marks say, and the leaf for the rest of it. `list` takes the first item when it fits. */
  #open(text, indent, list) {
    let rest = text;
    let at = indent;
    while (this.#stack.length <= DEEPEST) {
      const quote = QUOTE.exec(rest);
      const item = itemOf(rest);
      if (quote) {
        this.#container({ kind: "quote", element: h("blockquote") });
        rest = rest.slice(quote[0].length);
        at = indentOf(rest);
      } else if (item) {
        this.#item(item, at, list);
        rest = rest.slice(item[0].length);
        at += item[0].length;
        const task = TASK.exec(rest);
        if (task) {
          rest = `${task[1] === " " ? "\u2610" : "\u2611"} ${rest.slice(task[0].length)}`;
        }
      } else break;
      list = null;
      rest = rest.trimStart();
    }
    if (rest === "") return;
    const fence = FENCE.exec(rest);
    if (fence) {
      const language = /^[\w+#.-]*/.exec((fence[2] ?? fence[4]).trim())[0];
      this.#leaf = new CodeLeaf(fence[1] ?? fence[3], language, at);
    } else if (RULE.test(rest)) {
      this.#top().append(h("hr"));
      return;
    } else {
      const heading = HEADING.exec(rest);
      // One level down: the page has its own first heading.
      const tag = heading ? `h${Math.min(6, heading[1].length + 1)}` : "p";
      this.#leaf = new TextLeaf(heading ? "heading" : "paragraph", h(tag));
      this.#leaf.add(heading ? rest.slice(heading[0].length) : rest);
    }
    this.#top().append(this.#leaf.element);
  }

  #item(match, column, list) {
    const ordered = match[2] !== undefined;
    if (!list) {
      list = h(ordered ? "ol" : "ul", { start: ordered && match[2] !== "1" ? Number(match[2]) : null });
      this.#top().append(list);
    }
    const element = h("li");
    list.append(element);
    this.#stack.push({ kind: "item", element, list, mark: markOf(match), column });
  }

  #container(box) {
    this.#top().append(box.element);
    this.#stack.push(box);
  }

  #top() {
    return this.#stack.at(-1).element;
  }

  #closeLeaf() {
    this.#leaf?.close();
    this.#leaf = null;
  }

  /** Whether a line is the rule under a table's head, which the paragraph's last line then is. */
  #tableRule(text) {
    if (!text.includes("-") || !TABLE_RULE.test(text)) return false;
    const head = this.#leaf.lastLine();
    return (head.includes("|") || text.includes("|")) && cells(head).length === cells(text).length;
  }

  #openTable(text) {
    const head = cells(this.#leaf.takeLastLine());
    this.#closeLeaf();
    const sides = cells(text).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : null));
    this.#leaf = new TableLeaf(head, sides);
    this.#top().append(this.#leaf.element);
  }
}
