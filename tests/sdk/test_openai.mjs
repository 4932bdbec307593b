// The server as OpenAI's Node client sees it. BASE_URL is the API root, with /v1.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

// Retries are off: they would turn a server that fails every other request into a green test.
const client = new OpenAI({
  baseURL: process.env.BASE_URL,
  apiKey: "unused",
  maxRetries: 0,
  timeout: 60_000,
});

const CHAT_MODEL = "smollm2-135m-instruct";
const EMBEDDING_MODEL = "all-minilm-l6-v2";
const SENTENCE = "A man is eating food.";

// The model answers this with emoji, whose bytes span several tokens.
const EMOJI_PROMPT = "Say hi to me";
const EMOJI_TOKENS = 12; // ends on a whole emoji
const STORY_PROMPT = "Write a long story about a river.";

const user = (content) => ({ role: "user", content });

/** The body of a short, repeatable chat request. */
const request = (options = {}) => ({
  model: "default",
  messages: [user(STORY_PROMPT)],
  temperature: 0,
  max_completion_tokens: 16,
  ...options,
});
const chat = (options) => client.chat.completions.create(request(options));
const chatStream = (options) => chat({ stream: true, ...options });

async function collect(iterable) {
  const items = [];
  for await (const item of iterable) items.push(item);
  return items;
}

const chatChunks = async (options) => collect(await chatStream(options));

const textOf = (completion) => completion.choices[0].message.content;
const streamedText = (chunks) =>
  chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");

const embed = (input, options) =>
  client.embeddings.create({ model: "default", input, ...options });
const vectorOf = async (input, options) => (await embed(input, options)).data[0].embedding;
const norm = (vector) => Math.hypot(...vector);

function assertVectorsEqual(a, b, tolerance = 1e-6) {
  assert.equal(a.length, b.length);
  const distance = Math.max(...a.map((x, i) => Math.abs(x - b[i])));
  assert.ok(distance <= tolerance, `vectors differ by ${distance}`);
}

function assertUsageAddsUp(usage) {
  assert.ok(usage.prompt_tokens > 0);
  assert.ok(usage.completion_tokens > 0);
  assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
}

/** Fails unless the call is refused with this error class and these fields. */
async function assertRefused(call, errorClass, fields, message = /./) {
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof errorClass, `${error}`);
    for (const [name, value] of Object.entries(fields)) assert.equal(error[name], value, name);
    assert.match(error.message, message);
    assert.ok(error.requestID);
    return true;
  });
}

