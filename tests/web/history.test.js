// What stays: conversations, their list, files, several tabs, storage that fails. And how the page looks and scrolls.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { answers, ask, composer, lastAnswer, launch, openPage, say, settled } from "./harness.js";
import { startMock } from "./mock.js";

let mock, browser, page, context, check;
before(async () => ([mock, browser] = [await startMock(), await launch()]));
after(async () => (await browser.close(), await mock.close()));
const open = async (options) => ({ page, context, check } = await openPage(browser, mock.url, options));
beforeEach(() => open());
afterEach(() => check());

const titles = () => page.locator("#list .open").allInnerTexts();
const entry = (title) => page.locator("#list li:not(.group)", { hasText: title });
const newChat = () => page.locator("#new-chat").click();
async function conversations(...texts) {
  for (const text of texts) {
    await newChat();
    await say(page, text);
  }
}
async function act(title, what) {
  await entry(title).hover();
  await entry(title).locator(`[data-do=${what}]`).click();
}
async function exported(start) {
  const [file] = await Promise.all([page.waitForEvent("download"), start()]);
  return JSON.parse(await readFile(await file.path(), "utf8"));
}
const importText = (text) => page.locator("#import-file").setInputFiles({ name: "c.json", mimeType: "application/json", buffer: Buffer.from(text) });
const toast = (text) => page.locator(".toast", { hasText: text }).waitFor();

test("conversations outlive the page and are listed, the latest first", async () => {
  await conversations("alpha one", "beta two");
  assert.deepEqual(await titles(), ["beta two", "alpha one"]);
  await page.reload();
  await page.getByText("You said: beta two").waitFor();
  assert.match(await lastAnswer(page).innerText(), /98\.8 tok\/s/);
  await entry("alpha one").locator(".open").click();
  await page.getByText("You said: alpha one").waitFor();
  assert.equal(await entry("alpha one").locator(".open").getAttribute("aria-current"), "page");
  await page.goBack();
  await page.getByText("You said: beta two").waitFor();
});

test("the list renames, finds and deletes", async () => {
  await conversations("alpha one", "beta two", "gamma three");
  await act("beta two", "rename");
  await page.getByLabel("New name").fill("A <b>new</b> name");
  await page.keyboard.press("Enter");
  await entry("A <b>new</b> name").waitFor();
  await page.locator("#search").fill("said ALPHA");
  await entry("beta").waitFor({ state: "detached" });
  await page.waitForFunction(() => document.querySelectorAll("#list .open").length === 1);
  assert.deepEqual(await titles(), ["alpha one"]);
  await page.locator("#search").fill("nowhere");
  await page.getByText("Nothing found.").waitFor();
  await page.locator("#search").fill("");
  await entry("alpha one").waitFor();
  await act("alpha one", "delete");
  await entry("alpha one").waitFor({ state: "detached" });
  await page.getByRole("button", { name: "Undo" }).click();
  await entry("alpha one").waitFor();
  await act("gamma three", "delete");
  await entry("gamma three").waitFor({ state: "detached" });
  assert.equal(await page.locator(".message").count(), 0);
  await page.reload();
  await entry("alpha one").waitFor();
  assert.deepEqual((await titles()).sort(), ["A <b>new</b> name", "alpha one"]);
});

test("conversations go to a file and come back", async () => {
  await conversations("alpha one", "beta two");
  const one = await exported(() => act("alpha one", "export"));
  assert.deepEqual(one.conversations.map(({ title }) => title), ["alpha one"]);
  const all = await exported(() => page.locator("#export").click());
  assert.equal(all.conversations.length, 2);
  await check();
  await open();
  await importText(JSON.stringify(all));
  await toast("Imported 2 conversations.");
  await entry("alpha one").locator(".open").click();
  await page.getByText("You said: alpha one").waitFor();
  await page.getByLabel("Dismiss").click();
  await importText(JSON.stringify(all));
  await toast("Imported 2 conversations.");
  assert.equal((await titles()).length, 2);
});

