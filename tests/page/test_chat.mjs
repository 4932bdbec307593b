// Chats in Chromium: with the server's model, and with faked answers where the text matters.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import {
  answer,
  answered,
  assertSound,
  click,
  failure,
  lastAnswer,
  launch,
  load,
  openPage,
  PAGE,
  send,
  set,
  texts,
} from "./browser.mjs";

let browser;
before(async () => (browser = await launch()));
after(() => browser?.close());

const numbered = () => {
  let count = 0;
  return () => answer([{ content: `Answer ${(count += 1)}.` }]);
};

test("the page has the headers that keep other code out", async () => {
  const page = await openPage(browser);
  const headers = page.response.headers();
  for (const part of [
    "default-src 'none'",
    "script-src 'self'",
    "require-trusted-types-for 'script'",
    "frame-ancestors 'none'",
  ]) {
    assert.ok(headers["content-security-policy"].includes(part), part);
  }
  assert.equal(headers["x-frame-options"], "DENY");
  assert.equal(headers["x-content-type-options"], "nosniff");
  assert.equal(headers["referrer-policy"], "no-referrer");
  const html = await page.response.text();
  assert.doesNotMatch(html, /<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=/);
  assertSound(page);
});

test("a message is answered, with numbers, and the conversation is there after a reload", async () => {
  const page = await openPage(browser);
  await set(page, "max_tokens", "12");
  // Answers are drawn at random, and one may end before its limit.
  await page.select("#setting-ignore_eos", "yes");
  await send(page, "Name three rivers.");
  const text = await lastAnswer(page);
  assert.ok(text);
  const [statistics] = await texts(page, ".statistics");
  assert.match(statistics, /speed\s+[\d.]+ tokens\/s/);
  assert.match(statistics, /first token\s+[\d.]+ s/);
  assert.match(statistics, /answer\s+12 tokens/);
  assert.match(statistics, /stopped at the token limit/);
  await load(page, "/");
  assert.deepEqual(await texts(page, ".conversations a"), ["Name three rivers."]);
  await click(page, ".conversations a");
  await page.waitForSelector(".message.assistant");
  assert.equal(await lastAnswer(page), text);
  await page.reload();
  await page.waitForSelector(".message.assistant");
  assert.equal(await lastAnswer(page), text);
  assertSound(page);
});

test("an answer is streamed, and Escape stops it", async () => {
  const page = await openPage(browser);
  await page.select("#setting-ignore_eos", "yes");
  await page.locator("#message").fill("Write a long story about a river.");
  await page.focus("#message");
  await page.keyboard.press("Enter");
  const lengths = new Set();
  while (lengths.size < 5) {
    lengths.add(await page.$$eval(".message.assistant .markdown", (found) => found.at(-1)?.textContent.length ?? 0));
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.ok(await page.$('.composer button[aria-label="Stop"]'));
  await page.keyboard.press("Escape");
  await answered(page);
  assert.match((await texts(page, ".statistics")).at(-1), /stopped by you/);
  assert.ok((await lastAnswer(page)).length >= Math.max(...lengths) - 1);
  assert.match(await page.$eval("#announcer", (region) => region.textContent), /Stopped\.$/);
  assertSound(page);
});

test("the conversation is sent with the answers and the system prompt; only changed parameters are", async () => {
  const page = await openPage(browser, { respond: numbered() });
  await set(page, "system", "Be brief.");
  await set(page, "temperature", "0.5");
  await send(page, "One");
  await send(page, "Two");
  const { messages, model, ...options } = page.bodies[1];
  assert.deepEqual(messages, [
    { role: "system", content: "Be brief." },
    { role: "user", content: "One" },
    { role: "assistant", content: "Answer 1." },
    { role: "user", content: "Two" },
  ]);
  assert.equal(model, "smollm2-135m-instruct");
  assert.deepEqual(options, { temperature: 0.5, stream: true, stream_options: { include_usage: true } });
  assertSound(page);
});

test("regenerating and editing add branches, and the switch shows each of them", async () => {
  const page = await openPage(browser, { respond: numbered() });
  await send(page, "Question");
  await click(page, '.assistant [aria-label="Regenerate"]');
  await page.waitForFunction(() => document.querySelector(".assistant .branch")?.innerText === "2/2");
  await answered(page);
  assert.equal(await lastAnswer(page), "Answer 2.");
  await click(page, '.assistant [aria-label="Previous version"]');
  assert.equal(await lastAnswer(page), "Answer 1.");
  assert.deepEqual(await texts(page, ".branch"), ["1/2"]);
  await click(page, '.user [aria-label="Edit"]');
  await page.locator(".inline-form textarea").fill("Other question");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector(".user .branch")?.innerText === "2/2");
  await answered(page);
  assert.equal(await lastAnswer(page), "Answer 3.");
  assert.deepEqual(page.bodies[2].messages, [{ role: "user", content: "Other question" }]);
  // The keyboard stays where it was, so that the versions can be walked through.
  await page.focus('.user [aria-label="Previous version"]');
  await page.keyboard.press("Enter");
  assert.deepEqual(await texts(page, ".user .markdown"), ["Question"]);
  assert.equal(await lastAnswer(page), "Answer 1.");
  await page.reload();
  await page.waitForSelector(".message.assistant");
  assert.deepEqual(await texts(page, ".branch"), ["1/2", "1/2"]);
  assertSound(page);
});

