// A headless Chromium whose pages count what must never happen: violations of the policy, errors, foreign requests.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { chromium } from "playwright-core";

const PATHS = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

export async function launch() {
  const executablePath = PATHS.find((path) => path && existsSync(path));
  if (!executablePath) throw new Error("No Chromium found: install the package chromium, or set CHROMIUM to its path.");
  return chromium.launch({ executablePath, args: ["--no-sandbox"] });
}

/** A page of a new context at `url`; `check` fails when something forbidden happened on it. */
export async function openPage(browser, url, { context: options = {}, hash = "", before = () => {} } = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 800 }, reducedMotion: "reduce", ...options });
  context.setDefaultTimeout(15000);
  const bad = [];
  watch(context, url, bad);
  const page = await context.newPage();
  await before(page);
  await page.goto(url + hash);
  const check = async () => {
    for (const each of context.pages()) bad.push(...(await each.evaluate(() => window.violations ?? [])));
    assert.deepEqual(bad, []);
    await context.close();
  };
  return { page, context, check };
}

function watch(context, url, bad) {
  const origin = new URL(url).origin;
  context.addInitScript(() => {
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
  });
  context.on("request", (request) => {
    const target = new URL(request.url());
    if (target.protocol.startsWith("http") && target.origin !== origin) bad.push(`request to ${request.url()}`);
  });
  context.on("weberror", (error) => bad.push(`error: ${error.error().stack}`));
  context.on("console", (message) => {
    if (message.type() === "error" && /Content.Security.Policy|Refused|Uncaught/.test(message.text())) bad.push(message.text());
  });
}

export const composer = (page) => page.getByLabel("Message", { exact: true });
export const answers = (page) => page.locator(".message.assistant");
export const lastAnswer = (page) => answers(page).last();

export async function ask(page, text) {
  await composer(page).fill(text);
  await composer(page).press("Enter");
}

/** Waits until no answer is being written. */
export async function settled(page) {
  await page.locator("#stop").waitFor({ state: "hidden" });
  await page.locator(".message.live").waitFor({ state: "detached" });
}

export async function say(page, text) {
  await ask(page, text);
  await settled(page);
}
