// Anthropic's TypeScript client and the AI SDK against a running server, at ANTHROPIC_BASE_URL.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import Anthropic from '@anthropic-ai/sdk';
import { betaZodTool } from '@anthropic-ai/sdk/helpers/beta/zod';
import { zodOutputFormat } from '@anthropic-ai/sdk/helpers/zod';
import { createAnthropic } from '@ai-sdk/anthropic';
import { generateText, stepCountIs, streamText, tool } from 'ai';
import * as z from 'zod';

const client = new Anthropic({ maxRetries: 0 });
const base = { model: 'default', max_tokens: 16, temperature: 0, messages: [{ role: 'user', content: 'Say hello.' }] };
const city = z.object({ city: z.enum(['Paris', 'Rome']) });
const weather = { name: 'get_weather', description: 'The weather', input_schema: z.toJSONSchema(city) };
const person = z.object({ name: z.string().max(20), age: z.number().int().min(0).max(120) });

test('a message', async () => {
  const message = await client.messages.create(base);
  assert.equal(message.content[0].type, 'text');
  assert.ok(message._request_id);
});

test('a stream adds up to the message', async () => {
  const whole = await client.messages.create(base);
  const stream = client.messages.stream(base);
  let text = '';
  stream.on('text', (delta) => (text += delta));
  const final = await stream.finalMessage();
  assert.equal(text, whole.content[0].text);
  assert.deepEqual(final.content, whole.content);
  assert.equal(final.usage.output_tokens, whole.usage.output_tokens);
});

test('a forced tool', async () => {
  const fields = { ...base, max_tokens: 100, tools: [weather], tool_choice: { type: 'any', disable_parallel_tool_use: true } };
  const message = await client.messages.create(fields);
  assert.equal(message.stop_reason, 'tool_use');
  city.parse(message.content.at(-1).input);
  const streamed = await client.messages.stream(fields).finalMessage();
  city.parse(streamed.content.at(-1).input);
});

test('parsed output', async () => {
  const message = await client.messages.parse({
    ...base,
    max_tokens: 200,
    output_config: { format: zodOutputFormat(person) },
  });
  person.parse(message.parsed_output);
});

test('the tool runner', async () => {
  const run = betaZodTool({ name: 'get_weather', description: 'The weather', inputSchema: city, run: () => '20 degrees' });
  const message = await client.beta.messages.toolRunner({ ...base, tools: [run], max_iterations: 2 });
  assert.ok(message.content);
});

test('counted tokens', async () => {
  const { input_tokens } = await client.messages.countTokens({ model: 'default', messages: base.messages });
  const { usage } = await client.messages.create(base);
  assert.equal(input_tokens, usage.input_tokens + usage.cache_read_input_tokens);
});

test('errors', async () => {
  await assert.rejects(client.messages.create({ ...base, model: 'other' }), (error) => {
    assert.ok(error instanceof Anthropic.NotFoundError);
    assert.equal(error.error.error.type, 'not_found_error');
    return true;
  });
});

const aiSdk = createAnthropic({ baseURL: `${process.env.ANTHROPIC_BASE_URL}/v1` })('default');

test('the AI SDK: text and streams', async () => {
  const settings = { model: aiSdk, prompt: 'Say hello.', maxOutputTokens: 16, temperature: 0 };
  const { text, usage } = await generateText(settings);
  const stream = streamText(settings);
  assert.equal(await stream.text, text);
  assert.equal((await stream.usage).totalTokens, usage.totalTokens);
});

test('the AI SDK: tools', async () => {
  const run = tool({ description: 'The weather', inputSchema: city, execute: async () => '20 degrees' });
  const { steps } = await generateText({
    model: aiSdk,
    prompt: 'How warm is it?',
    maxOutputTokens: 60,
    tools: { get_weather: run },
    toolChoice: { type: 'tool', toolName: 'get_weather' },
    stopWhen: stepCountIs(2),
  });
  assert.equal(steps[0].toolResults[0].output, '20 degrees');
});

test('a batch', async () => {
  let batch = await client.messages.batches.create({ requests: [{ custom_id: 'a', params: base }] });
  for (let tries = 0; batch.processing_status !== 'ended'; tries++) {
    assert.ok(tries < 600, JSON.stringify(batch));
    await new Promise((resolve) => setTimeout(resolve, 100));
    batch = await client.messages.batches.retrieve(batch.id);
  }
  for await (const { custom_id, result } of await client.messages.batches.results(batch.id)) {
    assert.equal(custom_id, 'a');
    assert.deepEqual(result.message.content, (await client.messages.create(base)).content);
  }
  assert.equal((await client.messages.batches.delete(batch.id)).type, 'message_batch_deleted');
});
