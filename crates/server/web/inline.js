// Inline markdown to DOM nodes: code, emphasis, links, breaks. CommonMark's delimiter stack, so time stays linear.

const SAFE = /^(https?:|mailto:)/i;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const SPECIAL = /[\\`*_~[\]!<\n]|https?:\/\//g;

/** The address when its scheme is harmless, else null; relative addresses mean nothing in an answer. */
export function safeUrl(text) {
  const address = text.trim();
  if (!SAFE.test(address)) return null;
  try {
    const parsed = new URL(address);
    return SAFE.test(parsed.protocol) ? parsed.href : null;
  } catch {
    return null;
  }
}

/** Builds the nodes of a text. With `open`, more may follow: bold and code that have only begun are shown as such. */
export function inline(text, open = false) {
  const items = tokenize(text, open);
  emphasize(items, 0, open);
  const out = document.createDocumentFragment();
  appendAll(out, items, 0);
  return out;
}

function anchor(address) {
  const link = document.createElement("a");
  link.href = address;
  link.target = "_blank";
  link.rel = "noopener noreferrer nofollow";
  return link;
}

/** Where a text may be cut so that no markup spans the cut; -1 when nowhere. */
export function safeCut(text) {
  const open = { "`": 0, "*": 0, "~": 0, "[": 0 };
  let cut = -1;
  for (let at = 0; at < text.length; at++) {
    const char = text[at];
    if (char === "\\") at++;
    else if (char === "`" || char === "*" || char === "~") open[char] ^= 1;
    else if (char === "[") open["["]++;
    else if (char === "]") open["["] = Math.max(0, open["["] - 1);
    else if ((char === " " || char === "\n") && !open["`"] && !open["*"] && !open["~"] && !open["["]) cut = at + 1;
  }
  return cut;
}

// An item is { text }, { node }, or a delimiter { mark, count, opens, closes }; a "[" is { bracket, image }.
function tokenize(text, open) {
  const items = [];
  const brackets = [];
  const runs = codeRuns(text);
  let plain = 0;
  let at = 0;
  const flush = (end) => {
    if (end > plain) items.push({ text: text.slice(plain, end) });
  };
  SPECIAL.lastIndex = 0;
  for (let match; (match = SPECIAL.exec(text)); ) {
    at = match.index;
    const char = text[at];
    let end = at + 1;
    let item = null;
    if (char === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      end = at + 2;
      item = { text: text[at + 1] };
    } else if (char === "\n" || (char === "\\" && text[at + 1] === "\n")) {
      end = char === "\n" ? at + 1 : at + 2;
      item = { node: document.createElement("br") };
    } else if (char === "`") {
      ({ item, end } = code(text, at, runs, open));
    } else if (char === "*" || char === "_" || char === "~") {
      ({ item, end } = delimiter(text, at));
    } else if (char === "!" && text[at + 1] === "[") {
      end = at + 2;
      item = { text: "![", bracket: true, image: true };
    } else if (char === "[") {
      item = { text: "[", bracket: true, image: false };
    } else if (char === "]") {
      flush(at);
      plain = at;
      const after = brackets.length > 0 ? closeBracket(text, at, items, brackets) : null;
      if (after !== null) plain = SPECIAL.lastIndex = after;
      continue;
    } else if (char === "<") {
      ({ item, end } = angle(text, at));
    } else if (char === "h") {
      ({ item, end } = bare(text, at));
    }
    if (!item) {
      SPECIAL.lastIndex = Math.max(end, at + 1);
      continue;
    }
    flush(at);
    if (item.bracket) brackets.push(items.length);
    items.push(item);
    plain = SPECIAL.lastIndex = end;
  }
  flush(text.length);
  return items;
}

/** The places of backtick runs by length, found once: a run without a partner must not search to the end again. */
function codeRuns(text) {
  const places = new Map();
  for (const { 0: run, index } of text.matchAll(/`+/g)) {
    if (!places.has(run.length)) places.set(run.length, []);
    places.get(run.length).push(index);
  }
  return { places, next: new Map() };
}

function code(text, at, runs, open) {
  let length = 1;
  while (text[at + length] === "`") length++;
  const places = runs.places.get(length) ?? [];
  let next = runs.next.get(length) ?? 0;
  while (next < places.length && places[next] <= at) next++;
  runs.next.set(length, next);
  const from = at + length;
  const closed = next < places.length;
  if (!closed && !(open && from < text.length && length < 3)) {
    return { item: { text: text.slice(at, from) }, end: from };
  }
  const end = closed ? places[next] : text.length;
  let content = text.slice(from, end).replaceAll("\n", " ");
  if (/^ .* $/s.test(content) && content.trim()) content = content.slice(1, -1);
  const node = document.createElement("code");
  node.textContent = content;
  return { item: { node }, end: closed ? end + length : end };
}

function delimiter(text, at) {
  const mark = text[at];
  let end = at + 1;
  while (text[end] === mark) end++;
  const count = end - at;
  const before = at === 0 ? " " : text[at - 1];
  const after = text[end] ?? " ";
  const space = [before, after].map((char) => /\s/.test(char));
  const punctuation = [before, after].map((char) => PUNCTUATION.test(char));
  const left = !space[1] && (!punctuation[1] || space[0] || punctuation[0]);
  const right = !space[0] && (!punctuation[0] || space[1] || punctuation[1]);
  const word = mark === "_";
  if (mark === "~" && count !== 2) return { item: { text: text.slice(at, end) }, end };
  const opens = left && (!word || !right || punctuation[0]);
  const closes = right && (!word || !left || punctuation[1]);
  return { item: { mark, count, opens, closes }, end };
}

function angle(text, at) {
  const rest = text.slice(at, at + 2048);
  const line = /^<br\s*\/?>/i.exec(rest);
  if (line) return { item: { node: document.createElement("br") }, end: at + line[0].length };
  const match = /^<((?:https?:\/\/|mailto:)[^\s<>]+)>/i.exec(rest);
  const address = match && safeUrl(match[1]);
  if (!address) return { item: null, end: at + 1 };
  const node = anchor(address);
  node.textContent = match[1];
  return { item: { node }, end: at + match[0].length };
}

function bare(text, at) {
  if (/\w/.test(text[at - 1] ?? "")) return { item: null, end: at + 4 };
  let shown = /^[^\s<>`*|"]+/.exec(text.slice(at, at + 2048))[0].replace(/[.,:;!?'_~\]]+$/, "");
  // A closing parenthesis belongs to the sentence unless the address has its opening one.
  while (shown.endsWith(")") && shown.split(")").length > shown.split("(").length) shown = shown.slice(0, -1);
  const address = /^https?:\/\/./.test(shown) ? safeUrl(shown) : null;
  if (!address) return { item: null, end: at + 4 };
  const node = anchor(address);
  node.textContent = shown;
  return { item: { node }, end: at + shown.length };
}

/** At "]": makes a link of what lies since the last "[" when "(address)" follows; returns where the text goes on. */
function closeBracket(text, at, items, brackets) {
  const start = brackets.pop();
  const match = /^\]\(\s*(<[^<>\n]*>|(?:[^\s()\\]|\\.|\([^\s()]*\))*)(?:\s+(?:"[^"]*"|'[^']*'|\([^)]*\)))?\s*\)/.exec(text.slice(at, at + 4096));
  if (!match) return null;
  const address = safeUrl(match[1].replace(/^<|>$/g, "").replace(/\\([!-/:-@[-`{-~])/g, "$1"));
  emphasize(items, start + 1, false);
  // Images would be fetched from elsewhere, so they become links; a link with a refused address stays a plain word.
  const node = address ? anchor(address) : document.createElement("span");
  appendAll(node, items, start + 1);
  if (items[start].image && !node.textContent) node.textContent = "image";
  if (!address) node.title = "This link was left out: its address is not a web address.";
  items.length = start;
  items.push({ node });
  // Links do not nest: earlier brackets can no longer become one.
  if (address) brackets.length = 0;
  return at + match[0].length;
}

/** CommonMark's procedure for emphasis over the delimiters from `first` on. */
function emphasize(items, first, open) {
  const openers = [];
  // Where a closer of a kind found nothing, the next one of that kind need not look either.
  const bottoms = new Map();
  for (let at = first; at < items.length; at++) {
    const closer = items[at];
    if (!closer.mark) continue;
    while (closer.closes && closer.count > 0) {
      const kind = `${closer.mark}${closer.count % 3}${closer.opens}`;
      const bottom = bottoms.get(kind) ?? 0;
      let found = openers.length - 1;
      while (found >= bottom && !pairs(openers[found], closer)) found--;
      if (found < bottom) {
        bottoms.set(kind, openers.length);
        break;
      }
      const opener = openers[found];
      openers.length = found + 1;
      const used = opener.count >= 2 && closer.count >= 2 ? 2 : 1;
      opener.count -= used;
      closer.count -= used;
      (opener.starts ??= []).push({ used, mark: opener.mark });
      (closer.ends ??= []).push(used);
      if (opener.count === 0) openers.pop();
      for (const [key, value] of bottoms) bottoms.set(key, Math.min(value, openers.length));
    }
    if (closer.opens && closer.count > 0) openers.push(closer);
  }
  if (!open) return;
  const last = openers.findLast((item) => item.mark === "*" && item.count === 2 && !item.starts && !item.ends);
  if (last && items.at(-1) !== last) {
    last.count = 0;
    last.starts = [{ used: 2, mark: "*" }];
  }
}

function pairs(opener, closer) {
  if (opener.mark !== closer.mark) return false;
  if (opener.mark === "~") return true;
  const both = (opener.closes || closer.opens) && (opener.count + closer.count) % 3 === 0;
  return !(both && (opener.count % 3 !== 0 || closer.count % 3 !== 0));
}

const TAGS = { "*1": "em", "*2": "strong", "_1": "em", "_2": "strong", "~1": "s", "~2": "s" };

/** Turns items into nodes under `root`. Delimiters of matched pairs open and close elements in between. */
function appendAll(root, items, first) {
  const stack = [root];
  for (const item of items.slice(first)) {
    const top = stack.at(-1);
    if (item.node) top.append(item.node);
    else if (item.text !== undefined) top.append(item.text);
    else {
      for (let left = item.ends?.length ?? 0; left > 0 && stack.length > 1; left--) stack.pop();
      if (item.count > 0) stack.at(-1).append(item.mark.repeat(item.count));
      // The pair made last is the outermost.
      for (const { used, mark } of (item.starts ?? []).reverse()) {
        const element = document.createElement(TAGS[`${mark}${used}`]);
        stack.at(-1).append(element);
        stack.push(element);
      }
    }
  }
}
