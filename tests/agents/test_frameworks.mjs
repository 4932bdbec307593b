// The Agents SDK for Node and the AI SDK, against a scripted model: it calls `get_weather` and, once it sees
// "20 degrees", says "It is warm there."; it answers in JSON if asked to.

import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  Agent,
  OpenAIChatCompletionsModel,
  OpenAIResponsesModel,
  run,
  setTracingDisabled,
  tool as agentTool,
} from "@openai/agents";
import { generateText, isStepCount, Output, streamText, tool } from "ai";
import OpenAI from "openai";
import { z } from "zod";

const options = { baseURL: `${process.env.SERVER}/v1`, apiKey: "unused" };
const question = "How warm is it in Rome?";
const answer = "It is warm there.";
const jsonQuestion = "How warm is it? Answer in JSON.";
const Weather = z.object({ city: z.string(), celsius: z.number() });
const weather = { city: "Rome", celsius: 20 };
const getWeather = {
  description: "The weather of a city.",
  execute: async ({ city }) => {
    assert.equal(city, "Rome");
    return "20 degrees";
  },
};
const City = z.object({ city: z.string() });

setTracingDisabled(true);
for (const Model of [OpenAIResponsesModel, OpenAIChatCompletionsModel]) {
  const model = new Model(new OpenAI(options), "scripted");
  test(`the Agents SDK with ${Model.name}`, async () => {
    const tools = [agentTool({ name: "get_weather", parameters: City, ...getWeather })];
    const agent = new Agent({ name: "a", model, tools });
    assert.equal((await run(agent, question)).finalOutput, answer);
    const streamed = await run(agent, question, { stream: true });
    await streamed.completed;
    assert.equal(streamed.finalOutput, answer);
    const typed = new Agent({ name: "a", model, outputType: Weather });
    assert.deepEqual((await run(typed, jsonQuestion)).finalOutput, weather);
  });
}

const openai = createOpenAI(options);
const compatible = createOpenAICompatible({ name: "local", supportsStructuredOutputs: true, ...options });
for (const [name, model] of [
  ["openai", openai("scripted")],
  ["openai.chat", openai.chat("scripted")],
  ["openai-compatible", compatible("scripted")],
]) {
  test(`the AI SDK with ${name}`, async () => {
    const tools = { get_weather: tool({ inputSchema: City, ...getWeather }) };
    const request = { model, tools, prompt: question, stopWhen: isStepCount(3), maxRetries: 0 };
    const { text, steps } = await generateText(request);
    assert.deepEqual([text, steps.length], [answer, 2]);
    let streamed = "";
    for await (const delta of streamText(request).textStream) streamed += delta;
    assert.equal(streamed, answer);
    const { output } = await generateText({
      model,
      prompt: jsonQuestion,
      output: Output.object({ schema: Weather }),
      maxRetries: 0,
    });
    assert.deepEqual(output, weather);
  });
}