describe("chat", () => {
  test("an answer has every field and repeats at temperature 0", async () => {
    const first = await chat();
    const second = await chat();
    assert.ok(textOf(first));
    assert.equal(textOf(first), textOf(second));
    assert.equal(first.object, "chat.completion");
    assert.equal(first.model, CHAT_MODEL);
    assert.match(first.id, /^chatcmpl-/);
    assert.notEqual(first.id, second.id);
    assert.ok(first.system_fingerprint);
    assert.equal(first.system_fingerprint, second.system_fingerprint);
    assert.equal(first.choices.length, 1);
    const [choice] = first.choices;
    assert.equal(choice.index, 0);
    assert.equal(choice.finish_reason, "length");
    assert.equal(choice.logprobs, null);
    assert.deepEqual(choice.message, {
      role: "assistant",
      content: textOf(first),
      refusal: null,
    });
    assertUsageAddsUp(first.usage);
    assert.equal(first.usage.completion_tokens, 16);
  });

  test("the token limit ends the answer", async () => {
    const answer = await chat({ max_completion_tokens: 3 });
    assert.equal(answer.choices[0].finish_reason, "length");
    assert.equal(answer.usage.completion_tokens, 3);
  });

  test("the developer role means system", async () => {
    const content = "You answer in French and in capital letters.";
    const system = await chat({ messages: [{ role: "system", content }, user("Hello")] });
    const developer = await chat({ messages: [{ role: "developer", content }, user("Hello")] });
    const neither = await chat({ messages: [user("Hello")] });
    assert.equal(textOf(developer), textOf(system));
    assert.equal(developer.usage.prompt_tokens, system.usage.prompt_tokens);
    // An equal prompt length would mean that our instruction was dropped for the template's own.
    assert.notEqual(system.usage.prompt_tokens, neither.usage.prompt_tokens);
  });

  test("text parts are joined", async () => {
    const parts = ["Say hi", " to me"].map((text) => ({ type: "text", text }));
    const joined = await chat({ messages: [user(parts)] });
    const plain = await chat({ messages: [user("Say hi to me")] });
    assert.equal(textOf(joined), textOf(plain));
    assert.equal(joined.usage.prompt_tokens, plain.usage.prompt_tokens);
  });

  test("a stop string ends the answer and is not in it", async () => {
    const whole = textOf(await chat());
    // It begins and ends inside words, and so inside tokens.
    const stop = whole.slice(11, 17);
    const expected = whole.slice(0, whole.indexOf(stop));
    for (const stops of [stop, ["never said", stop]]) {
      const answer = await chat({ stop: stops });
      assert.equal(textOf(answer), expected);
      assert.equal(answer.choices[0].finish_reason, "stop");
      const chunks = await chatChunks({ stop: stops });
      assert.equal(streamedText(chunks), expected);
      assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
    }
  });

  test("a seed makes sampling repeatable", async () => {
    const sample = async (seed) => textOf(await chat({ temperature: 1, seed }));
    assert.equal(await sample(7), await sample(7));
    const others = await Promise.all([0, 1, 2, 3].map(sample));
    assert.ok(new Set(others).size > 1);
  });

  test("concurrent requests are all answered", async () => {
    const answers = await Promise.all(Array.from({ length: 8 }, () => chat()));
    assert.deepEqual(new Set(answers.map(textOf)), new Set([textOf(await chat())]));
    assert.equal(new Set(answers.map((answer) => answer.id)).size, 8);
  });
});

describe("streaming", () => {
  test("chunks come in order, with the usage last", async () => {
    const all = await chatChunks({ stream_options: { include_usage: true } });
    const chunks = all.slice(0, -1);
    const last = all.at(-1);
    for (const chunk of all) {
      assert.equal(chunk.object, "chat.completion.chunk");
      assert.equal(chunk.model, CHAT_MODEL);
      assert.equal(chunk.id, last.id);
      assert.equal(chunk.created, last.created);
    }
    assert.match(last.id, /^chatcmpl-/);
    for (const chunk of chunks) {
      assert.equal(chunk.choices.length, 1);
      assert.equal(chunk.choices[0].index, 0);
      assert.equal(chunk.usage, null);
    }

    // Clients merge the deltas, so the role may come only once.
    const [first, ...deltas] = chunks.map((chunk) => chunk.choices[0].delta);
    assert.deepEqual(first, { role: "assistant", content: "" });
    assert.deepEqual(deltas.pop(), {});
    for (const delta of deltas) assert.deepEqual(Object.keys(delta), ["content"]);
    const reasons = chunks.map((chunk) => chunk.choices[0].finish_reason);
    assert.equal(reasons.pop(), "length");
    assert.ok(reasons.every((reason) => reason === null));

    assert.deepEqual(last.choices, []);
    assertUsageAddsUp(last.usage);
    const whole = await chat();
    assert.equal(streamedText(chunks), textOf(whole));
    assert.deepEqual(last.usage, whole.usage);
  });

  test("no usage unless asked for", async () => {
    for (const chunk of await chatChunks({ max_completion_tokens: 3 })) {
      assert.equal(chunk.choices.length, 1);
      assert.ok(!("usage" in chunk));
    }
  });

  test("characters are never split", async () => {
    const options = { messages: [user(EMOJI_PROMPT)], max_completion_tokens: EMOJI_TOKENS };
    const whole = textOf(await chat(options));
    const chunks = await chatChunks(options);
    assert.ok(Buffer.byteLength(whole) > whole.length);
    for (const chunk of chunks) assert.doesNotMatch(streamedText([chunk]), /\ufffd/);
    assert.equal(streamedText(chunks), whole);
  });

  test("the stream helper accumulates the same completion", async () => {
    const options = { logprobs: true, top_logprobs: 2 };
    const stream = client.chat.completions.stream(
      request({ ...options, stream_options: { include_usage: true } }),
    );
    const deltas = [];
    stream.on("content", (delta) => deltas.push(delta));
    const final = await stream.finalChatCompletion();
    const whole = await chat(options);
    assert.equal(textOf(final), textOf(whole));
    assert.equal(await stream.finalContent(), textOf(whole));
    assert.equal(deltas.join(""), textOf(whole));
    assert.equal(final.choices[0].message.role, "assistant");
    assert.equal(final.choices[0].finish_reason, "length");
    assert.deepEqual(await stream.totalUsage(), whole.usage);
    const tokens = (completion) => completion.choices[0].logprobs.content.map((e) => e.token);
    assert.deepEqual(tokens(final), tokens(whole));
  });

  test("a stream that is left early frees the server", async () => {
    // If they were not cancelled, these responses would take minutes, far longer than the client's timeout.
    for (let i = 0; i < 12; i++) {
      const stream = await chatStream({ max_completion_tokens: 8000 });
      // Leaving the loop makes the client abort the request.
      for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
    }
    assert.equal((await chat({ max_completion_tokens: 3 })).usage.completion_tokens, 3);
  });
});

