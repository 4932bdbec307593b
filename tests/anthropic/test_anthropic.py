"""Anthropic's Python client and LangChain's ChatAnthropic against a running server, at ANTHROPIC_BASE_URL."""

import asyncio
import time
import unittest
from typing import Literal

import anthropic
from anthropic import beta_tool
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from pydantic import BaseModel

client = anthropic.Anthropic(max_retries=0, timeout=120)
HELLO = [{"role": "user", "content": "Say hello."}]
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class Person(BaseModel):
    name: Literal["Ada", "Alan"]
    # Bounds would stay with the client, which leaves them out of the schema that it sends.
    age: int


# The client has no parameter for it any more.
GREEDY = {"temperature": 0}
BASE = {"model": "default", "max_tokens": 16, "messages": HELLO, "extra_body": GREEDY}


def create(**fields):
    return client.messages.create(**{**BASE, **fields})


class Batches(unittest.TestCase):
    def test_a_batch(self):
        params = {"model": "default", "max_tokens": 8, "messages": HELLO, **GREEDY}
        requests = [
            {"custom_id": "a", "params": params},
            {"custom_id": "b", "params": {**params, "messages": []}},
        ]
        batch = client.messages.batches.create(requests=requests)
        self.assertEqual(batch.request_counts.processing, 2)
        deadline = time.monotonic() + 60
        while (batch := client.messages.batches.retrieve(batch.id)).processing_status != "ended":
            self.assertLess(time.monotonic(), deadline, batch)
            time.sleep(0.05)
        self.assertEqual((batch.request_counts.succeeded, batch.request_counts.errored), (1, 1))
        results = {result.custom_id: result.result for result in client.messages.batches.results(batch.id)}
        self.assertEqual(results["a"].message.content, client.messages.create(**BASE | {"max_tokens": 8}).content)
        self.assertEqual(results["b"].error.error.type, "invalid_request_error")
        self.assertIn(batch.id, [listed.id for listed in client.messages.batches.list(limit=2)])
        self.assertEqual(client.messages.batches.delete(batch.id).type, "message_batch_deleted")
        with self.assertRaises(anthropic.NotFoundError):
            client.messages.batches.retrieve(batch.id)

    def test_a_batch_is_cancelled(self):
        params = {"model": "default", "max_tokens": 500, "messages": HELLO, "ignore_eos": True}
        requests = [{"custom_id": str(i), "params": params} for i in range(100)]
        batch = client.messages.batches.create(requests=requests)
        batch = client.messages.batches.cancel(batch.id)
        self.assertIsNotNone(batch.cancel_initiated_at)
        deadline = time.monotonic() + 30
        while (batch := client.messages.batches.retrieve(batch.id)).processing_status != "ended":
            self.assertLess(time.monotonic(), deadline, batch)
            time.sleep(0.05)
        kinds = [result.result.type for result in client.messages.batches.results(batch.id)]
        self.assertEqual(kinds.count("canceled"), batch.request_counts.canceled)
        self.assertEqual(len(kinds), 100)


