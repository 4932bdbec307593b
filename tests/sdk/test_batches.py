"""`/v1/files` and `/v1/batches` as OpenAI's Python client sees them."""

import json
import os
import time
import unittest

import openai

OPTIONS = dict(base_url=os.environ["BASE_URL"], api_key="unused", max_retries=0, timeout=60)
client = openai.OpenAI(**OPTIONS)
other = openai.OpenAI(**{**OPTIONS, "api_key": "another"})


def chat(custom_id, content="Name a city.", **options):
    body = {"model": "default", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": {**body, **options}}


def upload(lines):
    content = "".join(json.dumps(line) + "\n" for line in lines)
    return client.files.create(file=("requests.jsonl", content.encode()), purpose="batch")


def run(lines, endpoint="/v1/chat/completions", **options):
    """Creates a batch and waits for its end."""
    file = upload(lines)
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **options)
    deadline = time.monotonic() + 60
    while batch.status not in ("completed", "failed", "cancelled", "expired"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return batch


def results(file_id):
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


class Files(unittest.TestCase):
    def test_a_file_is_uploaded_listed_downloaded_and_deleted(self):
        expires = {"anchor": "created_at", "seconds": 3600}
        file = client.files.create(file=("notes.txt", b"caf\xc3\xa9\n"), purpose="user_data", expires_after=expires)
        self.assertEqual((file.bytes, file.filename, file.purpose), (6, "notes.txt", "user_data"))
        self.assertEqual(file.expires_at - file.created_at, 3600)
        self.assertEqual(client.files.content(file.id).read(), b"caf\xc3\xa9\n")
        self.assertEqual(client.files.retrieve(file.id), file)
        self.assertIn(file.id, [listed.id for listed in client.files.list(purpose="user_data")])
        with self.assertRaises(openai.NotFoundError):
            other.files.retrieve(file.id)
        self.assertTrue(client.files.delete(file.id).deleted)
        with self.assertRaises(openai.NotFoundError):
            client.files.content(file.id)

    def test_pages_of_files(self):
        ids = [upload([chat("a")]).id for _ in range(5)]
        listed = [file.id for file in client.files.list(purpose="batch", limit=2, order="asc") if file.id in ids]
        self.assertEqual(len(listed), 5)


class Batches(unittest.TestCase):
    def test_a_batch_gives_what_its_requests_give(self):
        contents = ["Name a city.", "Count to three.", "Say hello."]
        lines = [chat(f"request-{i}", content) for i, content in enumerate(contents)]
        batch = run([*lines, chat("wrong", temperature=-1)], metadata={"run": "1"})
        self.assertEqual((batch.status, batch.metadata), ("completed", {"run": "1"}))
        counts = batch.request_counts
        self.assertEqual((counts.total, counts.completed, counts.failed), (4, 3, 1))
        for line, result in zip(lines, results(batch.output_file_id)):
            self.assertEqual(result["custom_id"], line["custom_id"])
            alone = client.chat.completions.create(**line["body"])
            message = result["response"]["body"]["choices"][0]["message"]["content"]
            self.assertEqual(message, alone.choices[0].message.content)
        [error] = results(batch.error_file_id)
        self.assertEqual((error["custom_id"], error["response"]["status_code"]), ("wrong", 400))
        self.assertEqual(batch.usage.total_tokens, batch.usage.input_tokens + batch.usage.output_tokens)

    def test_embeddings(self):
        line = {"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": {"input": ["a", "b"]}}
        batch = run([line], endpoint="/v1/embeddings")
        [result] = results(batch.output_file_id)
        alone = client.embeddings.create(model="default", input=["a", "b"], encoding_format="float")
        for got, expected in zip(result["response"]["body"]["data"], alone.data, strict=True):
            self.assertEqual(got["embedding"], expected.embedding)

    def test_a_batch_is_cancelled(self):
        file = upload([chat(str(i), max_tokens=500, ignore_eos=True) for i in range(200)])
        endpoint = "/v1/chat/completions"
        batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
        self.assertIn(client.batches.cancel(batch.id).status, ("cancelling", "cancelled"))
        deadline = time.monotonic() + 30
        while (batch := client.batches.retrieve(batch.id)).status != "cancelled":
            self.assertLess(time.monotonic(), deadline, batch)
            time.sleep(0.05)
        self.assertIn(batch.id, [listed.id for listed in client.batches.list(limit=3)])

    def test_mistakes(self):
        batch = run([chat("a"), chat("a")])
        self.assertEqual((batch.status, batch.errors.data[0].line), ("failed", 2))
        with self.assertRaises(openai.BadRequestError) as raised:
            client.batches.create(input_file_id=upload([]).id, endpoint="/v1/x", completion_window="24h")
        self.assertEqual(raised.exception.param, "endpoint")


if __name__ == "__main__":
    unittest.main(verbosity=1)
