// What models write, as it is drawn: markdown in whatever pieces, hostile output, giant answers, broken streams' parser.
import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { lastAnswer, launch, openPage, say } from "./harness.js";
import { startMock } from "./mock.js";
import { MARKDOWN, XSS } from "./texts.js";

let mock, browser, page, check;
before(async () => ([mock, browser] = [await startMock(), await launch()]));
after(async () => (await browser.close(), await mock.close()));
beforeEach(async () => ({ page, check } = await openPage(browser, mock.url)));
afterEach(() => check());

const draw = (text, size) =>
  page.evaluate(async ([text, size]) => {
    const { Markdown } = await import("/markdown.js");
    const root = document.createElement("div");
    const markdown = new Markdown(root);
    for (let at = 0; at < text.length; at += size) markdown.push(text.slice(at, at + size));
    markdown.end();
    return root.innerHTML;
  }, [text, size]);

test("markdown becomes the elements it means", async () => {
  await say(page, "markdown");
  const answer = lastAnswer(page).locator(".markdown");
  for (const [selector, text] of [
    ["h2", "First heading"], ["h3", "Lists"], ["h4", "Last heading"], ["strong", "bold"], ["em", "italic"], ["s", "gone"], ["em > strong", "both"],
    ["p code", "code with <b>"], ["ul ul ul p", "deeper"], ["ul > li > p:nth-child(2)", "a second paragraph of two"], ["ol li ul p", "inside"],
    ["blockquote li p", "and a list"], ["th.to-right", "Speed"], ["td.to-center strong", "ok"], ["td code", "x|y"],
  ]) assert.equal(await answer.locator(selector).first().textContent(), text, selector);
  assert.equal(await answer.locator("hr").count(), 1);
  assert.equal(await answer.locator("ol[start='7']").count(), 1);
  assert.deepEqual(await answer.locator("p a").evaluateAll((links) => links.map((link) => link.href)), [
    "https://example.org/a?b=c", "https://example.org/auto", "https://example.org/bare_one", "https://en.example.org/x_(y)",
  ]);
  assert.match(await answer.innerText(), /Grüße, 日本語 and 🦀/);
  assert.match(await answer.innerText(), /2 \* 3 \* 4 = 24, snake_case_name, a\*b, 5 < 6 && 7 > 6\./);
});

test("every language's code is coloured and loses no character", async () => {
  await say(page, "markdown");
  const blocks = await lastAnswer(page).locator(".code").evaluateAll((all) =>
    all.map((block) => [block.querySelector(".code-head span").textContent, block.querySelector("code").textContent, block.querySelectorAll("code span").length]));
  const source = [...MARKDOWN.matchAll(/^```(\w+)\n([^]*?)^```$/gm)];
  assert.deepEqual(blocks.map(([language]) => language), ["rust", "python", "js", "json", "bash", "cpp", "html", "css", "sql", "toml", "yaml", "text"]);
  for (const [at, [language, text, spans]] of blocks.slice(0, -1).entries()) {
    assert.equal(text, source[at][2]);
    assert.ok(spans > 0, language);
  }
  assert.equal(blocks.at(-1)[1], "plain\n```\nstill plain\n");
  const kind = (text) => lastAnswer(page).locator("code span", { hasText: text }).first().getAttribute("class");
  assert.equal(await kind("lines */"), "tok-comment");
  assert.equal(await kind('string"""'), "tok-string");
  assert.equal(await kind("SELECT"), "tok-keyword");
});

test("the pieces in which a text comes make no difference", async () => {
  const whole = await draw(MARKDOWN, MARKDOWN.length);
  for (const size of [1, 2, 3, 7, 50]) assert.equal(await draw(MARKDOWN, size), whole);
  assert.equal(await draw(XSS, 1), await draw(XSS, XSS.length));
  assert.equal(await draw("a **b", 1), "<p>a **b</p>");
});

test("hostile output is inert", async () => {
  await say(page, "xss");
  const answer = lastAnswer(page);
  await answer.hover();
  for (const link of await answer.locator(".markdown a").all()) assert.match(await link.getAttribute("href"), /^https:\/\/(example\.org|evil\.example)\//);
  const allowed = new Set(["A", "BR", "BUTTON", "CODE", "DIV", "EM", "H2", "LI", "P", "PRE", "SPAN", "STRONG", "SVG", "TABLE", "TBODY", "TD", "TH", "THEAD", "TR", "UL", "USE"]);
  const found = await answer.locator(".markdown").evaluateAll((roots) => roots.flatMap((root) => [...root.querySelectorAll("*")].map((element) => [element.tagName.toUpperCase(), element.getAttributeNames()])));
  for (const [tag, names] of found) {
    assert.ok(allowed.has(tag), tag);
    for (const name of names) assert.ok(!name.startsWith("on") && name !== "style" && name !== "src", `${tag} ${name}`);
  }
  for (const span of await answer.locator(".markdown span", { hasText: "click" }).all()) await span.click();
  assert.equal(await page.evaluate(() => window.pwned), undefined);
  assert.match(await answer.innerText(), /<script>window.pwned = 1<\/script>/);
});

test("a giant answer is drawn to its end, and its work grows with its length only", async () => {
  await say(page, "giant");
  assert.match(await lastAnswer(page).innerText(), /THE END\s/);
  // Counts the nodes made for a text and for one of twice its length, in one block and in many: a square would show as four times.
  const made = (text) =>
    page.evaluate(async (text) => {
      const { Markdown } = await import("/markdown.js");
      const root = document.createElement("div");
      let count = 0;
      const originals = [Element, DocumentFragment].map(({ prototype }) => [prototype, prototype.append]);
      for (const [prototype, append] of originals) {
        prototype.append = function (...nodes) {
          count += nodes.length;
          return append.apply(this, nodes);
        };
      }
      const markdown = new Markdown(root);
      for (let at = 0; at < text.length; at += 40) markdown.push(text.slice(at, at + 40));
      markdown.end();
      for (const [prototype, append] of originals) prototype.append = append;
      return count;
    }, text);
  for (const piece of ["Some *words* and `code`. ", "Some *words*.\n\n", "- item\n", "| a | b |\n|---|---|\n", "```js\nlet x = 1;\n```\n", "*a **b `c "]) {
    const [one, two] = [await made(piece.repeat(600)), await made(piece.repeat(1200))];
    assert.ok(two < 2.5 * one, `${JSON.stringify(piece)}: ${one} then ${two}`);
  }
});

test("events are parsed whatever the chunk's borders and line ends", async () => {
  const events = await page.evaluate(async () => {
    const { SseParser } = await import("/stream.js");
    const stream = ': keep\r\ndata: {"a":1}\r\n\r\nevent: x\ndata:one\ndata: two\n\n\n:\rdata: three\r\rid: 4\n\ndata: four';
    const all = [];
    for (let cut = 0; cut <= stream.length; cut++) {
      const parser = new SseParser();
      all.push(JSON.stringify([...parser.push(stream.slice(0, cut)), ...parser.push(stream.slice(cut)), ...parser.end()]));
    }
    const each = new SseParser();
    all.push(JSON.stringify([...[...stream].flatMap((char) => each.push(char)), ...each.end()]));
    return [...new Set(all)];
  });
  assert.deepEqual(events, [JSON.stringify(['{"a":1}', "one\ntwo", "three", "four"])]);
});

test("code is copied as it was written", async () => {
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await say(page, "markdown");
  await lastAnswer(page).getByLabel("Copy code").nth(3).click();
  assert.equal((await page.evaluate(() => navigator.clipboard.readText())).trimEnd(), '{"a": [1, true, null, "s"]}');
});
