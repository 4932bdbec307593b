// `/v1/files` and `/v1/batches` as OpenAI's Node client sees them.

import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout } from "node:timers/promises";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "unused", maxRetries: 0, timeout: 60_000 });
const url = "/v1/responses";
const request = (id, more = {}) => ({
  custom_id: id,
  method: "POST",
  url,
  body: { model: "default", input: "Name a city.", temperature: 0, max_output_tokens: 8, ...more },
});
const upload = async (lines) => {
  const content = lines.map((line) => `${JSON.stringify(line)}\n`).join("");
  return client.files.create({ file: await toFile(Buffer.from(content), "requests.jsonl"), purpose: "batch" });
};

test("a file", async () => {
  const file = await upload([request("a")]);
  assert.equal(file.filename, "requests.jsonl");
  const content = await (await client.files.content(file.id)).text();
  assert.equal(JSON.parse(content).custom_id, "a");
  const listed = [];
  for await (const entry of client.files.list({ limit: 1 })) listed.push(entry.id);
  assert.ok(listed.includes(file.id));
  assert.ok((await client.files.delete(file.id)).deleted);
  await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);
});

test("a batch", async () => {
  const file = await upload([request("a"), request("b", { temperature: 9 })]);
  let batch = await client.batches.create({ input_file_id: file.id, endpoint: url, completion_window: "24h" });
  for (let tries = 0; batch.status !== "completed"; tries++) {
    assert.ok(tries < 600 && batch.status !== "failed", JSON.stringify(batch));
    await setTimeout(100);
    batch = await client.batches.retrieve(batch.id);
  }
  assert.deepEqual(batch.request_counts, { total: 2, completed: 1, failed: 1 });
  const result = JSON.parse(await (await client.files.content(batch.output_file_id)).text());
  const stored = await client.responses.retrieve(result.response.body.id);
  assert.equal(stored.status, result.response.body.status);
  const error = JSON.parse(await (await client.files.content(batch.error_file_id)).text());
  assert.equal(error.response.body.error.param, "temperature");
});
