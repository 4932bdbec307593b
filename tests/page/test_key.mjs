// A server that needs an API key.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { assertSound, click, KEY, lastAnswer, launch, load, openPage, send, set, texts } from "./browser.mjs";

let browser;
before(async () => (browser = await launch()));
after(() => browser?.close());

async function enter(page, key, isRemembered = false) {
  await page.waitForSelector("dialog[open]");
  await page.locator("dialog input[type=password]").fill(key);
  if (isRemembered) await click(page, "dialog input[type=checkbox]");
  await page.focus("dialog input[type=password]");
  await page.keyboard.press("Enter");
}

const kept = (page) => page.evaluate(() => [sessionStorage.getItem("api-key"), localStorage.getItem("api-key")]);

test("the page asks for the key, again if it is wrong, and keeps it until the tab is closed", async () => {
  const page = await openPage(browser);
  await enter(page, "sk-wrong");
  await page.waitForFunction(() => document.querySelector("dialog .error-text"));
  assert.equal((await page.$$("dialog")).length, 1);
  await enter(page, KEY);
  await page.waitForSelector("#model option");
  assert.deepEqual(await kept(page), [JSON.stringify(KEY), null]);
  await set(page, "max_tokens", "3");
  await send(page, "Hello");
  assert.ok(await lastAnswer(page));
  await page.waitForFunction(() => document.querySelector(".server-panel").innerText.includes("1 chat model loaded"));
  await load(page, "/");
  assert.equal(await page.$("dialog[open]"), null);
  const other = await page.browserContext().newPage();
  await other.goto(page.url());
  await other.waitForSelector("dialog[open]");
  assertSound(page);
});

test("a key that is remembered is there in another tab", async () => {
  const page = await openPage(browser);
  await enter(page, KEY, true);
  await page.waitForSelector("#model option");
  assert.deepEqual(await kept(page), [null, JSON.stringify(KEY)]);
  const other = await page.browserContext().newPage();
  await other.goto(page.url());
  await other.waitForSelector("#model option");
  assertSound(page);
});

test("without a key the page says what is missing, and asks again", async () => {
  const page = await openPage(browser);
  await page.waitForSelector("dialog[open]");
  await page.keyboard.press("Escape");
  await page.waitForSelector(".banner");
  assert.match((await texts(page, ".banner"))[0], /needs a valid API key/);
  await click(page, ".banner button");
  await enter(page, KEY);
  await page.waitForSelector("#model option");
  assert.equal(await page.$(".banner"), null);
  assertSound(page);
});
