// A chat, its answer and a reload in Firefox, whose program is FIREFOX.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import puppeteer from "puppeteer-core";
import { answered, lastAnswer, load, PAGE, set, texts } from "./browser.mjs";

let browser;
before(async () => (browser = await puppeteer.launch({ browser: "firefox", executablePath: process.env.FIREFOX })));
after(() => browser?.close());

test("a message is answered and kept, and the other views work", async () => {
  const page = await browser.newPage();
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  await page.setViewport({ width: 1280, height: 800 });
  await load(page, "/");
  await set(page, "max_tokens", "12");
  await page.type("#message", "Name three rivers.");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".message.assistant");
  await answered(page);
  const text = await lastAnswer(page);
  assert.ok(text);
  await set(page, "max_tokens", "7000");
  await page.select("#setting-ignore_eos", "yes");
  await page.type("#message", "Write a long story.");
  await page.keyboard.press("Enter");
  await page.waitForFunction(
    () => [...document.querySelectorAll(".message.assistant .markdown")][1]?.textContent.length > 20,
  );
  await page.keyboard.press("Escape");
  await answered(page);
  assert.match((await texts(page, ".statistics")).at(-1), /stopped by you/);
  await page.reload();
  await page.waitForSelector(".message.assistant .statistics");
  assert.equal((await texts(page, ".message.assistant .markdown"))[0], text);
  await page.goto(`${PAGE}/#embeddings`);
  await page.waitForSelector("#embeddings:not([hidden]) select option");
  await page.locator("#embeddings button.primary").click();
  await page.waitForSelector(".heat-map");
  assert.deepEqual(problems, []);
});
