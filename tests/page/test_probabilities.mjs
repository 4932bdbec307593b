// Probabilities of tokens: tints, tooltips, alternatives, and a branch from one that is chosen.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { answer, answered, assertSound, click, lastAnswer, launch, openPage, send, set, texts } from "./browser.mjs";

let browser;
before(async () => (browser = await launch()));
after(() => browser?.close());

const bytes = (text) => [...new TextEncoder().encode(text)];
const candidate = (token, probability) => ({ token, logprob: Math.log(probability), bytes: bytes(token) });
const token = (text, probability, ...others) => ({
  ...candidate(text, probability),
  top_logprobs: [candidate(text, probability), ...others],
});
const TOKENS = [
  token("The", 0.95),
  token(" cat", 0.5, candidate(" dog", 0.3), { token: "\ufffd", logprob: -3, bytes: [0xf0] }),
  token(" sat", 0.05),
];

const respond = ({ continue_final_message: isContinued }) =>
  isContinued
    ? answer([{ content: " ran" }], { logprobs: [token(" ran", 0.7)] })
    : answer(
        TOKENS.map(({ token: content }) => ({ content })),
        { logprobs: TOKENS },
      );

const openWithTokens = async (options) => {
  const page = await openPage(browser, options);
  await page.locator("#settings .check input").click();
  return page;
};

test("tokens are tinted and have a tooltip, by keyboard, too", async () => {
  const page = await openWithTokens({ respond });
  await send(page, "Go");
  assert.equal(page.bodies[0].logprobs, true);
  assert.equal(page.bodies[0].top_logprobs, 5);
  const classes = await page.$$eval(".token", (tokens) => tokens.map(({ className }) => className));
  assert.deepEqual(classes, ["token tint-0", "token tint-2", "token tint-4"]);
  await page.focus(".token");
  await page.keyboard.press("ArrowRight");
  assert.deepEqual(await texts(page, "[role=tooltip]:not([hidden])"), ["␣cat 50.0%, number 1 of the likeliest"]);
  await page.keyboard.press("End");
  assert.deepEqual(await texts(page, "[role=tooltip]:not([hidden])"), ["␣sat 5.0%, number 1 of the likeliest"]);
  await page.keyboard.press("Escape");
  assert.equal(await page.$("[role=tooltip]:not([hidden])"), null);
  await page.hover(".token:nth-child(2)");
  await page.waitForSelector("[role=tooltip]:not([hidden])");
  assertSound(page);
});

test("an alternative begins a branch, and a part of a character cannot be chosen", async () => {
  const page = await openWithTokens({ respond });
  await send(page, "Go");
  await page.focus(".token");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("Enter");
  const rows = await page.$$eval(".token-card:popover-open button", (buttons) =>
    buttons.map(({ innerText, disabled }) => [innerText.replace(/\s+/g, " ").trim(), disabled]),
  );
  assert.deepEqual(rows, [
    ["␣cat 50.0%", true],
    ["␣dog 30.0%", false],
    ["\ufffd 5.0%", true],
  ]);
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector(".assistant .branch")?.innerText === "2/2");
  await answered(page);
  assert.equal(await lastAnswer(page), "The dog ran");
  assert.deepEqual(page.bodies[1].messages.at(-1), { role: "assistant", content: "The dog" });
  assert.equal(page.bodies[1].continue_final_message, true);
  assert.equal(page.bodies[1].add_generation_prompt, false);
  await page.locator("#settings .check input").click();
  await page.waitForSelector(".assistant .markdown");
  assert.equal(await page.$(".token"), null);
  assertSound(page);
});

test("the server's own tokens are the text, and an alternative is continued by the model", async () => {
  const page = await openWithTokens();
  await set(page, "max_tokens", "8");
  await set(page, "temperature", "0");
  await send(page, "Name a city.");
  const before = await page.$eval(".tokens", ({ textContent }) => textContent);
  await click(page, ".token:nth-child(3)");
  const alternative = await page.$(".token-card:popover-open button:not(:disabled)");
  await alternative.click();
  await page.waitForFunction(() => document.querySelector(".assistant .branch")?.innerText === "2/2");
  await answered(page);
  const after = await page.$eval(".tokens", ({ textContent }) => textContent);
  assert.notEqual(after, before);
  const two = await page.$$eval(".token", (tokens) =>
    tokens
      .slice(0, 2)
      .map(({ textContent }) => textContent)
      .join(""),
  );
  assert.ok(before.startsWith(two) && after.startsWith(two));
  assertSound(page);
});
