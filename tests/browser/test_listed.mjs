// The clients in a page of an origin that `--cors-origin` lists.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { PAGE, launch, metrics, openClients } from "./chromium.mjs";

let browser, page;
before(async () => {
  browser = await launch();
  page = await openClients(browser);
});
after(() => browser?.close());

/** Runs a function in the page, where the globals of clients.mjs are. */
const inPage = (call, ...values) => page.evaluate(call, ...values);

test("models", async () => {
  const names = await inPage(async () => {
    const names = [];
    for await (const model of openai.models.list()) names.push(model.id);
    return names;
  });
  assert.deepEqual(names, ["smollm2-135m-instruct", "all-minilm-l6-v2"]);
});

test("a chat completion and its stream are equal", async () => {
  const { whole, chunks, times } = await inPage(async () => {
    const whole = await openai.chat.completions.create(request());
    const [chunks, times] = [[], new Set()];
    const options = request({ stream: true, stream_options: { include_usage: true } });
    for await (const chunk of await openai.chat.completions.create(options)) {
      chunks.push(chunk);
      times.add(performance.now());
    }
    return { whole, chunks, times: times.size };
  });
  assert.ok(whole.choices[0].message.content);
  const streamed = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  assert.equal(streamed, whole.choices[0].message.content);
  assert.equal(chunks.at(-1).usage.completion_tokens, 16);
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.ok(times > 4, `${chunks.length} chunks came at ${times} times`);
});

test("embeddings, as base64 and as numbers", async () => {
  const [encoded, plain] = await inPage(async () => {
    const embed = async (more) =>
      (await openai.embeddings.create({ model: "default", input: "A man is eating food.", ...more })).data[0].embedding;
    return [await embed(), await embed({ encoding_format: "float" })];
  });
  assert.equal(plain.length, 384);
  assert.deepEqual(encoded.map(Math.fround), plain.map(Math.fround));
});

test("a response and its stream are equal, and it can be deleted", async () => {
  const found = await inPage(async () => {
    const options = { model: "default", input: "Name a city.", temperature: 0, max_output_tokens: 16 };
    const whole = await openai.responses.create(options);
    let text = "";
    const stream = openai.responses.stream(options);
    stream.on("response.output_text.delta", (event) => (text += event.delta));
    const final = await stream.finalResponse();
    const again = await openai.responses.retrieve(whole.id);
    return { whole: whole.output_text, text, final: final.output_text, again: again.output_text, id: whole.id };
  });
  assert.ok(found.whole);
  assert.deepEqual([found.text, found.final, found.again], Array(3).fill(found.whole));
  // Unlike GET and POST, DELETE is asked for in a preflight by its name.
  const gone = await inPage(async (id) => {
    await openai.responses.delete(id);
    return refusal(openai.responses.retrieve(id));
  }, found.id);
  assert.equal(gone.status, 404);
});

test("a conversation, its items and their deletion", async () => {
  const [count, gone] = await inPage(async () => {
    const { id } = await openai.conversations.create({ items: [{ role: "user", content: "One." }] });
    const items = [];
    for await (const item of openai.conversations.items.list(id)) items.push(item);
    await openai.conversations.items.delete(items[0].id, { conversation_id: id });
    await openai.conversations.delete(id);
    return [items.length, await refusal(openai.conversations.retrieve(id))];
  });
  assert.equal(count, 1);
  assert.equal(gone.status, 404);
});

test("errors are readable", async () => {
  const [missing, invalid, keyless] = await inPage(async () => [
    await refusal(openai.chat.completions.create(request({ model: "other" }))),
    await refusal(openai.chat.completions.create(request({ temperature: 9 }))),
    await refusal(openai.withOptions({ apiKey: "sk-wrong" }).models.list()),
  ]);
  assert.equal(missing.class, "OpenAI.NotFoundError");
  assert.match(missing.message, /^404 .*`other`/);
  assert.equal(missing.code, "model_not_found");
  assert.equal(invalid.class, "OpenAI.BadRequestError");
  assert.match(invalid.message, /temperature/);
  assert.equal(keyless.class, "OpenAI.AuthenticationError");
  assert.match(keyless.headers["www-authenticate"], /^Bearer/);
  for (const error of [missing, invalid, keyless]) assert.match(error.requestID, /^req_/);
});

