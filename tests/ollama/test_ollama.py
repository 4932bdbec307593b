"""Ollama's Python client and LangChain's ChatOllama against a running server, at OLLAMA_HOST."""

import asyncio
import math
import unittest
from typing import Literal

import ollama
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings
from pydantic import BaseModel

HELLO = [{"role": "user", "content": "Say hello."}]
GREEDY = {"temperature": 0, "num_predict": 16}
BASE = {"model": "default:latest", "messages": HELLO, "options": GREEDY}


class Person(BaseModel):
    name: Literal["Ada", "Alan"]
    age: int


def get_weather(city: str) -> str:
    """
    The weather of a city.

    Args:
      city: The city.
    """
    return f"20 degrees in {city}"


class Client(unittest.TestCase):
    def check_end(self, end):
        self.assertIs(end.done, True)
        self.assertIn(end.done_reason, ("stop", "length"))
        self.assertGreater(end.prompt_eval_count, 0)
        self.assertGreater(end.eval_count, 1)
        self.assertGreater(end.eval_duration, 0)
        self.assertGreaterEqual(end.total_duration, end.prompt_eval_duration + end.eval_duration)

    def test_a_chat_and_its_stream(self):
        whole = ollama.chat(**BASE)
        self.check_end(whole)
        self.assertEqual(whole.message.role, "assistant")
        chunks = list(ollama.chat(**BASE, stream=True))
        self.assertGreater(len(chunks), 3)
        self.assertEqual("".join(chunk.message.content for chunk in chunks), whole.message.content)
        self.assertTrue(not any(chunk.done for chunk in chunks[:-1]))
        self.check_end(chunks[-1])
        self.assertEqual(chunks[-1].eval_count, whole.eval_count)

    def test_asynchronous_streams(self):
        async def text():
            async with ollama.AsyncClient() as client:
                chunks = await client.chat(**BASE, stream=True)
                return "".join([chunk.message.content async for chunk in chunks])

        self.assertEqual(asyncio.run(text()), ollama.chat(**BASE).message.content)

    def test_options(self):
        text = ollama.chat(**BASE).message.content
        stopped = ollama.chat(**BASE | {"options": GREEDY | {"stop": [text[3:6]]}})
        self.assertEqual((stopped.message.content, stopped.done_reason), (text[:3], "stop"))
        limited = ollama.chat(**BASE | {"options": ollama.Options(num_predict=2, num_ctx=4096, seed=7)})
        self.assertEqual((limited.eval_count, limited.done_reason), (2, "length"))

    def test_tools(self):
        # The model may answer in words; a result of a tool is understood either way.
        answer = ollama.chat(**BASE, tools=[get_weather])
        self.assertTrue(answer.message.content or answer.message.tool_calls)
        call = ollama.Message.ToolCall.Function(name="get_weather", arguments={"city": "Paris"})
        history = HELLO + [
            ollama.Message(role="assistant", tool_calls=[ollama.Message.ToolCall(function=call)]),
            {"role": "tool", "tool_name": "get_weather", "content": get_weather("Paris")},
        ]
        answer = ollama.chat(**BASE | {"messages": history}, tools=[get_weather])
        self.assertTrue(answer.message.content or answer.message.tool_calls)
        with self.assertRaisesRegex(ollama.ResponseError, "has not called"):
            ollama.chat(**BASE | {"messages": HELLO + history[-1:]})

    def test_a_format(self):
        options = {"temperature": 1, "num_predict": 200}
        for path in (ollama.chat, ollama.generate):
            fields = {"messages": HELLO} if path is ollama.chat else {"prompt": "Invent a person."}
            answer = path(model="default", **fields, format=Person.model_json_schema(), options=options)
            Person.model_validate_json(answer.message.content if path is ollama.chat else answer.response)

    def test_generate(self):
        fields = {"model": "default", "prompt": "Say hello.", "options": GREEDY}
        whole = ollama.generate(**fields)
        self.check_end(whole)
        self.assertEqual("".join(chunk.response for chunk in ollama.generate(**fields, stream=True)), whole.response)
        self.assertEqual(whole.response, ollama.chat(**BASE).message.content)
        self.assertNotEqual(ollama.generate(**fields, raw=True).response, whole.response)
        self.assertTrue(ollama.generate(**fields, system="Be brief.").response)
        for answer in (ollama.generate(model="default"), ollama.chat(model="default")):
            self.assertEqual(answer.done_reason, "load")

    def test_log_probabilities(self):
        for answer in (
            ollama.chat(**BASE, logprobs=True, top_logprobs=3),
            ollama.generate("default", "Hello", raw=True, options=GREEDY, logprobs=True, top_logprobs=3),
        ):
            self.assertLessEqual(answer.logprobs[0].logprob, 0)
            self.assertEqual(len(answer.logprobs[0].top_logprobs), 3)

    def test_embeddings(self):
        both = ollama.embed("default", ["A cat.", "A dog."])
        self.assertEqual(len(both.embeddings), 2)
        self.assertAlmostEqual(math.hypot(*both.embeddings[0]), 1, places=5)
        self.assertGreater(both.prompt_eval_count, 4)
        self.assertEqual(len(ollama.embed("default", "A cat.", dimensions=16).embeddings[0]), 16)
        self.assertEqual(ollama.embeddings("default", "A cat.").embedding, both.embeddings[0])
        ollama.embed("default", "cat " * 5000)
        with self.assertRaises(ollama.ResponseError):
            ollama.embed("default", "cat " * 5000, truncate=False)

    def test_models(self):
        listed = ollama.list().models
        self.assertEqual(len(listed), 2)
        chat = listed[0]
        self.assertGreater(chat.size, 10_000_000)
        self.assertEqual((chat.details.format, chat.details.family), ("gguf", "llama"))
        self.assertEqual([model.model for model in ollama.ps().models], [model.model for model in listed])
        self.assertGreater(ollama.ps().models[0].context_length, 1000)
        shown = ollama.show(chat.model)
        self.assertIn("completion", shown.capabilities)
        self.assertIn("messages", shown.template)
        self.assertEqual(shown.modelinfo["general.architecture"], "llama")
        self.assertEqual(ollama.show(listed[1].model).capabilities, ["embedding"])

    def test_a_decision(self):
        question = {"type": "choice", "instructions": "What is it?", "criteria": {"cat": None, "dog": None}}
        with ollama.Client() as client:
            answer = client.systemone("default", "It barks.", {"animal": question}).answers["animal"]
        self.assertIn(answer.choice, ("cat", "dog"))

    def test_errors(self):
        for call in (
            lambda: ollama.chat(**BASE | {"model": "other"}),
            lambda: list(ollama.chat(**BASE | {"model": "other"}, stream=True)),
            lambda: ollama.show("other"),
        ):
            with self.assertRaises(ollama.ResponseError) as caught:
                call()
            self.assertEqual(caught.exception.status_code, 404)
            self.assertIn("`other` is not served", caught.exception.error)
        with self.assertRaisesRegex(ollama.ResponseError, "images"):
            ollama.chat(**BASE | {"messages": [{"role": "user", "content": "x", "images": [b"x"]}]})
        with self.assertRaisesRegex(ollama.ResponseError, "tokens"):
            ollama.chat(**BASE | {"messages": [{"role": "user", "content": "word " * 20000}]})