test("a file that is wrong is refused whole, with the reason", async () => {
  const node = { id: "n1", parent: null, role: "user", parts: [{ type: "text", text: "x" }], time: 1 };
  const file = (conversations) => JSON.stringify({ format: "biplane-conversations", version: 1, conversations });
  const good = { id: "c1", title: "good", nodes: { n1: node }, pick: {} };
  for (const [text, reason] of [
    ["{", "The file is not JSON."], ["{}", "no conversations of this page"], ['{"format":"biplane-conversations","version":9,"conversations":[]}', "version 9"],
    [file([good, { id: "c2", nodes: { n1: { ...node, parent: "n0" } } }]), "follows one that is missing"],
    [file([good, { id: "c2", nodes: { n1: { ...node, role: "wizard" } } }]), 'the role "wizard"'], [file([good, null]), "no valid id"], [file([{ id: "a b" }]), "no valid id"],
  ]) {
    await importText(text);
    await toast(reason);
  }
  assert.deepEqual(await titles(), []);
  const strange = { ...good, title: 7, extra: 1, pick: { root: "n9" }, nodes: { n1: { ...node, parts: [{ type: "text", text: 5 }, { type: "evil" }, null], stats: { rate: "<b>" } } } };
  await importText(file([strange]));
  await toast("Imported 1 conversation.");
  await page.locator("#list .open").click();
  await page.locator(".message.user").waitFor();
});

test("an answer goes on while another conversation is open", async () => {
  await ask(page, "slow one");
  await page.waitForFunction(() => /w2/.test(document.querySelector(".message.live .markdown")?.textContent));
  await newChat();
  await say(page, "beta two");
  await entry("slow one").locator(".open").click();
  await page.waitForFunction(() => /w40/.test(document.querySelector(".message.live .markdown")?.textContent));
  await page.keyboard.press("Escape");
  await settled(page);
  assert.match(await lastAnswer(page).innerText(), /^w0 w1 [^]*Stopped\./);
});

test("a conversation deleted while its answer is written stays deleted", async () => {
  await ask(page, "slow one");
  await page.waitForFunction(() => /w2/.test(document.querySelector(".message.live .markdown")?.textContent));
  await act("slow one", "delete");
  await toast("Deleted");
  await say(page, "beta two");
  assert.deepEqual(await titles(), ["beta two"]);
  await page.reload();
  await entry("beta two").waitFor();
  assert.deepEqual(await titles(), ["beta two"]);
});

test("two tabs share conversations, and neither loses the other's", async () => {
  await say(page, "alpha one");
  const other = await context.newPage();
  await other.goto(page.url());
  await other.getByText("You said: alpha one").waitFor();
  await say(other, "from the other");
  await page.getByText("You said: from the other").waitFor();
  // Both write at once: each branches off the same message.
  await Promise.all([say(page, "left"), say(other, "right")]);
  await page.waitForFunction(() => document.querySelectorAll(".message").length >= 6);
  await page.reload();
  const file = await exported(() => page.locator("#export").click());
  const texts = Object.values(file.conversations[0].nodes).flatMap(({ parts }) => parts.map(({ text }) => text));
  for (const text of ["left", "right", "You said: left", "You said: right"]) assert.ok(texts.includes(text), text);
  await entry("alpha one").hover();
  await act("alpha one", "delete");
  await other.getByText("What is on your mind?").waitFor();
});

test("full or forbidden storage is said, and the conversation goes on", async () => {
  await page.evaluate(() => {
    IDBObjectStore.prototype.put = () => {
      throw new DOMException("full", "QuotaExceededError");
    };
  });
  await say(page, "hello");
  await toast("The browser's storage is full.");
  await say(page, "more");
  assert.equal(await answers(page).count(), 2);
  await check();
  await open({ before: (fresh) => fresh.addInitScript(() => {
    Object.defineProperty(window, "indexedDB", { get: () => { throw new DOMException("no", "SecurityError"); } });
    Object.defineProperty(window, "localStorage", { get: () => { throw new DOMException("no", "SecurityError"); } });
  }) });
  await toast("This browser keeps no conversations");
  await say(page, "hello");
  await newChat();
  await entry("hello").locator(".open").click();
  await page.getByText("You said: hello").waitFor();
});

test("colours follow the system until a scheme is chosen, with contrast enough", async () => {
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await say(page, "markdown");
  await say(page, "refused");
  const light = await background();
  const weak = () => page.evaluate(contrasts);
  assert.deepEqual(await weak(), []);
  await page.emulateMedia({ colorScheme: "dark" });
  const dark = await background();
  assert.notEqual(dark, light);
  assert.deepEqual(await weak(), []);
  await page.locator("#theme").click();
  assert.equal(await background(), light);
  await page.reload();
  assert.equal(await background(), light);
  assert.match(await page.locator("#theme").getAttribute("aria-label"), /light/);
  await page.locator("#theme").click();
  await page.locator("#theme").click();
  assert.equal(await background(), dark);
});

