// Answers that try to run code, to load something, or to break the page.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { answer, assertSound, launch, openPage, send, set, texts } from "./browser.mjs";

let browser;
before(async () => (browser = await launch()));
after(() => browser?.close());

const RUN = "globalThis.ran = true";
const HOSTILE = {
  script: `<script>${RUN}</script>\n\nText <script>${RUN}</script>`,
  "event handlers": `<img src=x onerror="${RUN}">\n\n<svg onload="${RUN}"><details open ontoggle="${RUN}">`,
  frames: `<iframe srcdoc="<script>parent.ran = true</script>"></iframe> <object data="data:text/html,x"></object><embed src=x>`,
  "unsafe links": `[a](javascript:${RUN}) [b](JaVaScRiPt:${RUN}) [c](data:text/html,<script>${RUN}</script>) [d](vbscript:x)\n\n<javascript:${RUN}>\n\n[e]\n\n[e]: javascript:${RUN}`,
  "links with entities": `[a](javascript&colon;${RUN}) [b](&#106;avascript:${RUN}) [c](java&#x0A;script:${RUN})`,
  "broken out attributes": `[a](https://example.com/"onmouseover="${RUN}) ![x" onerror="${RUN}](https://example.com/x.png)`,
  images: `![pixel](https://example.com/pixel.png) ![data](data:image/png;base64,AAAA) <img src="https://example.com/y.png">`,
  styles: `<style>* { display: none }</style><link rel=stylesheet href="https://example.com/x.css"><div style="position: fixed; inset: 0">over</div>`,
  "a meta refresh and a base": `<meta http-equiv="refresh" content="0; url=https://example.com"><base href="https://example.com/">`,
  forms: `<form action="https://example.com"><input name=q><button>Log in</button></form>`,
  "nested HTML": `<div><p><b><a href="javascript:${RUN}"><svg><style><img src=x onerror="${RUN}"></style></svg></a></b></p></div>`,
  "code with markup": `\`\`\`html\n<script>${RUN}</script><img src=x onerror="${RUN}">\n\`\`\`\n\n\`<script>${RUN}</script>\``,
  "a language with markup": `\`\`\`"><img/src=x/onerror=${RUN}>\ncode\n\`\`\``,
  "an unclosed fence": `\`\`\`js\n<script>${RUN}</script>`,
  tables: `| <script>${RUN}</script> | [a](javascript:${RUN}) |\n|---|---|\n| <img src=x onerror="${RUN}"> | ![x](https://example.com/x.png) |`,
  "names of the page": `<div id="log"></div><a id="composer" name="main">x</a><form name="body"></form>`,
  "math and entities": `$\\href{javascript:${RUN}}{x}$ &lt;script&gt;${RUN}&lt;/script&gt;`,
};

/** Nodes that no message may have; those that the page makes itself are none of these. */
const FORBIDDEN =
  "script, style, link, iframe, object, embed, form, img, svg:not(.icon), meta, base, video, audio, [style], .message [id], input";

test("nothing of a hostile answer runs, loads or becomes a node", async () => {
  let text;
  const page = await openPage(browser, { respond: () => answer([{ content: text }]) });
  for (const [name, content] of Object.entries(HOSTILE)) {
    text = content;
    await send(page, `Show ${name}`);
    const found = await page.$$eval(
      ".message",
      (messages, forbidden) =>
        messages.flatMap((message) => [...message.querySelectorAll(forbidden)].map(({ outerHTML }) => outerHTML)),
      FORBIDDEN,
    );
    assert.deepEqual(found, [], name);
    const links = await page.$$eval(".message a", (elements) => elements.map((a) => [a.protocol, a.rel, a.target]));
    for (const link of links) assert.deepEqual(link, ["https:", "noopener noreferrer nofollow", "_blank"], name);
    const handlers = await page.$$eval(".message *", (elements) =>
      elements
        .flatMap(({ attributes }) => [...attributes].map(({ name }) => name))
        .filter((name) => name.startsWith("on")),
    );
    assert.deepEqual(handlers, [], name);
  }
  assert.equal(await page.evaluate(() => globalThis.ran), undefined);
  // What is not made into nodes is shown.
  const shown = (await texts(page, "#log")).join();
  assert.ok(shown.includes(`<script>${RUN}</script>`));
  assert.ok(shown.includes("Image: pixel"));
  assertSound(page);
});

test("hostile text is harmless wherever it is shown", async () => {
  const html = `<img src=x onerror="${RUN}">`;
  const call = { tool_calls: [{ index: 0, id: "1", function: { name: html, arguments: html } }] };
  const deltas = [{ reasoning_content: html }, { content: html }, call];
  const logprobs = [
    null,
    { token: html, logprob: -1, bytes: [60], top_logprobs: [{ token: html, logprob: -1, bytes: [60] }] },
  ];
  const page = await openPage(browser, {
    respond: () => answer(deltas, { headers: { "x-ignored-params": html }, finish: html, logprobs }),
  });
  await page.locator("#settings .check input").click();
  await set(page, "tools", `[{"name": "f"}]`);
  await send(page, html);
  await page.focus(".token");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".token-card:popover-open");
  assert.equal(await page.$("img"), null);
  assert.equal(await page.evaluate(() => globalThis.ran), undefined);
  assertSound(page);
});

test("huge and endless structures are shown and leave the page usable", async () => {
  const huge = [
    "x".repeat(1_000_000),
    "> ".repeat(20_000),
    "- a\n".repeat(5_000),
    `${"[".repeat(30_000)}x`,
    "# a\n\n".repeat(3_000),
    `\`\`\`js\n${"let a = 1;\n".repeat(20_000)}`,
    "<div>".repeat(20_000),
  ];
  let text;
  const page = await openPage(browser, { respond: () => answer([{ content: text }]) });
  for (text of huge) {
    const start = performance.now();
    await page.locator(".new-chat").click();
    await send(page, "Go");
    assert.ok(performance.now() - start < 15_000, text.slice(0, 20));
    assert.ok((await page.$eval(".message.assistant .markdown", (element) => element.textContent.length)) > 1000);
  }
  assertSound(page);
});

test("a stream in small pieces shows what the whole text does", async () => {
  const text =
    "# Title\n\n1. one\n2. two\n\n   more\n\n```py\nprint(1)\n\nprint(2)\n```\n\n| a | b |\n|---|---|\n| 1 | **2** |\n\n> quote\n\nEnd [link](https://example.com).";
  const html = async (respond) => {
    const page = await openPage(browser, { respond });
    await send(page, "Go");
    assertSound(page);
    return page.$eval(".message.assistant .markdown", (element) => element.innerHTML);
  };
  const pieces = [...text].map((content) => ({ content }));
  assert.equal(await html(() => answer(pieces)), await html(() => answer([{ content: text }])));
});