test("an answer at the token limit can be continued", async () => {
  const respond = (body) =>
    body.continue_final_message ? answer([{ content: " and on." }]) : answer([{ content: "On" }], { finish: "length" });
  const page = await openPage(browser, { respond });
  await send(page, "Go");
  await click(page, '.assistant [aria-label="Continue"]');
  await page.waitForFunction(() => document.querySelector(".assistant .branch")?.innerText === "2/2");
  await answered(page);
  assert.equal(await lastAnswer(page), "On and on.");
  assert.equal(page.bodies[1].add_generation_prompt, false);
  assert.deepEqual(page.bodies[1].messages.at(-1), { role: "assistant", content: "On" });
  assertSound(page);
});

test("reasoning is folded, cached tokens, accepted drafts and ignored parameters are shown", async () => {
  const deltas = [{ role: "assistant", content: "" }, { reasoning_content: "I think." }, { content: "Yes." }];
  const page = await openPage(browser, { respond: () => answer(deltas, { headers: { "x-ignored-params": "top_k" } }) });
  await send(page, "Question");
  assert.equal(await page.$eval(".reasoning", (details) => details.open), false);
  await click(page, ".reasoning summary");
  assert.deepEqual(await texts(page, ".reasoning-text"), ["I think."]);
  assert.equal(await lastAnswer(page), "Yes.");
  const [statistics] = await texts(page, ".statistics");
  assert.match(statistics, /cached\s+7/);
  assert.match(statistics, /drafts accepted\s+2/);
  assert.ok((await texts(page, ".message .note")).includes("Parameters without effect: top_k"));
  assertSound(page);
});

test("calls are shown, and their results are sent", async () => {
  const call = (piece) => ({ tool_calls: [{ index: 0, ...piece }] });
  const deltas = [
    call({ id: "call_1", type: "function", function: { name: "get_weather", arguments: '{"city":' } }),
    call({ function: { arguments: '"Rome"}' } }),
  ];
  const respond = ({ messages }) =>
    messages.at(-1).role === "tool" ? answer([{ content: "It is warm." }]) : answer(deltas, { finish: "tool_calls" });
  const page = await openPage(browser, { respond });
  await set(page, "tools", '[{"name": "get_weather", "parameters": {"type": "object"}}]');
  await send(page, "How warm is it in Rome?");
  assert.equal(page.bodies[0].tools[0].function.name, "get_weather");
  const [shown] = await texts(page, ".call");
  assert.match(shown, /Calls get_weather/);
  assert.match(shown, /\{\n  "city": "Rome"\n\}/);
  await page.locator(".inline-form textarea").fill("20 degrees");
  await click(page, ".inline-form button.primary");
  await page.waitForFunction(() => document.body.innerText.includes("It is warm."));
  assert.deepEqual(page.bodies[1].messages.slice(1), [
    {
      role: "assistant",
      content: "",
      tool_calls: [{ id: "call_1", type: "function", function: { name: "get_weather", arguments: '{"city":"Rome"}' } }],
    },
    { role: "tool", tool_call_id: "call_1", content: "20 degrees" },
  ]);
  assertSound(page);
});

test("errors are told in plain English, and can be tried again", async () => {
  const responses = [
    failure(429, "the queue is full", { "retry-after": "3" }),
    failure(400, "`temperature` is 9; it must be from 0 to 2"),
    failure(503, "the server is shutting down"),
    answer([{ content: "Better." }]),
  ];
  const page = await openPage(browser, { respond: () => responses.shift() });
  await send(page, "Question");
  const expected = [
    "The server is busy. The queue is full. Try again in 3 s.",
    "`temperature` is 9; it must be from 0 to 2.",
    "The server cannot answer at the moment. The server is shutting down.",
  ];
  for (const text of expected) {
    assert.deepEqual(await texts(page, ".message .error p"), [text]);
    await click(page, ".message .error button");
    await page.waitForFunction((before) => document.querySelector(".message .error p")?.innerText !== before, {}, text);
    await answered(page);
  }
  assert.equal(await lastAnswer(page), "Better.");
  assert.deepEqual(await texts(page, ".branch"), []);
  assertSound(page);
});

