// Embeddings, decisions, narrow windows, and axe's rules for every view, light and dark.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { answer, assertSound, click, launch, openPage, send, texts } from "./browser.mjs";

const AXE = readFileSync(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf8");
const RICH =
  '# Title\n\nText with `code`, [a link](https://example.com) and **more**.\n\n- one\n- two\n\n```python\n# comment\ndef f(a): return "x" + 1\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n> quote';

let browser;
before(async () => (browser = await launch()));
after(() => browser?.close());

test("embeddings become a table of cosines", async () => {
  const page = await openPage(browser, { path: "/#embeddings" });
  await page
    .locator("#embedding-texts")
    .fill("A man is eating food.\nSomeone is having a meal.\nThe stock market fell.");
  await click(page, "#embeddings button.primary");
  await page.waitForSelector(".heat-map");
  const cells = (await texts(page, ".heat-map tbody td")).map(Number);
  assert.equal(cells.length, 9);
  assert.deepEqual([cells[0], cells[4], cells[8]], [1, 1, 1]);
  assert.equal(cells[1], cells[3]);
  assert.ok(cells[1] > cells[2] && cells[1] > cells[5]);
  await page.locator("#embedding-texts").fill("One");
  await click(page, "#embeddings button.primary");
  await page.waitForFunction(
    () => document.querySelector("#embeddings .error-text")?.innerText === "Enter two texts or more.",
  );
  assertSound(page);
});

test("decisions of every kind have probabilities that add up", async () => {
  const page = await openPage(browser, { path: "/#decisions" });
  await click(page, "#decisions button.primary");
  await page.waitForSelector(".decision");
  assert.deepEqual(await texts(page, ".decision h3"), [
    "It is a complaint.",
    "Which team should answer?",
    "How urgent is it?",
  ]);
  const values = await page.$$eval(".decision", (sections) =>
    sections.map((section) =>
      [...section.querySelectorAll(".bar-value")].map(({ innerText }) => parseFloat(innerText)),
    ),
  );
  assert.deepEqual(
    values.map(({ length }) => length),
    [2, 3, 3],
  );
  for (const shares of values) assert.ok(Math.abs(shares.reduce((sum, share) => sum + share) - 100) < 0.5, `${shares}`);
  await page.focus('.question:nth-child(2) [aria-label="Remove this question"]');
  await page.keyboard.press("Enter");
  await click(page, "#decisions button.primary");
  await page.waitForFunction(() => document.querySelectorAll(".decision").length === 2);
  assertSound(page);
});

test("nothing is wider than a phone of 360 pixels, and the panels are drawers", async () => {
  const page = await openPage(browser, {
    width: 360,
    height: 640,
    respond: () => answer([{ content: `${RICH}\n\n${"long".repeat(100)}` }]),
  });
  await send(page, `Question ${"x".repeat(200)}`);
  for (const path of ["#chat", "#embeddings", "#decisions"]) {
    await click(page, `.top-bar nav a[href^="${path}"]`);
    await page.waitForSelector(`${path}:not([hidden])`);
    if (path !== "#chat") {
      await click(page, `${path} button.primary`);
      await page.waitForSelector(`${path} :is(.heat-map, .decision)`);
    }
    const wide = await page.evaluate(() =>
      [document.documentElement, ...document.querySelectorAll(".view, #log, #main")]
        .filter((element) => element.scrollWidth > element.clientWidth + 1)
        .map(({ id, localName }) => id || localName),
    );
    assert.deepEqual(wide, [], path);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= 360));
  }
  await click(page, '.top-bar [aria-label="Conversations"]');
  assert.equal(await page.$eval("#main", ({ inert }) => inert), true);
  assert.ok(await page.evaluate(() => document.activeElement.closest("#sidebar")));
  await page.keyboard.press("Escape");
  assert.equal(await page.$eval("#sidebar", ({ hidden }) => hidden), true);
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Conversations");
  await click(page, '.top-bar [aria-label="Server and settings"]');
  assert.equal(await page.$eval("#settings", ({ hidden }) => hidden), false);
  await page.mouse.click(20, 400);
  assert.equal(await page.$eval("#settings", ({ hidden }) => hidden), true);
  assertSound(page);
});

test("the keyboard reaches the content past the bar, and a new chat is ready for typing", async () => {
  const page = await openPage(browser);
  await page.evaluate(() => document.activeElement.blur());
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip-link");
  await click(page, ".new-chat");
  assert.equal(await page.evaluate(() => document.activeElement.id), "message");
  assertSound(page);
});

for (const dark of [false, true]) {
  for (const width of [1280, 360]) {
    test(`axe finds nothing serious, ${dark ? "dark" : "light"}, ${width} pixels`, async () => {
      const token = {
        token: "Yes",
        logprob: -0.1,
        bytes: [89],
        top_logprobs: [
          { token: "Yes", logprob: -0.1, bytes: [89] },
          { token: "No", logprob: -3, bytes: [78] },
        ],
      };
      const unlikely = { ...token, token: "No", logprob: -5 };
      const responses = [
        answer([{ content: RICH }]),
        answer([{ content: "Yes" }, { content: "No" }], {
          logprobs: [token, unlikely],
          finish: "length",
          headers: { "x-ignored-params": "x" },
        }),
      ];
      const page = await openPage(browser, {
        dark,
        width,
        respond: () => responses.shift() ?? { status: 500, body: "{}" },
      });
      await assertAccessible(page, "no conversation");
      await send(page, "Question");
      await assertAccessible(page, "an answer");
      if (width > 360) {
        await page.evaluate(() =>
          document.querySelectorAll("#settings details").forEach((details) => (details.open = true)),
        );
        await page.locator("#settings .check input").click();
      }
      await send(page, "Question");
      await send(page, "Question");
      await assertAccessible(page, "probabilities and an error");
      for (const view of ["embeddings", "decisions"]) {
        await click(page, `.top-bar nav a[href="#${view}"]`);
        await click(page, `#${view} button.primary`);
        await page.waitForSelector(`#${view} :is(.heat-map, .decision)`);
        await assertAccessible(page, view);
      }
      if (width === 360) {
        await click(page, '.top-bar [aria-label="Conversations"]');
        await assertAccessible(page, "the drawer of conversations");
        await click(page, '.top-bar [aria-label="Server and settings"]');
        await assertAccessible(page, "the drawer of settings");
      }
      assertSound(page);
    });
  }
}

/** Runs axe in the page. The protocol of the browser evaluates its source, whatever the page's policy allows. */
async function assertAccessible(page, name) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  const grave = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  const found = grave.map(({ id, nodes }) => [
    id,
    ...nodes.map(({ target, failureSummary }) => `${target}: ${failureSummary}`),
  ]);
  assert.deepEqual(found, [], name);
}
