// Ollama's JavaScript client against a running server, at OLLAMA_HOST.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Ollama } from 'ollama';

const client = new Ollama({ host: process.env.OLLAMA_HOST });
const options = { temperature: 0, num_predict: 16 };
const base = { model: 'default', messages: [{ role: 'user', content: 'Say hello.' }], options };

test('a chat and its stream', async () => {
  const whole = await client.chat(base);
  assert.equal(whole.done, true);
  let text = '';
  let last;
  for await (const part of await client.chat({ ...base, stream: true })) {
    text += part.message.content;
    last = part;
  }
  assert.equal(text, whole.message.content);
  assert.equal(last.eval_count, whole.eval_count);
});

test('an aborted stream', async () => {
  const stream = await client.chat({ ...base, stream: true, options: { ...options, num_predict: -1 } });
  await assert.rejects(async () => {
    for await (const _ of stream) stream.abort();
  }, /abort/i);
});

test('a format', async () => {
  const format = { type: 'object', properties: { n: { enum: [7] } }, required: ['n'] };
  const { message } = await client.chat({ ...base, format, options: { num_predict: 100 } });
  assert.deepEqual(JSON.parse(message.content), { n: 7 });
});

test('a prompt', async () => {
  const { response } = await client.generate({ model: 'default', prompt: 'Say hello.', options });
  assert.equal(response, (await client.chat(base)).message.content);
});

test('embeddings', async () => {
  const { embeddings } = await client.embed({ model: 'default', input: ['A cat.', 'A dog.'] });
  assert.equal(embeddings.length, 2);
  assert.deepEqual((await client.embeddings({ model: 'default', prompt: 'A cat.' })).embedding, embeddings[0]);
});

test('models', async () => {
  const { models } = await client.list();
  assert.equal(models.length, 2);
  assert.equal((await client.ps()).models[0].name, models[0].name);
  assert.ok((await client.show({ model: models[0].name })).capabilities.includes('completion'));
  assert.match((await client.version()).version, /^\d+\.\d+/);
});

test('errors', async () => {
  await assert.rejects(client.chat({ ...base, model: 'other' }), (error) => {
    assert.equal(error.status_code, 404);
    assert.match(error.error, /is not served/);
    return true;
  });
});
