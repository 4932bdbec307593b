// A page of an origin that `--cors-origin` does not list: it reads nothing, and the server executes nothing.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { API, KEY, launch, metrics, openClients, send } from "./chromium.mjs";

let browser, page;
/** The status of each response of the server, whether or not the page may read it. */
const statuses = [];
before(async () => {
  browser = await launch();
  page = await openClients(browser);
  const session = await page.createCDPSession();
  await session.send("Network.enable");
  session.on("Network.responseReceivedExtraInfo", ({ statusCode }) => statuses.push(statusCode));
});
after(() => browser?.close());

const CHAT = JSON.stringify({ model: "default", messages: [{ role: "user", content: "Hi" }], max_tokens: 3 });
const executed = () => metrics(/^predict_otron_(prompt_tokens|completion_tokens|embedded_texts)_total/);

/** Runs a function in the page. All requests that it makes must get 403, and none may be executed. */
async function refused(nRequests, call, ...values) {
  const before = await executed();
  statuses.length = 0;
  const found = await page.evaluate(call, ...values);
  for (let tries = 0; statuses.length < nRequests && tries < 50; tries += 1) {
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.deepEqual(statuses, Array(nRequests).fill(403));
  assert.deepEqual(await executed(), before);
  return found;
}

test("the same request is executed if no page sends it", async () => {
  const before = await executed();
  const response = await send("/v1/chat/completions", {
    method: "POST",
    body: CHAT,
    headers: { "content-type": "application/json" },
  });
  assert.equal(response.status, 200);
  assert.notDeepEqual(await executed(), before);
});

test("every call of the clients fails", async () => {
  const errors = await refused(9, async () => {
    const input = { model: "default", input: "Name a city." };
    const calls = [
      openai.models.list(),
      openai.chat.completions.create(request()),
      openai.chat.completions.create(request({ stream: true })),
      openai.embeddings.create(input),
      openai.responses.create(input),
      openai.responses.delete("resp_1"),
      anthropic.models.list(),
      anthropic.messages.create(request()),
      anthropic.messages.create(request({ stream: true })),
    ];
    return Promise.all(calls.map(refusal));
  });
  for (const error of errors) {
    assert.match(error.class, /^(OpenAI|Anthropic)\.APIConnectionError$/);
    assert.equal(error.status, undefined);
  }
});

test("requests that browsers send without a preflight are refused", async () => {
  const results = await refused(4, async (chat) => {
    const result = (call) => call.then(({ type, status }) => `${type} ${status}`, (error) => error.name);
    const post = (options) => result(fetch(`${api}/v1/chat/completions`, { method: "POST", body: chat, ...options }));
    return [
      await post({ headers: { "content-type": "text/plain" } }),
      await post({ headers: { "content-type": "text/plain" }, mode: "no-cors" }),
      await result(fetch(`${api}/v1/models`)),
      await result(fetch(`${api}/v1/models`, { mode: "no-cors" })),
    ];
  }, CHAT);
  for (const result of results) assert.match(result, /^(TypeError|opaque 0)$/);
});

test("forms, images, scripts and beacons are refused", async () => {
  await refused(4, async (chat) => {
    const add = (name, fields) => document.body.appendChild(Object.assign(document.createElement(name), fields));
    const failed = (element) => new Promise((resolve) => (element.onerror = resolve));
    add("iframe", { name: "answer" });
    // A form sends NAME=VALUE: the body is JSON if the sign falls into a text.
    const form = add("form", { action: `${api}/v1/chat/completions`, method: "post", target: "answer" });
    form.enctype = "text/plain";
    const [name, value] = [`${chat.slice(0, -1)},"user":"`, '"}'];
    form.append(Object.assign(document.createElement("input"), { name, value }));
    form.submit();
    await failed(add("img", { src: `${api}/v1/models` }));
    await failed(add("script", { src: `${api}/v1/models` }));
    navigator.sendBeacon(`${api}/v1/chat/completions`, chat);
  }, CHAT);
});

test("a frame without an origin of its own is refused, too", async () => {
  const result = await refused(1, async () => {
    const frame = document.createElement("iframe");
    frame.sandbox = "allow-scripts";
    const answer = new Promise((resolve) => (onmessage = ({ data }) => resolve(data)));
    frame.srcdoc = `<script>fetch("${api}/v1/models").then(() => "read", (error) => error.name)
      .then((result) => parent.postMessage(result, "*"))</script>`;
    document.body.append(frame);
    return answer;
  });
  assert.equal(result, "TypeError");
});

test("a link opens the documentation and nothing else", async () => {
  const follow = async (path) => {
    const other = await openClients(browser);
    const click = (href) => document.body.appendChild(Object.assign(document.createElement("a"), { href })).click();
    const [response] = await Promise.all([other.waitForNavigation(), other.evaluate(click, API + path)]);
    await other.close();
    return response.status();
  };
  // With keys, the documentation needs one.
  assert.equal(await follow("/docs"), KEY ? 401 : 200);
  assert.equal(await follow("/v1/models"), 403);
});