describe("logprobs", () => {
  function check(entries, text, tokens) {
    assert.equal(entries.length, tokens);
    // The limit may cut a character, which is then no text.
    const all = Buffer.from(entries.flatMap((entry) => entry.bytes)).toString();
    assert.equal(all.replace(/\ufffd+$/, ""), text);
    for (const entry of entries) {
      const top = entry.top_logprobs.map((alternative) => alternative.logprob);
      assert.equal(top.length, 3);
      assert.deepEqual(top, top.toSorted((a, b) => b - a));
      assert.ok(top[0] <= 0);
      // Temperature 0 takes the most likely token.
      assert.deepEqual(entry.bytes, entry.top_logprobs[0].bytes);
      assert.ok(entry.logprob <= top[0]);
    }
  }

  for (const prompt of [STORY_PROMPT, EMOJI_PROMPT]) {
    test(`entries describe the answer to "${prompt}"`, async () => {
      const options = {
        messages: [user(prompt)],
        logprobs: true,
        top_logprobs: 3,
        max_completion_tokens: EMOJI_TOKENS,
      };
      const answer = await chat(options);
      const tokens = answer.usage.completion_tokens;
      check(answer.choices[0].logprobs.content, textOf(answer), tokens);
      const chunks = await chatChunks(options);
      const streamed = chunks.flatMap((chunk) => chunk.choices[0].logprobs?.content ?? []);
      check(streamed, textOf(answer), tokens);
    });
  }
});

const WEATHER_PROMPT = "How warm is it in Rome?";
const weatherRequest = (options) =>
  request({ messages: [user(WEATHER_PROMPT)], max_completion_tokens: 300, ...options });

const Place = z.object({ city: z.string().max(20), country: z.enum(["Italy", "France"]).nullable() });
const Unit = z.enum(["celsius", "fahrenheit"]);
const Day = z.union([
  z.object({ kind: z.literal("rain"), millimetres: z.int().min(0).max(99) }),
  z.object({ kind: z.literal("sun"), hours: z.int().min(0).max(24) }),
]);
const Report = z.object({ nearby: Place.nullable(), unit: Unit, days: z.array(Day).min(1).max(2) });