test("headers of a response are readable", async () => {
  const headers = await inPage(async () => {
    const { response, request_id } = await openai.chat.completions.create(request({ no_such: 1 })).withResponse();
    return { ...Object.fromEntries(response.headers), request_id };
  });
  assert.match(headers["x-request-id"], /^req_/);
  assert.equal(headers.request_id, headers["x-request-id"]);
  assert.ok(headers.traceparent);
  assert.equal(headers["x-ignored-params"], "no_such");
});

test("an aborted stream ends, here and in the server", async () => {
  const metric = async (name) => Object.values(await metrics(name))[0];
  const cancelled = () => metric(/^predict_otron_requests_cancelled_total/);
  const running = () => metric(/^vllm:num_requests_running/);
  const before = await cancelled();
  const [chunks, error] = await inPage(async () => {
    const long = request({ stream: true, max_tokens: 4000 });
    let chunks = 0;
    const abort = new AbortController();
    for await (const _ of await openai.chat.completions.create(long, { signal: abort.signal })) {
      chunks += 1;
      if (chunks === 3) abort.abort();
    }
    // Before the first byte, the client reports the abort.
    const early = new AbortController();
    const call = refusal(openai.chat.completions.create({ ...long, stream: false }, { signal: early.signal }));
    setTimeout(() => early.abort(), 300);
    return [chunks, await call];
  });
  assert.ok(chunks >= 3 && chunks < 100, `${chunks} chunks`);
  assert.equal(error.class, "OpenAI.APIUserAbortError");
  for (let tries = 0; (await running()) > 0 || (await cancelled()) < before + 2; tries += 1) {
    assert.ok(tries < 50, "the server still runs an aborted request");
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
});

test("a full queue: the page reads when to try again, and the client does", async () => {
  const [full, answer] = await inPage(async () => {
    const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
    const abort = new AbortController();
    const occupy = (stream) =>
      openai.chat.completions.create(request({ stream, max_tokens: 4000 }), { signal: abort.signal });
    const running = await occupy(true);
    await running[Symbol.asyncIterator]().next();
    const waiting = refusal(occupy(false));
    await sleep(300);
    const full = await refusal(openai.chat.completions.create(request()));
    const retried = openai.chat.completions.create(request(), { maxRetries: 10 });
    await sleep(300);
    abort.abort();
    await waiting;
    return [full, await retried];
  });
  assert.equal(full.class, "OpenAI.RateLimitError");
  assert.ok(full.headers["retry-after"] >= 1, JSON.stringify(full.headers));
  assert.ok(full.headers["retry-after-ms"] >= 1, JSON.stringify(full.headers));
  assert.ok(answer.choices[0].message.content);
});

test("Anthropic's client: a message, its stream, counted tokens and errors", async () => {
  const found = await inPage(async () => {
    const whole = await anthropic.messages.create(request());
    const stream = anthropic.messages.stream(request());
    let text = "";
    stream.on("text", (delta) => (text += delta));
    const final = await stream.finalMessage();
    const { input_tokens } = await anthropic.messages.countTokens({ model: "default", messages: request().messages });
    const error = await refusal(anthropic.messages.create(request({ model: "other" })));
    return { whole, id: whole._request_id, text, final, input_tokens, error };
  });
  assert.ok(found.whole.content[0].text);
  assert.equal(found.text, found.whole.content[0].text);
  assert.deepEqual(found.final.content, found.whole.content);
  assert.equal(found.input_tokens, found.whole.usage.input_tokens + found.whole.usage.cache_read_input_tokens);
  assert.equal(found.error.class, "Anthropic.NotFoundError");
  assert.match(found.error.message, /`other`/);
  for (const id of [found.id, found.error.requestID]) assert.match(`${id}`, /^req_/, "the header request-id");
});

test("a page of the internet, once its user allows it", async () => {
  const { port } = new URL(PAGE);
  const internet = await launch(`--ip-address-space-overrides=127.0.0.1:${port}=public`);
  const list = async (state) => {
    const context = await internet.createBrowserContext();
    await context.setPermission(PAGE, { permission: { name: "loopback-network" }, state });
    const clients = await openClients(context);
    return clients.evaluate(() => openai.models.list().then(({ data }) => data.length, (error) => error.message));
  };
  try {
    assert.equal(await list("granted"), 2);
    // Chromium keeps the page from asking the server at all.
    assert.equal(await list("denied"), "Connection error.");
  } finally {
    await internet.close();
  }
});
