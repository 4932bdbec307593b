"""Ollama's Python client pulls and deletes models of a running server, at OLLAMA_HOST, whose hub has tiny/llama."""

import unittest

import ollama


class Management(unittest.TestCase):
    def check_refused(self, status, text, call):
        with self.assertRaises(ollama.ResponseError) as caught:
            call()
        self.assertEqual(caught.exception.status_code, status)
        self.assertIn(text, caught.exception.error)

    def test_pulling_and_deleting(self):
        lines = list(ollama.pull("hf:tiny/llama", stream=True))
        self.assertEqual((lines[0].status, lines[-1].status), ("pulling manifest", "success"))
        self.assertTrue(all(line.digest for line in lines[1:-1]))
        complete = [line.status for line in lines if line.total and line.completed == line.total]
        self.assertIn("pulling tiny/llama/model.safetensors", complete)
        self.assertEqual(ollama.pull("hf:tiny/llama:latest").status, "success")
        self.assertIn("tiny/llama", [model.model for model in ollama.list().models])
        answer = ollama.generate("tiny/llama", "Hello", raw=True, options={"num_predict": 4})
        self.assertEqual((answer.model, answer.done), ("tiny/llama", True))
        self.assertEqual(ollama.delete("tiny/llama").status, "success")
        self.assertNotIn("tiny/llama", [model.model for model in ollama.list().models])
        self.check_refused(404, "is not served", lambda: ollama.delete("tiny/llama"))
        self.check_refused(404, "is not on disk", lambda: ollama.delete("hf:tiny/llama"))

    def test_errors(self):
        self.check_refused(400, "unknown model", lambda: ollama.pull("other"))
        with self.assertRaisesRegex(ollama.ResponseError, "unknown model"):
            list(ollama.pull("other", stream=True))
        self.check_refused(404, "/api/copy", lambda: ollama.copy("default", "mine"))
        self.check_refused(404, "/api/push", lambda: ollama.push("default"))
        self.check_refused(404, "/api/create", lambda: ollama.create("mine", from_="default"))


if __name__ == "__main__":
    unittest.main()