/** Texts on the page whose contrast is below WCAG's AA for small text. Runs in the page. */
function contrasts() {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (colour) => {
    const [r, g, b] = [...rgba(colour)].map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const weak = new Set();
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    let ground = element;
    while (ground && rgba(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
    const pair = [light(getComputedStyle(element).color), light(getComputedStyle(ground ?? document.body).backgroundColor)].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) weak.add(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
  }
  return [...weak];
}

test("controls have names, the answer is announced, focus shows", async () => {
  await say(page, "tools run");
  const nameless = await page.evaluate(() =>
    [...document.querySelectorAll("button, input, select, textarea")]
      .filter((control) => !control.getAttribute("aria-label") && !control.labels?.length && !control.textContent.trim())
      .map((control) => control.outerHTML));
  assert.deepEqual(nameless, []);
  assert.equal(await page.locator("#thread").getAttribute("aria-live"), "polite");
  assert.equal(await page.locator("h1").count(), 1);
  await page.locator("#new-chat").focus();
  await page.keyboard.press("Tab");
  assert.notEqual(await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle), "none");
  await page.locator("#open-settings").click();
  const ids = await page.evaluate(() => [...document.querySelectorAll("[aria-describedby], [aria-labelledby]")].flatMap((element) =>
    `${element.getAttribute("aria-describedby") ?? ""} ${element.getAttribute("aria-labelledby") ?? ""}`.trim().split(/\s+/)).filter((id) => !document.getElementById(id)));
  assert.deepEqual(ids, []);
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("#settings[open]").count(), 0);
  assert.equal(await page.evaluate(() => document.getAnimations().length), 0);
});

test("scrolling follows the answer until the reader scrolls away", async () => {
  await ask(page, "long slow");
  await page.waitForFunction(() => document.querySelectorAll(".live p").length > 60);
  const rest = () => page.evaluate(() => { const s = document.querySelector("#scroller"); return s.scrollHeight - s.scrollTop - s.clientHeight; });
  assert.ok((await rest()) < 60);
  await page.mouse.move(700, 400);
  await page.mouse.wheel(0, -600);
  await page.waitForFunction(() => !document.querySelector("#to-end").hidden);
  const top = await page.evaluate(() => document.querySelector("#scroller").scrollTop);
  const count = await page.locator(".live p").count();
  await page.waitForFunction((count) => document.querySelectorAll(".live p").length > count + 20, count);
  assert.equal(await page.evaluate(() => document.querySelector("#scroller").scrollTop), top);
  await page.locator("#to-end").click();
  await page.waitForFunction(() => document.querySelector("#to-end").hidden);
  assert.ok((await rest()) < 60);
  await page.keyboard.press("Escape");
  await settled(page);
});

test("a long text can be pasted and sent", async () => {
  // Not of thousands of lines: those alone take Chromium minutes, in any text area.
  const text = `${"A long line of pasted text. ".repeat(100)}\n`.repeat(80);
  await composer(page).focus();
  await page.keyboard.insertText(text);
  const box = await composer(page).boundingBox();
  assert.ok(box.height <= 330, `${box.height}`);
  await page.keyboard.press("Enter");
  await settled(page);
  assert.equal(mock.requests.at(-1).messages[0].content, text);
  await page.getByRole("button", { name: "Show all" }).click();
  await page.getByRole("button", { name: "Show less" }).click();
});

test("360 pixels are wide enough, with the list as a drawer", async () => {
  await check();
  await open({ context: { viewport: { width: 360, height: 640 }, hasTouch: true, isMobile: true } });
  await say(page, "markdown");
  const wide = () => page.evaluate(() => document.documentElement.scrollWidth);
  assert.equal(await wide(), 360);
  assert.equal(await page.locator("#side").isVisible(), false);
  await page.locator("#open-side").click();
  await entry("markdown").waitFor();
  assert.equal(await page.locator("#open-side").getAttribute("aria-expanded"), "true");
  await page.keyboard.press("Escape");
  await page.locator("#side").waitFor({ state: "hidden" });
  await page.locator("#open-side").click();
  await page.locator("#new-chat").click();
  await page.locator("#side").waitFor({ state: "hidden" });
  await page.locator("#open-settings").click();
  assert.equal(await wide(), 360);
  const button = await page.locator("#settings-save").boundingBox();
  assert.ok(button.x >= 0 && button.x + button.width <= 360 && button.y + button.height <= 640);
});