describe("structured output", () => {
  const response_format = zodResponseFormat(Report, "report");

  test("parse gives the object, and a stream the same one", async () => {
    const { choices } = await client.chat.completions.parse(weatherRequest({ response_format }));
    assert.equal(choices[0].finish_reason, "stop");
    assert.deepEqual(choices[0].message.parsed, Report.parse(JSON.parse(choices[0].message.content)));

    const stream = client.chat.completions.stream(weatherRequest({ response_format }));
    const deltas = [];
    stream.on("content", (delta) => deltas.push(delta));
    const { message } = (await stream.finalChatCompletion()).choices[0];
    assert.deepEqual(message.parsed, choices[0].message.parsed);
    assert.equal(message.content, choices[0].message.content);
    assert.equal(deltas.join(""), message.content);
  });

  test("a truncated object is reported", async () => {
    await assert.rejects(
      () => client.chat.completions.parse(request({ response_format, max_completion_tokens: 5 })),
      OpenAI.LengthFinishReasonError,
    );
  });

  test("invalid schemas are refused", async () => {
    for (const schema of [{ type: "thing" }, { $ref: "#/$defs/missing" }]) {
      const form = { type: "json_schema", json_schema: { name: "x", schema } };
      await assert.rejects(
        () => chat({ response_format: form }),
        (error) => error instanceof OpenAI.BadRequestError && error.param.startsWith("response_format"),
      );
    }
  });
});

describe("tools", () => {
  const GetWeather = z.object({ place: Place, unit: Unit });
  const tools = [
    zodFunction({ name: "get_weather", description: "The weather at a place", parameters: GetWeather }),
    zodFunction({ name: "add", parameters: z.object({ a: z.int().min(0).max(99) }) }),
  ];
  const named = (name) => ({ type: "function", function: { name } });
  const parse = (options) => client.chat.completions.parse(weatherRequest({ tools, ...options }));

  test("a named function is called with matching arguments, streamed or not", async () => {
    const tool_choice = named("get_weather");
    const [choice] = (await parse({ tool_choice })).choices;
    assert.equal(choice.finish_reason, "tool_calls");
    assert.equal(choice.message.content, null);
    const [call, ...others] = choice.message.tool_calls;
    assert.deepEqual(others, []);
    assert.equal(call.type, "function");
    assert.equal(call.function.name, "get_weather");
    assert.deepEqual(call.function.parsed_arguments, GetWeather.parse(JSON.parse(call.function.arguments)));

    const stream = client.chat.completions.stream(weatherRequest({ tools, tool_choice }));
    const deltas = [];
    const done = [];
    stream.on("tool_calls.function.arguments.delta", (event) => deltas.push(event.arguments_delta));
    stream.on("tool_calls.function.arguments.done", (event) => done.push(event));
    const [final] = (await stream.finalChatCompletion()).choices;
    assert.equal(final.finish_reason, "tool_calls");
    assert.equal(final.message.tool_calls.length, 1);
    assert.ok(final.message.tool_calls[0].id);
    assert.deepEqual(final.message.tool_calls[0].function, call.function);
    assert.ok(deltas.length > 3);
    assert.equal(deltas.join(""), call.function.arguments);
    assert.deepEqual(done.map((event) => [event.name, event.index]), [["get_weather", 0]]);
  });

  test("a required or allowed function is called", async () => {
    const required = { tool_choice: "required", parallel_tool_calls: false };
    const allowed_tools = { mode: "required", tools: [named("add")] };
    const allowed = { ...required, tool_choice: { type: "allowed_tools", allowed_tools } };
    for (const [options, names] of [[required, ["get_weather", "add"]], [allowed, ["add"]]]) {
      const [choice] = (await parse(options)).choices;
      assert.equal(choice.finish_reason, "tool_calls");
      assert.equal(choice.message.tool_calls.length, 1);
      assert.ok(names.includes(choice.message.tool_calls[0].function.name));
    }
  });

  test("a runner calls the function and sends its result", async () => {
    const asked = [];
    const runner = client.chat.completions.runTools(
      weatherRequest({
        // A forced function is called once; then the runner ends.
        tool_choice: named("get_weather"),
        tools: [
          zodFunction({
            name: "get_weather",
            parameters: GetWeather,
            function: (parameters) => {
              asked.push(parameters);
              return "It is 21 degrees.";
            },
          }),
        ],
      }),
      { maxChatCompletions: 2 },
    );
    await runner.done();
    assert.equal(asked.length, 1);
    GetWeather.parse(asked[0]);
    const roles = runner.messages.map((message) => message.role);
    assert.deepEqual(roles, ["user", "assistant", "tool"]);
    assert.equal(runner.messages[2].tool_call_id, runner.messages[1].tool_calls[0].id);

    // The rest is done by hand: the model may answer in words.
    const answer = await chat({ messages: runner.messages, tools, tool_choice: "none" });
    assert.ok(textOf(answer));
    assert.ok(!("tool_calls" in answer.choices[0].message));
  });

  test("inconsistent histories and invalid choices are refused", async () => {
    const call = { id: "call_1", ...named("add") };
    call.function.arguments = "{}";
    const called = { role: "assistant", tool_calls: [call] };
    const result = { role: "tool", tool_call_id: "call_2", content: "21" };
    const history = (...turns) => ({ messages: [user(WEATHER_PROMPT), ...turns] });
    for (const [param, options] of [
      ["messages[2].tool_call_id", history(called, result)],
      ["messages[1].tool_call_id", history(result)],
      ["messages[1].tool_calls", history(called, user("And?"))],
      ["messages[1].content", history({ role: "assistant" })],
      ["tool_choice", { tool_choice: "required" }],
      ["tool_choice", { tools, tool_choice: named("subtract") }],
      ["tools[1].function.name", { tools: [tools[0], tools[0]] }],
    ]) {
      for (const call of [chat, chatStream]) {
        await assertRefused(() => call(options), OpenAI.BadRequestError, { param });
      }
    }
  });
});

