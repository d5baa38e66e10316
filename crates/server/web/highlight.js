// Light syntax highlighting, a line at a time. A language is rules by state; a rule is a sticky pattern, the kind of
// token, and the state it leads to. A state lives on over line ends, for comments and strings of several lines.

const NUMBER = [/\b(?:0[xob][\da-f_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:e[+-]?\d+)?)\w*/iy, "number"];
const WORD = [/[A-Za-z_$][\w$]*/y, "word"];
const SPACE = [/\s+/y, ""];
const DOUBLE = [/"(?:[^"\\]|\\.)*"?/y, "string"];
const SINGLE = [/'(?:[^'\\]|\\.)*'?/y, "string"];
const SLASHES = [/\/\/.*/y, "comment"];
const HASH = [/#.*/y, "comment"];

/** A state that lasts until `end`, and its beginning. */
const until = (kind, end) => [
  [new RegExp(`(?:(?!${end}).)*?${end}`, "y"), kind, "main"],
  [/.+/y, kind],
];
const blockComment = { main: [/\/\*/y, "comment", "comment"], state: until("comment", "\\*\\/") };

const words = (text) => new Set(text.split(" "));

function cLike(keywords, extra = [], states = {}) {
  return {
    keywords: words(keywords),
    states: { main: [SPACE, ...extra, SLASHES, blockComment.main, DOUBLE, SINGLE, NUMBER, WORD], comment: blockComment.state, ...states },
  };
}

const rust = cLike(
  "as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut pub ref return self Self static struct super trait true type unsafe use where while",
  [[/#!?\[[^\]]*\]?/y, "meta"], [/b?r(#*)"(?:.*?"\1|.*)/y, "string"], [/'(?:[^'\\]|\\.[^']*)'/y, "string"], [/'\w+/y, "meta"], [/\w+!(?=[\s([{])/y, "call"]],
);
const js = cLike(
  "abstract any as async await boolean break case catch class const continue declare default delete do else enum export extends false finally for from function get if implements import in instanceof interface keyof let namespace new null number of private protected public readonly return set static string super switch this throw true try type typeof undefined unknown var void while with yield",
  [[/`/y, "string", "template"], [/@\w+/y, "meta"]],
  { template: [[/(?:[^`\\]|\\.)*`/y, "string", "main"], [/.+/y, "string"]] },
);
const c = cLike(
  "alignas auto bool break case catch char class const constexpr continue default delete do double else enum explicit extern false final float for friend goto if inline int long mutable namespace new noexcept nullptr operator override private protected public return short signed sizeof static struct switch template this throw true try typedef typename union unsigned using virtual void volatile while",
  [[/#\s*\w+.*/y, "meta"]],
);
const python = {
  keywords: words("and as assert async await break case class continue def del elif else except False finally for from global if import in is lambda match None nonlocal not or pass raise return self True try while with yield"),
  states: {
    main: [SPACE, HASH, [/[rbfu]{0,2}"""/iy, "string", "double"], [/[rbfu]{0,2}'''/iy, "string", "single"], [/[rbfu]{0,2}"(?:[^"\\]|\\.)*"?/iy, "string"], [/[rbfu]{0,2}'(?:[^'\\]|\\.)*'?/iy, "string"], [/@[\w.]+/y, "meta"], NUMBER, WORD],
    double: until("string", '"""'),
    single: until("string", "'''"),
  },
};
const json = {
  keywords: words("true false null"),
  states: { main: [SPACE, SLASHES, [/"(?:[^"\\]|\\.)*"(?=\s*:)/y, "name"], DOUBLE, [/-?\d[\d.eE+-]*/y, "number"], WORD] },
};
const bash = {
  keywords: words("case do done elif else esac exit export fi for function if in local return set shift source then unset until while cd echo sudo"),
  states: { main: [SPACE, [/(?<!\S)#.*/y, "comment"], [/"(?:[^"\\]|\\.)*"?/y, "string"], [/'[^']*'?/y, "string"], [/\$\{[^}]*\}?|\$[\w@#?*!$-]/y, "meta"], [/--?[A-Za-z][\w-]*/y, "name"], [/[\w./-]+/y, "word"]] },
};
const sql = {
  fold: true,
  keywords: words("add all alter and as asc begin between by case cast check column commit constraint create cross default delete desc distinct drop else end exists false foreign from full group having if in index inner insert into is join key left like limit not null offset on or order outer over partition primary references returning right rollback select set table then transaction true union unique update using values view when where with"),
  states: { main: [SPACE, [/--.*/y, "comment"], blockComment.main, SINGLE, [/"[^"]*"?/y, "name"], NUMBER, WORD], comment: blockComment.state },
};
const settings = {
  keywords: words("true false null yes no on off"),
  states: {
    main: [SPACE, [/(?<!\S)#.*/y, "comment"], [/"""/y, "string", "double"], [/\[\[?[^\]\s,]+\]\]?(?=\s*$)/y, "meta"], [/[\w.-]+(?=\s*[:=](?:\s|$))/y, "name"], [/"[^"]+"(?=\s*[:=](?:\s|$))/y, "name"], DOUBLE, SINGLE, [/[&*!][\w!]+/y, "meta"], NUMBER, WORD],
    double: until("string", '"""'),
  },
};
const html = {
  keywords: new Set(),
  states: {
    main: [[/<!--/y, "comment", "comment"], [/<!?\/?[A-Za-z][\w:-]*/y, "keyword", "tag"], [/&[\w#]+;/y, "meta"], [/[^<&]+/y, ""]],
    tag: [SPACE, [/\/?>/y, "keyword", "main"], [/[\w:@.-]+/y, "name"], [/"[^"]*"?/y, "string"], [/'[^']*'?/y, "string"]],
    comment: until("comment", "-->"),
  },
};
const css = {
  keywords: new Set(),
  states: {
    main: [SPACE, blockComment.main, DOUBLE, SINGLE, [/@[\w-]+/y, "keyword"], [/#[\da-f]{3,8}\b/iy, "number"], [/--[\w-]+|[\w-]+(?=\s*:\s)/y, "name"], [/[.#][\w-]+/y, "type"], [/-?\d[\d.]*(?:%|[a-z]+)?/y, "number"], [/[\w-]+(?=\()/y, "call"], [/[\w-]+/y, ""]],
    comment: blockComment.state,
  },
};

const LANGUAGES = {
  rust, rs: rust, python, py: python, python3: python, json, jsonc: json, json5: json,
  javascript: js, js, jsx: js, mjs: js, typescript: js, ts: js, tsx: js,
  bash, sh: bash, shell: bash, zsh: bash, console: bash,
  c, h: c, cpp: c, "c++": c, cc: c, hpp: c, cuda: c, java: c,
  html, xml: html, svg: html, vue: html, css, scss: css, less: css, sql, toml: settings, yaml: settings, yml: settings, ini: settings,
};

/** A function from a line and a state to `{ tokens: [[kind, text]], state }`; null for a language not known here. */
export function highlighter(name) {
  const key = name.toLowerCase();
  const language = Object.hasOwn(LANGUAGES, key) ? LANGUAGES[key] : null;
  return language && ((line, state) => paint(language, line, state ?? "main"));
}

function paint({ states, keywords, fold }, line, state) {
  const tokens = [];
  let plain = "";
  for (let at = 0; at < line.length; ) {
    let text = line[at];
    let kind = "";
    for (const [pattern, found, next] of states[state]) {
      pattern.lastIndex = at;
      const match = pattern.exec(line);
      if (!match || match[0] === "") continue;
      text = match[0];
      kind = found === "word" ? wordKind(text, line, at, keywords, fold) : found;
      state = next ?? state;
      break;
    }
    at += text.length;
    if (kind === "") {
      plain += text;
      continue;
    }
    if (plain) tokens.push(["", plain]);
    plain = "";
    tokens.push([kind, text]);
  }
  if (plain) tokens.push(["", plain]);
  return { tokens, state };
}

function wordKind(text, line, at, keywords, fold) {
  if (keywords.has(fold ? text.toLowerCase() : text)) return "keyword";
  if (line[at + text.length] === "(") return "call";
  return /^[A-Z]\w*[a-z]/.test(text) ? "type" : "";
}
