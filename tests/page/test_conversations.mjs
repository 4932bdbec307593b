// The list of conversations: search, rename, delete, export and import.

import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { answer, assertSound, click, lastAnswer, launch, openPage, send, texts } from "./browser.mjs";

let browser;
before(async () => (browser = await launch()));
after(() => browser?.close());

const respond = ({ messages }) => answer([{ content: `Echo of ${messages.at(-1).content}` }]);
const titles = (page) => texts(page, ".conversations a");

async function openTwo() {
  const page = await openPage(browser, { respond });
  await send(page, "Apples");
  await click(page, ".new-chat");
  await send(page, "Pears and plums");
  return page;
}

test("a search finds words of titles and messages", async () => {
  const page = await openTwo();
  assert.deepEqual(await titles(page), ["Pears and plums", "Apples"]);
  for (const [search, found] of [
    ["plums", ["Pears and plums"]],
    ["ECHO apples", ["Apples"]],
    ["echo", ["Pears and plums", "Apples"]],
    ["cherries", []],
  ]) {
    await page.locator("#sidebar input[type=search]").fill(search);
    assert.deepEqual(await titles(page), found, search);
  }
  assert.match((await texts(page, "#sidebar .note"))[0], /No conversation/);
  assertSound(page);
});

test("a conversation is renamed by keyboard, opened and deleted", async () => {
  const page = await openTwo();
  await page.focus('[aria-label="Rename Apples"]');
  await page.keyboard.press("Enter");
  await page.keyboard.type("Fruit");
  await page.keyboard.press("Enter");
  await page.waitForSelector('[aria-label="Rename Fruit"]');
  assert.deepEqual(await titles(page), ["Pears and plums", "Fruit"]);
  await page.locator('.conversations a[title="Fruit"]').click();
  await page.waitForFunction(() => document.querySelector(".user .markdown").innerText === "Apples");
  await page.focus('[aria-label="Delete Fruit"]');
  await page.keyboard.press("Enter");
  await page.waitForSelector("dialog[open]");
  await page.keyboard.press("Escape");
  assert.deepEqual(await titles(page), ["Pears and plums", "Fruit"]);
  await page.focus('[aria-label="Delete Fruit"]');
  await page.keyboard.press("Enter");
  await click(page, "dialog button.primary");
  await page.waitForSelector(".empty");
  assert.deepEqual(await titles(page), ["Pears and plums"]);
  await page.reload();
  await page.waitForSelector(".conversations a");
  assert.deepEqual(await titles(page), ["Pears and plums"]);
  assertSound(page);
});

test("conversations are exported, and imported as copies", async () => {
  const page = await openTwo();
  const folder = mkdtempSync(join(tmpdir(), "page-"));
  const session = await page.createCDPSession();
  await session.send("Browser.setDownloadBehavior", {
    behavior: "allow",
    downloadPath: folder,
    browserContextId: page.browserContext().id,
  });
  await click(page, ".sidebar-foot button:first-child");
  const file = await downloaded(folder, "conversations.json");
  assert.equal(JSON.parse(readFileSync(file)).conversations.length, 2);
  await page.focus('[aria-label="Export Apples"]');
  await page.keyboard.press("Enter");
  const one = await downloaded(folder, "Apples.json");

  const other = await openPage(browser, { respond });
  const picker = await other.$("#import-file");
  await picker.uploadFile(file);
  await other.waitForFunction(() => document.querySelector("#sidebar .note").innerText === "Imported 2 conversations.");
  await picker.uploadFile(one);
  await other.waitForFunction(() => document.querySelector("#sidebar .note").innerText === "Imported 1 conversation.");
  assert.deepEqual(await titles(other), ["Pears and plums", "Apples", "Apples"]);
  await other.locator(".conversations li:last-child a").click();
  await other.waitForSelector(".message.assistant");
  assert.equal(await lastAnswer(other), "Echo of Apples");
  writeFileSync(join(folder, "broken.json"), '{"conversations": 1}');
  await picker.uploadFile(join(folder, "broken.json"));
  await other.waitForFunction(() =>
    document.querySelector("#sidebar .note").innerText.startsWith("This file has no conversations"),
  );
  assert.equal((await titles(other)).length, 3);
  assertSound(page);
  assertSound(other);
});

test("another tab shows what one has saved", async () => {
  const page = await openPage(browser, { respond });
  const other = await page.browserContext().newPage();
  await other.goto(page.url());
  await other.waitForSelector("#model option");
  await page.bringToFront();
  await send(page, "Seen elsewhere");
  await other.bringToFront();
  await other.waitForSelector('.conversations a[title="Seen elsewhere"]');
  assertSound(page);
});

/** The path of a file, once it is there. */
async function downloaded(folder, name) {
  for (let tries = 0; !readdirSync(folder).includes(name); tries += 1) {
    assert.ok(tries < 50, `no ${name} among ${readdirSync(folder)}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return join(folder, name);
}
