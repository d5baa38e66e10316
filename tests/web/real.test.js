// The part that also holds for a real server: BASE_URL=http://127.0.0.1:8080/ node --test real.test.js
import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { answers, ask, lastAnswer, launch, openPage, say, settled } from "./harness.js";
import { startMock } from "./mock.js";

const base = process.env.BASE_URL;
let mock, browser, page, check;
before(async () => ([mock, browser] = [base ? null : await startMock(), await launch()]));
after(async () => (await browser.close(), await mock?.close()));
beforeEach(async () => {
  ({ page, check } = await openPage(browser, base ? new URL("./", base).href : mock.url));
  page.setDefaultTimeout(120000);
});
afterEach(() => check());

test("the page is served under the policy", async () => {
  const response = await page.reload();
  const policy = response.headers()["content-security-policy"] ?? "";
  for (const part of ["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"]) assert.ok(policy.includes(part), part);
  await page.waitForFunction(() => document.querySelector("#model").value !== "");
});

test("a message is sent and answered, with figures", async () => {
  await say(page, "hello");
  assert.equal(await lastAnswer(page).locator(".error").count(), 0);
  assert.ok((await lastAnswer(page).locator(".markdown").innerText()).trim() !== "");
  assert.match(await lastAnswer(page).locator(".figures").innerText(), /\d+ \+ \d+ tokens · .*first token|\d+ \(\d+ cached\) \+ \d+ tokens · .*first token/);
});

test("an answer is streamed and can be stopped", async () => {
  await ask(page, "slow: tell me a very long story about a sailor, in many chapters.");
  await page.waitForFunction(() => document.querySelector(".message.live .markdown")?.textContent.length > 10);
  await page.locator("#stop").click();
  await settled(page);
  assert.match(await lastAnswer(page).innerText(), /Stopped\./);
});

test("an answer can be made again", async () => {
  await say(page, "hello");
  await lastAnswer(page).getByRole("button", { name: "Answer again", exact: true }).click();
  await settled(page);
  assert.equal(await answers(page).count(), 1);
  assert.match(await lastAnswer(page).innerText(), /2\/2/);
  assert.equal(await lastAnswer(page).locator(".error").count(), 0);
});
