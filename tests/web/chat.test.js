// Conversations with the mock server: streaming, figures, stopping, branching, errors, waiting, settings, keyboard.
import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { answers, ask, composer, lastAnswer, launch, openPage, say, settled } from "./harness.js";
import { startMock } from "./mock.js";

let mock, browser, page, check, start;
before(async () => ((browser = await launch()), (mock = await startMock()), (start = structuredClone(mock.state))));
after(async () => (await browser.close(), await mock.close()));
beforeEach(async () => {
  mock.requests.length = 0;
  mock.state = Object.assign(mock.state, structuredClone(start), { reply: undefined });
  ({ page, check } = await openPage(browser, mock.url));
});
afterEach(() => check());

const figures = () => lastAnswer(page).locator(".figures").innerText();
const userTexts = () => page.locator(".user-text").allInnerTexts();
const until = (what) => page.waitForFunction(what);
const tool = (message, label) => message.getByRole("button", { name: label, exact: true });
const setTo = async (values) => {
  await page.locator("#open-settings").click();
  for (const [label, value] of Object.entries(values)) await page.locator("#settings").getByLabel(label, { exact: true }).fill(value);
  await page.locator("#settings-save").click();
};

test("a message is sent, streamed and answered; figures are the server's", async () => {
  await ask(page, "hello\nyou");
  await settled(page);
  assert.match(await lastAnswer(page).locator(".markdown").innerText(), /^You said: hello\s+you$/);
  assert.equal(await figures(), "tiny-one · 12 (5 cached) + 42 tokens · 98.8 tok/s · first token 123 ms · prompt 351 tok/s");
  assert.deepEqual(mock.requests, [{ model: "tiny-one", messages: [{ role: "user", content: "hello\nyou" }], stream: true, stream_options: { include_usage: true } }]);
  await say(page, "again");
  assert.deepEqual(mock.requests[1].messages.map(({ role }) => role), ["user", "assistant", "user"]);
  assert.equal(mock.requests[1].messages[1].content, "You said: hello\nyou");
});

test("figures are measured where the server gives none", async () => {
  await say(page, "usage");
  assert.match(await figures(), /^tiny-one · 12 \+ 3 tokens · \d+\.\d tok\/s · first token \d+ ms$/);
  await say(page, "bare");
  assert.match(await figures(), /^tiny-one · ≈5 tokens · \d+\.\d tok\/s · first token \d+ ms$/);
});

test("text shows while it streams, and stop keeps what came", async () => {
  await ask(page, "slow");
  await until(() => /w5/.test(document.querySelector(".message.live .markdown")?.textContent));
  assert.equal(await lastAnswer(page).getAttribute("aria-busy"), "true");
  const aborted = mock.aborted;
  await page.getByRole("button", { name: "Stop" }).click();
  await settled(page);
  assert.match(await lastAnswer(page).innerText(), /^w0 w1 w2[^]*Stopped\./);
  assert.equal(await lastAnswer(page).getAttribute("aria-busy"), null);
  for (let tries = 0; mock.aborted === aborted && tries < 100; tries++) await page.waitForTimeout(20);
  assert.equal(mock.aborted, aborted + 1);
  await ask(page, "slow");
  await until(() => /w3/.test(document.querySelector(".message.live .markdown")?.textContent));
  await page.keyboard.press("Escape");
  await settled(page);
  assert.match(await lastAnswer(page).innerText(), /Stopped\./);
});

test("regenerating adds a version; versions can be looked through", async () => {
  mock.state.reply = "first version";
  await say(page, "question");
  mock.state.reply = "second version";
  await tool(lastAnswer(page), "Answer again").click();
  await settled(page);
  assert.equal(await answers(page).count(), 1);
  assert.equal(await lastAnswer(page).locator(".markdown").innerText(), "second version");
  assert.match(await lastAnswer(page).innerText(), /2\/2/);
  assert.deepEqual(mock.requests[1].messages, [{ role: "user", content: "question" }]);
  await tool(lastAnswer(page), "Previous version").click();
  assert.equal(await lastAnswer(page).locator(".markdown").innerText(), "first version");
  assert.ok(await tool(lastAnswer(page), "Previous version").isDisabled());
  await page.reload();
  await page.getByText("first version").waitFor();
  assert.equal(await page.getByText("second version").count(), 0);
});

test("editing an earlier message branches off from there", async () => {
  for (const text of ["one", "two", "three"]) await say(page, text);
  await page.locator(".message.user").nth(1).getByLabel("Edit").click();
  await page.getByLabel("Edit the message").fill("TWO");
  await page.getByLabel("Edit the message").press("Enter");
  await settled(page);
  assert.deepEqual(await userTexts(), ["one", "TWO"]);
  assert.deepEqual(mock.requests[3].messages.map(({ content }) => content), ["one", "You said: one", "TWO"]);
  await tool(page.locator(".message.user").nth(1), "Previous version").click();
  assert.deepEqual(await userTexts(), ["one", "two", "three"]);
  await page.locator(".message.user").nth(0).getByLabel("Edit").click();
  await page.getByLabel("Edit the message").press("Escape");
  assert.deepEqual(await userTexts(), ["one", "two", "three"]);
});