describe("completions", () => {
  const options = { model: "default", prompt: "The capital of France is", max_tokens: 6, temperature: 0 };

  test("a prompt is continued, whole and as a stream", async () => {
    const completion = await client.completions.create(options);
    assert.match(completion.choices[0].text, /^ .*Paris/);
    let text = "";
    for await (const chunk of await client.completions.create({ ...options, stream: true })) {
      text += chunk.choices[0]?.text ?? "";
    }
    assert.equal(text, completion.choices[0].text);
  });
});

describe("embeddings", () => {
  test("base64 and float are the same unit vector", async () => {
    const response = await embed(SENTENCE); // the client asks for base64 and decodes it
    const vector = response.data[0].embedding;
    assert.equal(vector.length, 384);
    assert.ok(Math.abs(norm(vector) - 1) < 1e-5);
    assertVectorsEqual(vector, await vectorOf(SENTENCE, { encoding_format: "float" }));
    assert.equal(response.object, "list");
    assert.equal(response.model, EMBEDDING_MODEL);
    assert.deepEqual(response.usage, { prompt_tokens: 8, total_tokens: 8 });
  });

  test("a batch keeps its order", async () => {
    const long = "The quick brown fox jumps over the lazy dog. ".repeat(5);
    const texts = [SENTENCE, "rain", long, "rain"];
    const batch = await embed(texts);
    assert.deepEqual(batch.data.map((item) => item.index), [0, 1, 2, 3]);
    let tokens = 0;
    for (const [i, text] of texts.entries()) {
      const single = await embed(text);
      // Texts of other lengths in the batch may change the last bits, no more.
      assertVectorsEqual(batch.data[i].embedding, single.data[0].embedding, 1e-5);
      tokens += single.usage.total_tokens;
    }
    assert.equal(batch.usage.total_tokens, tokens);
  });

  test("fewer dimensions are the first ones at unit length", async () => {
    const first = (await vectorOf(SENTENCE)).slice(0, 64);
    const expected = first.map((x) => x / norm(first));
    // This model was not trained for it, so the request has to force it.
    await assert.rejects(() => embed(SENTENCE, { dimensions: 64 }), OpenAI.BadRequestError);
    const forced = { dimensions: 64, force_dimensions: true };
    for (const options of [forced, { ...forced, encoding_format: "float" }]) {
      assertVectorsEqual(await vectorOf(SENTENCE, options), expected);
    }
  });

  test("a long text is truncated on request", async () => {
    const cut = await embed("rain ".repeat(600), { truncate: true });
    assert.equal(cut.usage.prompt_tokens, 512);
    assertVectorsEqual(cut.data[0].embedding, await vectorOf("rain ".repeat(510)), 1e-5);
  });

  test("known and unknown prompts", async () => {
    assertVectorsEqual(await vectorOf(SENTENCE, { input_type: "query" }), await vectorOf(SENTENCE));
    await assert.rejects(
      () => embed(SENTENCE, { prompt_name: "clustering" }),
      (error) => error instanceof OpenAI.BadRequestError && error.param === "prompt_name",
    );
  });
});

