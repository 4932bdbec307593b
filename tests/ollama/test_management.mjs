// Ollama's JavaScript client pulls and deletes a model of a running server, at OLLAMA_HOST, whose hub has tiny/llama.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Ollama } from 'ollama';

const client = new Ollama({ host: process.env.OLLAMA_HOST });

test('pulling and deleting', async () => {
  const lines = [];
  for await (const line of await client.pull({ model: 'hf:tiny/llama', stream: true })) lines.push(line);
  assert.deepEqual([lines[0], lines.at(-1)], [{ status: 'pulling manifest' }, { status: 'success' }]);
  const complete = lines.filter((line) => line.total > 0 && line.completed === line.total);
  assert.ok(complete.some((line) => line.status === 'pulling tiny/llama/model.safetensors'));
  assert.deepEqual(await client.pull({ model: 'hf:tiny/llama' }), { status: 'success' });
  assert.deepEqual(await client.delete({ model: 'tiny/llama' }), { status: 'success' });
  await assert.rejects(client.delete({ model: 'tiny/llama' }), (error) => {
    assert.equal(error.status_code, 404);
    assert.match(error.error, /is not served/);
    return true;
  });
});