test("a message can be deleted, and brought back, and copied", async () => {
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  for (const text of ["one", "two"]) await say(page, text);
  await tool(lastAnswer(page), "Copy").click();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "You said: two");
  await tool(page.locator(".message.user").nth(1), "Delete").click();
  assert.deepEqual(await userTexts(), ["one"]);
  await page.getByRole("button", { name: "Undo" }).click();
  assert.deepEqual(await userTexts(), ["one", "two"]);
  await tool(page.locator(".message.user").nth(0), "Delete").click();
  assert.ok(await page.getByText("What is on your mind?").isVisible());
});

test("reasoning is folded away once the answer comes", async () => {
  await ask(page, "think");
  await until(() => document.querySelector(".reasoning[open]")?.textContent.includes("consider"));
  await settled(page);
  const reasoning = lastAnswer(page).locator(".reasoning");
  assert.match(await reasoning.locator("summary").innerText(), /^Thought for \d+\.\d s$/);
  assert.equal(await reasoning.getAttribute("open"), null);
  assert.equal(await lastAnswer(page).locator(".body > .markdown").innerText(), "The answer is 42.");
  await reasoning.locator("summary").click();
  assert.equal(await reasoning.locator("em").innerText(), "question");
  await say(page, "next");
  assert.equal(mock.requests[1].messages[1].content, "The answer is **42**.");
});

test("tool calls show folded, with arguments and the server's results", async () => {
  await say(page, "tools run");
  const [first, second] = await lastAnswer(page).locator(".tool").all();
  assert.match(await first.locator("summary").innerText(), /weather.*done/);
  assert.match(await second.locator("summary").innerText(), /clock.*failed/);
  assert.equal(await first.locator("pre").first().isVisible(), false);
  await first.locator("summary").click();
  assert.equal(await first.locator("pre").first().innerText(), '{\n  "city": "Bern",\n  "days": 2\n}');
  assert.equal(await first.locator("pre").last().innerText(), '{\n  "sky": "<b>clear</b>"\n}');
  await say(page, "and now");
  const sent = mock.requests[1].messages;
  assert.deepEqual(sent.map(({ role }) => role), ["user", "assistant", "tool", "tool", "assistant", "user"]);
  assert.equal(sent[1].tool_calls[0].function.arguments, '{"city":"Bern","days":2}');
  assert.equal(sent[2].tool_call_id, "call_a");
  await say(page, "tools only");
  await say(page, "after");
  assert.equal(mock.requests[3].messages.at(-2).tool_calls, undefined);
});

test("errors say what happened, keep what came, and can be tried again", async () => {
  for (const [text, shown] of [
    ["refused", /^top_k must be 0 or more, and is -1\./], ["broken", /^The answer broke off: The engine ran out of memory\./], ["html error", /^The server answered with status 502\./],
  ]) {
    await say(page, text);
    assert.match(await lastAnswer(page).locator(".error").innerText(), shown);
  }
  assert.match(await answers(page).nth(1).innerText(), /^This goes well until/);
  await say(page, "cut");
  assert.match(await lastAnswer(page).innerText(), /^This is only the beginning of\s+The connection ended before/);
  await say(page, "limit");
  assert.match(await lastAnswer(page).innerText(), /limit of tokens/);
  await page.route("**/v1/chat/completions", (route) => route.abort());
  await say(page, "gone");
  assert.match(await lastAnswer(page).locator(".error").innerText(), /cannot be reached/);
  await page.unroute("**/v1/chat/completions");
  await page.getByRole("button", { name: "Try again" }).last().click();
  await settled(page);
  assert.equal(await lastAnswer(page).locator(".markdown").innerText(), "You said: gone");
});

test("while the model loads its progress shows, and the question waits", async () => {
  mock.state.health = { status: "loading", progress: 0.25, message: "Loading weights" };
  await page.reload();
  await page.locator("#banner").getByText("Loading weights").waitFor();
  assert.equal(await page.locator("#banner-progress").evaluate((bar) => bar.value), 0.25);
  await ask(page, "hello");
  await lastAnswer(page).getByText("The model is loading… 25 %").waitFor();
  mock.state.health = { status: "ok" };
  await settled(page);
  assert.equal(await lastAnswer(page).locator(".markdown").innerText(), "You said: hello");
  await page.locator("#banner").waitFor({ state: "hidden" });
  await until(() => document.querySelector("#model").value === "tiny-one");
  mock.state.health = { status: "loading" };
  await ask(page, "never mind");
  await lastAnswer(page).getByText("The model is loading…").waitFor();
  await page.keyboard.press("Escape");
  await settled(page);
  assert.match(await lastAnswer(page).innerText(), /Stopped\./);
});

test("a model that cannot be loaded is said so", async () => {
  mock.state.health = { status: "error", message: "weights.gguf is damaged" };
  await page.reload();
  await page.locator("#banner").getByText("weights.gguf is damaged").waitFor();
  mock.state.health = { status: "ok" };
  await page.locator("#banner-retry").click();
  await page.locator("#banner").waitFor({ state: "hidden" });
});