describe("models", () => {
  test("list", async () => {
    const models = await collect(client.models.list());
    assert.deepEqual(models.map((model) => model.id).sort(), [EMBEDDING_MODEL, CHAT_MODEL]);
    for (const model of models) {
      assert.equal(model.object, "model");
      assert.ok(Number.isInteger(model.created));
      assert.ok(model.owned_by);
    }
  });

  test("retrieve by id and by repository", async () => {
    for (const [name, id] of [
      [CHAT_MODEL, CHAT_MODEL],
      ["HuggingFaceTB/SmolLM2-135M-Instruct", CHAT_MODEL],
      [EMBEDDING_MODEL, EMBEDDING_MODEL],
      ["sentence-transformers/all-MiniLM-L6-v2", EMBEDDING_MODEL],
    ]) {
      assert.equal((await client.models.retrieve(name)).id, id);
    }
    await assertRefused(() => client.models.retrieve("no/such-model"), OpenAI.NotFoundError, {
      code: "model_not_found",
    });
  });
});

describe("errors", () => {
  test("unknown model", async () => {
    const model = "no-such-model";
    for (const call of [
      () => chat({ model }),
      () => chatStream({ model }),
      () => client.embeddings.create({ model, input: "rain" }),
    ]) {
      await assertRefused(call, OpenAI.NotFoundError, { code: "model_not_found", param: "model" });
    }
  });

  test("bad and unsupported chat parameters", async () => {
    for (const [param, value] of Object.entries({
      temperature: 3,
      top_p: 2,
      n: 17,
      functions: [{ name: "f", parameters: { type: "object" } }],
      modalities: ["audio"],
      max_completion_tokens: 0,
      messages: [],
    })) {
      for (const call of [chat, chatStream]) {
        await assertRefused(
          () => call({ [param]: value }),
          OpenAI.BadRequestError,
          { param, type: "invalid_request_error" },
          new RegExp(param),
        );
      }
    }
  });

  test("over-long prompt", async () => {
    await assertRefused(
      () => chat({ messages: [user("rain ".repeat(9000))] }),
      OpenAI.BadRequestError,
      { code: "context_length_exceeded" },
      /8192/,
    );
  });

  test("embedding input and dimensions out of range", async () => {
    const long = "rain ".repeat(600);
    for (const [call, param, limit] of [
      [() => embed(long), "input", /512/],
      [() => embed(["rain", long]), "input", /512/],
      [() => embed("rain", { dimensions: 385 }), "dimensions", /384/],
      [() => embed([]), "input", /empty/],
    ]) {
      await assertRefused(call, OpenAI.BadRequestError, { param }, limit);
    }
  });
});

describe("headers", () => {
  test("request id", async () => {
    const id = "my-request-1";
    const { data, response, request_id } = await client.chat.completions
      .create(request({ max_completion_tokens: 1 }), { headers: { "X-Request-ID": id } })
      .withResponse();
    assert.equal(response.headers.get("x-request-id"), id);
    assert.equal(request_id, id);
    assert.equal(data._request_id, id);
    const first = await chat({ max_completion_tokens: 1 });
    const second = await chat({ max_completion_tokens: 1 });
    assert.ok(first._request_id);
    assert.notEqual(first._request_id, second._request_id);
  });

  test("ignored parameters are named", async () => {
    for (const stream of [false, true]) {
      const ignoredBy = async (options) => {
        const sent = chat({ max_completion_tokens: 1, stream, ...options });
        const { data, response } = await sent.withResponse();
        if (stream) await collect(data);
        return response.headers.get("x-ignored-params");
      };
      assert.equal(await ignoredBy({ user: "ada" }), "user");
      assert.equal(await ignoredBy({}), null);
    }
  });
});