test("a lost connection is told, too, and what came before is kept", async () => {
  const page = await openPage(browser, {
    respond: () => ({ ...answer([]), body: 'data: {"choices": [{"delta": {"content": "Half"}}]}\n\n' }),
  });
  await send(page, "Question");
  assert.equal(await lastAnswer(page), "Half");
  assert.deepEqual(await texts(page, ".message .error p"), ["The connection ended before the answer did."]);
  assertSound(page);
  const lost = await openPage(browser);
  await lost.setOfflineMode(true);
  await send(lost, "Question");
  assert.deepEqual(await texts(lost, ".message .error p"), ["The server cannot be reached. Is it running?"]);
});

test("files are attached as fenced blocks; those that are too large are refused with the limit", async () => {
  const page = await openPage(browser, { respond: numbered() });
  const picker = await page.$('input[type="file"][multiple]');
  await attach(picker, "notes.py", "print('``` inside')\n");
  await page.waitForSelector(".chips li");
  await attach(picker, "large.txt", "x".repeat(300 * 1024));
  await page.waitForFunction(() => document.querySelector(".composer .error-text").innerText);
  assert.deepEqual(await texts(page, ".composer .error-text"), ["large.txt has 300 KiB; a file may have 256 KiB."]);
  await send(page, "Explain this.");
  assert.equal(page.bodies[0].messages[0].content, "notes.py:\n\n````py\nprint('``` inside')\n````\n\nExplain this.");
  assert.deepEqual(await texts(page, ".user .code-block code"), ["print('``` inside')"]);
  assert.equal(await page.$eval(".chips", (list) => list.hidden), true);
  assertSound(page);
});

test("a schema is checked before it is sent, and then enforced by the server", async () => {
  const page = await openPage(browser);
  await set(page, "max_tokens", "60");
  await page.select("#setting-format", "json_schema");
  await set(page, "schema", '{"type": "object"');
  await page.locator("#message").fill("Invent a person.");
  await page.focus("#message");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "setting-schema");
  assert.match((await texts(page, "#error-schema"))[0], /^This is not valid JSON/);
  assert.equal(await page.$(".message"), null);
  const properties = { name: { type: "string", maxLength: 12 }, age: { type: "integer", minimum: 0, maximum: 99 } };
  await set(
    page,
    "schema",
    JSON.stringify({ type: "object", properties, required: ["name", "age"], additionalProperties: false }),
  );
  await send(page, "Invent a person.");
  const person = JSON.parse(await lastAnswer(page));
  assert.deepEqual(Object.keys(person), ["name", "age"]);
  assertSound(page);
});

test("the log follows an answer only from its end", async () => {
  const page = await openPage(browser, { respond: () => answer([{ content: "A line.\n\n".repeat(80) }]) });
  await send(page, "Question");
  const distance = () => page.$eval("#log", (log) => log.scrollHeight - log.scrollTop - log.clientHeight);
  assert.ok((await distance()) < 5);
  assert.equal(await page.$eval(".jump", (button) => button.hidden), true);
  await page.$eval("#log", (log) => (log.scrollTop = 0));
  await click(page, ".jump");
  assert.ok((await distance()) < 5);
  assertSound(page);
});

test("a copied code block is the code", async () => {
  const page = await openPage(browser, { respond: () => answer([{ content: "```js\nlet a = '<b>';\n```" }]) });
  await page
    .browserContext()
    .overridePermissions(new URL(PAGE).origin, ["clipboard-read", "clipboard-sanitized-write"]);
  await send(page, "Question");
  assert.ok(await page.$(".code-block .hljs-keyword"));
  await click(page, '.code-block [aria-label="Copy the code"]');
  await page.waitForFunction(() => document.querySelector("#announcer").textContent.includes("Copied."));
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "let a = '<b>';");
  assertSound(page);
});

test("the load of the server is measured while it can be seen", async () => {
  const page = await openPage(browser);
  const requests = [];
  page.on("request", (request) => request.url().endsWith("/v1/loads") && requests.push(request));
  await page.waitForFunction(() => document.querySelector(".server-panel").innerText.includes("1 chat model loaded"));
  assert.deepEqual((await texts(page, ".chart dt")).length, 4);
  await page.waitForFunction(
    () => document.querySelector(".chart .line").getAttribute("points").split(" ").length >= 3,
  );
  const assertSilent = async () => {
    await new Promise((resolve) => setTimeout(resolve, 300));
    const before = requests.length;
    await new Promise((resolve) => setTimeout(resolve, 1500));
    assert.equal(requests.length, before);
  };
  const other = await page.browserContext().newPage();
  await other.bringToFront();
  assert.equal(await page.evaluate(() => document.hidden), true);
  await assertSilent();
  await page.bringToFront();
  await page.waitForRequest((request) => request.url().endsWith("/v1/loads"));
  await click(page, '.top-bar [aria-label="Server and settings"]');
  await assertSilent();
  assertSound(page);
});

/** Puts a file into a field, without a file on disk. */
const attach = (picker, name, text) =>
  picker.evaluate(
    (field, name, text) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([text], name));
      field.files = transfer.files;
      field.dispatchEvent(new Event("change"));
    },
    name,
    text,
  );