class LangChain(unittest.TestCase):
    model = ChatOllama(model="default", temperature=0, num_predict=40, validate_model_on_init=False)

    def test_invoking_and_streaming(self):
        answer = self.model.invoke("Say hello.")
        chunks = list(self.model.stream("Say hello."))
        merged = chunks[0]
        for chunk in chunks[1:]:
            merged += chunk
        self.assertEqual(merged.text, answer.text)
        self.assertEqual(merged.usage_metadata["total_tokens"], answer.usage_metadata["total_tokens"])

    def test_tools(self):
        model = self.model.bind_tools([get_weather])
        history = [
            HumanMessage("How warm is it?"),
            AIMessage("", tool_calls=[{"name": "get_weather", "args": {"city": "Paris"}, "id": "c1"}]),
            ToolMessage("20 degrees", tool_call_id="c1"),
        ]
        answer = model.invoke(history)
        self.assertTrue(answer.content or answer.tool_calls)

    def test_structured_output(self):
        model = ChatOllama(model="default", num_predict=200)
        self.assertIsInstance(model.with_structured_output(Person).invoke("Invent a person."), Person)

    def test_embeddings(self):
        embeddings = OllamaEmbeddings(model="default")
        self.assertEqual(embeddings.embed_documents(["A cat."])[0], embeddings.embed_query("A cat."))


if __name__ == "__main__":
    unittest.main()