class Client(unittest.TestCase):
    def test_a_message(self):
        message = create(system="Be brief.", metadata={"user_id": "u"})
        self.assertEqual((message.type, message.role), ("message", "assistant"))
        self.assertEqual([block.type for block in message.content], ["text"])
        self.assertIn(message.stop_reason, ("end_turn", "max_tokens"))
        self.assertGreater(message.usage.input_tokens + message.usage.cache_read_input_tokens, 0)
        self.assertTrue(message._request_id)

    def test_the_stream_adds_up_to_the_message(self):
        whole = create()
        with client.messages.stream(**BASE) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual([block.text for block in final.content], [block.text for block in whole.content])
        self.assertEqual(text, whole.content[0].text)
        self.assertEqual(final.stop_reason, whole.stop_reason)
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)

    def test_raw_events_come_in_order(self):
        events = [event.type for event in create(stream=True)]
        self.assertEqual(events[:2], ["message_start", "content_block_start"])
        self.assertEqual(events[-3:], ["content_block_stop", "message_delta", "message_stop"])

    def test_asynchronous_streams(self):
        async def text():
            async with anthropic.AsyncAnthropic().messages.stream(**BASE) as stream:
                return "".join([text async for text in stream.text_stream])

        self.assertEqual(asyncio.run(text()), create().content[0].text)

    def test_a_stop_sequence(self):
        text = create().content[0].text
        stop = text[3:5]
        message = create(stop_sequences=["never there", stop])
        self.assertEqual((message.stop_reason, message.stop_sequence), ("stop_sequence", stop))
        self.assertEqual(message.content[0].text, text[: text.index(stop)])

    def test_a_forced_tool_and_its_result(self):
        fields = {"tools": [WEATHER], "max_tokens": 100}
        message = create(**fields, tool_choice={"type": "tool", "name": "get_weather"})
        self.assertEqual(message.stop_reason, "tool_use")
        (call,) = message.content
        self.assertIn(call.input["city"], ("Paris", "Rome"))
        result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "20 degrees"}]}
        history = HELLO + [message.to_param(), {"role": "user", "content": [result]}]
        self.assertTrue(create(**fields, messages=history).content)

    def test_a_streamed_tool_use(self):
        fields = {**BASE, "max_tokens": 300, "tools": [WEATHER]}
        choice = {"type": "any", "disable_parallel_tool_use": True}
        with client.messages.stream(**fields, tool_choice=choice) as stream:
            final = stream.get_final_message()
        self.assertEqual(final.stop_reason, "tool_use")
        self.assertIn(final.content[-1].input["city"], ("Paris", "Rome"))

    def test_parsed_output(self):
        message = client.messages.parse(
            model="default",
            max_tokens=200,
            messages=[{"role": "user", "content": "Invent a person."}],
            output_format=Person,
        )
        self.assertIsInstance(message.parsed_output, Person)

    def test_the_tool_runner(self):
        @beta_tool
        def add(a: int, b: int) -> str:
            """Add two integers."""
            return str(a + b)

        choice = {"type": "any", "disable_parallel_tool_use": True}
        runner = client.beta.messages.tool_runner(
            model="default", max_tokens=60, messages=HELLO, tools=[add], tool_choice=choice, max_iterations=3
        )
        self.assertEqual(len(list(runner)), 3)

    def test_counted_tokens(self):
        counted = client.messages.count_tokens(model="default", messages=HELLO, system="Be brief.", tools=[WEATHER])
        usage = create(system="Be brief.", tools=[WEATHER]).usage
        self.assertEqual(counted.input_tokens, usage.input_tokens + usage.cache_read_input_tokens)

    def test_models(self):
        models = list(client.models.list())
        self.assertGreaterEqual(len(models), 2)
        model = client.models.retrieve(models[0].id)
        self.assertEqual(model, models[0])
        self.assertGreater(model.max_input_tokens, 0)
        with self.assertRaises(anthropic.NotFoundError):
            client.models.retrieve("other")

    def test_prompts_are_cached(self):
        system = [{"type": "text", "text": "Be brief. " * 100, "cache_control": {"type": "ephemeral"}}]
        create(system=system)
        self.assertGreater(create(system=system).usage.cache_read_input_tokens, 100)

    def test_errors(self):
        with self.assertRaises(anthropic.NotFoundError) as caught:
            create(model="other")
        self.assertEqual((caught.exception.type, caught.exception.error_code), ("not_found_error", "model_not_found"))
        self.assertTrue(caught.exception.request_id)
        image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
        with self.assertRaisesRegex(anthropic.BadRequestError, r"messages\[0\].content\[0\]. is an image"):
            create(messages=[{"role": "user", "content": [image]}])
        with self.assertRaisesRegex(anthropic.BadRequestError, "prompt is too long: "):
            create(messages=[{"role": "user", "content": "word " * 20000}])


class LangChain(unittest.TestCase):
    model = ChatAnthropic(model_name="default", max_tokens_to_sample=60, timeout=120, stop=None, temperature=0)

    def test_invoking_and_streaming(self):
        answer = self.model.invoke("Say hello.")
        chunks = list(self.model.stream("Say hello."))
        merged = chunks[0]
        for chunk in chunks[1:]:
            merged += chunk
        self.assertEqual(merged.text, answer.text)
        self.assertEqual(merged.usage_metadata["total_tokens"], answer.usage_metadata["total_tokens"])

    def test_tools(self):
        answer = self.model.bind_tools([WEATHER], tool_choice="get_weather").invoke("How warm is it?")
        (call,) = answer.tool_calls
        history = [
            HumanMessage("How warm is it?"),
            AIMessage(answer.content, tool_calls=answer.tool_calls),
            ToolMessage("20 degrees", tool_call_id=call["id"]),
        ]
        self.assertTrue(self.model.bind_tools([WEATHER]).invoke(history).content)

    def test_structured_output(self):
        for method in ("json_schema", "function_calling"):
            model = ChatAnthropic(model_name="default", max_tokens_to_sample=200, timeout=120, stop=None)
            person = model.with_structured_output(Person, method=method).invoke("Invent a person.")
            self.assertIsInstance(person, Person, method)


if __name__ == "__main__":
    unittest.main()