test("a busy server is asked again when it says", async () => {
  mock.state.busy = 1;
  await ask(page, "hello");
  await lastAnswer(page).getByText(/The server is busy; trying again in 1 s/).waitFor();
  await settled(page);
  assert.equal(mock.requests.length, 2);
  assert.equal(await lastAnswer(page).locator(".markdown").innerText(), "You said: hello");
  mock.state.busy = 100;
  mock.state.retryAfter = "86400";
  await say(page, "later");
  assert.match(await lastAnswer(page).locator(".error").innerText(), /Too many requests/);
  const seconds = await page.evaluate(async () => (await import("/api.js")).retryAfter(new Date(Date.now() + 60000).toUTCString()));
  assert.ok(seconds > 50 && seconds <= 60);
});

test("an API key is asked for and kept for the tab", async () => {
  mock.state.key = "sesame";
  await page.reload();
  const dialog = page.locator("#key-dialog");
  await dialog.getByLabel("Key", { exact: true }).fill("wrong");
  await dialog.getByRole("button", { name: "Use key" }).click();
  await until(() => document.querySelector("#key-dialog[open]") && document.querySelector("#key-input").value === "");
  await dialog.getByLabel("Key", { exact: true }).fill("sesame");
  await page.keyboard.press("Enter");
  await until(() => document.querySelector("#model").value === "tiny-one");
  await say(page, "hello");
  assert.equal(await page.evaluate(() => sessionStorage.getItem("biplane.key")), "sesame");
  assert.equal(await page.evaluate(() => JSON.stringify(localStorage).includes("sesame")), false);
  mock.state.key = "other";
  await ask(page, "hello");
  await dialog.getByRole("button", { name: "Cancel" }).click();
  await settled(page);
  assert.match(await lastAnswer(page).locator(".error").innerText(), /wants an API key/);
});

test("only what is set is sent, and wrong values are refused", async () => {
  await setTo({ Temperature: "0.5", "Top-p": "0.9", "Top-k": "40", "Min-p": "0.05", "Repetition penalty": "1.1", "Most tokens": "64", Seed: "7", "System prompt": "Be brief.", "JSON schema of the answer": '{"type":"object"}' });
  await page.locator("#open-settings").click();
  await page.getByLabel("Thinking").selectOption("false");
  await page.locator("#settings-save").click();
  await say(page, "hello");
  const { model, stream, stream_options, messages, ...set } = mock.requests[0];
  assert.deepEqual(messages[0], { role: "system", content: "Be brief." });
  assert.deepEqual(set, {
    temperature: 0.5, top_p: 0.9, top_k: 40, min_p: 0.05, repetition_penalty: 1.1, max_tokens: 64, seed: 7, enable_thinking: false,
    response_format: { type: "json_schema", json_schema: { name: "answer", strict: true, schema: { type: "object" } } },
  });
  await page.locator("#open-settings").click();
  for (const [label, value, problem] of [["Top-p", "2", "Top-p must be 0 to 1."], ["Top-k", "1.5", "Top-k must be a whole number."], ["JSON schema of the answer", "{", "This is not JSON"]]) {
    await page.locator("#settings").getByLabel(label, { exact: true }).fill(value);
    await page.locator("#settings-save").click();
    await page.locator("#settings .problem", { hasText: problem }).waitFor();
    await page.locator("#settings").getByLabel(label, { exact: true }).fill("");
  }
  await page.locator("#settings-reset").click();
  await page.locator("#settings-save").click();
  await page.reload();
  await say(page, "again");
  assert.deepEqual(Object.keys(mock.requests[1]).sort(), ["messages", "model", "stream", "stream_options"]);
});

test("the chosen model is asked and remembered", async () => {
  await until(() => document.querySelector("#model").value === "tiny-one");
  await page.getByLabel("Model").selectOption("tiny-two");
  await say(page, "hello");
  await page.reload();
  await until(() => document.querySelector("#model").value === "tiny-two");
  await say(page, "hello");
  assert.deepEqual(mock.requests.map(({ model }) => model), ["tiny-two", "tiny-two"]);
});

test("keys: new line, focus, last message, new chat", async () => {
  await composer(page).fill("one");
  await composer(page).press("Shift+Enter");
  await page.keyboard.type("two");
  assert.equal(await composer(page).inputValue(), "one\ntwo");
  await composer(page).press("Enter");
  await settled(page);
  await composer(page).press("ArrowUp");
  assert.equal(await page.getByLabel("Edit the message").inputValue(), "one\ntwo");
  await page.keyboard.press("Escape");
  await page.locator("#theme").focus();
  await page.keyboard.press("/");
  assert.ok(await composer(page).evaluate((field) => field === document.activeElement && field.value === ""));
  await page.keyboard.press("Control+k");
  assert.equal(await page.locator(".message").count(), 0);
  await composer(page).press("Enter");
  assert.equal(mock.requests.length, 1);
});
