// `/v1/responses` as OpenAI's Node client and the AI SDK see it.

import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const options = { baseURL: process.env.BASE_URL, apiKey: "unused" };
const client = new OpenAI({ ...options, maxRetries: 0, timeout: 60_000 });
const model = createOpenAI(options)("default");
const Capital = z.object({ city: z.enum(["Paris", "Rome"]), isLarge: z.boolean() });
const request = (more = {}) => ({
  model: "default",
  input: "Name a city.",
  temperature: 0,
  max_output_tokens: 16,
  ...more,
});

test("a whole response and its stream are equal", async () => {
  const whole = await client.responses.create(request());
  const stream = client.responses.stream(request());
  let text = "";
  stream.on("response.output_text.delta", (event) => (text += event.delta));
  const final = await stream.finalResponse();
  assert.equal(text, whole.output_text);
  assert.equal(final.output[0].content[0].text, text);
});

test("parsed objects", async () => {
  const parsed = await client.responses.parse(
    request({ max_output_tokens: 300, text: { format: zodTextFormat(Capital, "capital") } }),
  );
  assert.ok(Capital.safeParse(parsed.output_parsed).success);
});

test("state", async () => {
  const first = await client.responses.create(request());
  const again = await client.responses.retrieve(first.id);
  assert.equal(again.output_text, first.output_text);
  const second = await client.responses.create(request({ previous_response_id: first.id }));
  assert.equal(second.previous_response_id, first.id);
  await client.responses.delete(first.id);
  await assert.rejects(client.responses.retrieve(first.id), { status: 404 });
  const conversation = await client.conversations.create();
  await client.responses.create(request({ conversation: conversation.id }));
  const roles = [];
  for await (const item of client.conversations.items.list(conversation.id)) roles.push(item.role);
  assert.deepEqual(roles, ["assistant", "user"]);
});

test("the AI SDK: text, stream, objects and two turns of tools", async () => {
  const prompt = "How warm is it in Rome?";
  const settings = { model, temperature: 0, maxOutputTokens: 300, maxRetries: 0 };
  const { text } = await generateText({ ...settings, prompt });
  let streamed = "";
  for await (const delta of streamText({ ...settings, prompt }).textStream) streamed += delta;
  assert.equal(streamed, text);
  const { object } = await generateObject({ ...settings, prompt, schema: Capital });
  assert.ok(Capital.safeParse(object).success);
  const called = [];
  const weather = tool({
    description: "The weather of a city.",
    inputSchema: z.object({ city: z.enum(["Paris", "Rome"]) }),
    execute: async ({ city }) => {
      called.push(city);
      return "20 degrees";
    },
  });
  const { steps } = await generateText({
    ...settings,
    prompt,
    tools: { weather },
    stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
  });
  assert.equal(steps.length, 2);
  assert.ok(called.length >= 1);
});
