"""`/v1/responses` and `/v1/conversations` as OpenAI's Python client and the Agents SDK see them."""

import asyncio
import os
import time
import unittest
from typing import Literal

import openai
from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_client, set_tracing_disabled
from pydantic import BaseModel

OPTIONS = dict(base_url=os.environ["BASE_URL"], api_key="unused", max_retries=0, timeout=60)
client = openai.OpenAI(**OPTIONS)
other = openai.OpenAI(**{**OPTIONS, "api_key": "another"})

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class Capital(BaseModel):
    city: Literal["Paris", "Rome"]
    is_large: bool


def request(**options):
    return {"model": "default", "input": "Name a city.", "temperature": 0, "max_output_tokens": 16, **options}


def create(**options):
    return client.responses.create(**request(**options))


class Responses(unittest.TestCase):
    def test_a_whole_response_and_its_stream_are_equal(self):
        whole = create()
        self.assertEqual(whole.status, "incomplete" if whole.incomplete_details else "completed")
        self.assertEqual(whole.usage.total_tokens, whole.usage.input_tokens + whole.usage.output_tokens)
        with client.responses.stream(**request()) as stream:
            events = list(stream)
        self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        self.assertEqual(text, whole.output_text)
        self.assertEqual(events[-1].response.output_text, text)

    def test_parsed_models(self):
        parsed = client.responses.parse(**request(max_output_tokens=300), text_format=Capital)
        self.assertIsInstance(parsed.output_parsed, Capital)
        with client.responses.stream(**request(max_output_tokens=300), text_format=Capital) as stream:
            self.assertIsInstance(stream.get_final_response().output_parsed, Capital)

    def test_calls_and_their_outputs(self):
        options = dict(tools=[WEATHER], tool_choice="required", max_output_tokens=300, parallel_tool_calls=False)
        first = create(**options)
        (call,) = [item for item in first.output if item.type == "function_call"]
        self.assertIn(client.responses.parse(**request(**options)).output[-1].parsed_arguments["city"], ["Paris", "Rome"])
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "20 degrees"}
        second = create(input=[output], previous_response_id=first.id, tools=[WEATHER])
        self.assertEqual(second.previous_response_id, first.id)
        history = [{"role": "user", "content": "Name a city."}, *first.output, output]
        self.assertEqual(create(input=history, tools=[WEATHER], store=False).output_text, second.output_text)

    def test_state(self):
        first = create(metadata={"a": "b"})
        self.assertEqual(client.responses.retrieve(first.id), first)
        items = client.responses.input_items.list(first.id)
        self.assertEqual(items.data[0].content[0].text, "Name a city.")
        with self.assertRaises(openai.NotFoundError):
            other.responses.retrieve(first.id)
        events = list(client.responses.retrieve(first.id, stream=True))
        self.assertEqual(events[-1].response.output_text, first.output_text)
        rest = list(client.responses.retrieve(first.id, stream=True, starting_after=3))
        self.assertEqual(rest, events[4:])
        client.responses.delete(first.id)
        with self.assertRaises(openai.NotFoundError):
            client.responses.retrieve(first.id)
        with self.assertRaises(openai.BadRequestError) as caught:
            create(previous_response_id=first.id)
        self.assertEqual(caught.exception.code, "previous_response_not_found")

    def test_background(self):
        queued = create(background=True)
        self.assertIn(queued.status, ["queued", "in_progress"])
        deadline = time.monotonic() + 30
        while (found := client.responses.retrieve(queued.id)).status in ["queued", "in_progress"]:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)
        self.assertIn(found.status, ["completed", "incomplete"])
        self.assertEqual(client.responses.cancel(queued.id).status, found.status)

    def test_input_tokens(self):
        counted = client.responses.input_tokens.count(model="default", input="Name a city.", tools=[WEATHER])
        self.assertEqual(counted.input_tokens, create(tools=[WEATHER]).usage.input_tokens)

    def test_compaction(self):
        first = create(input="Name a city.")
        compacted = client.responses.compact(model="default", previous_response_id=first.id, input="And a river.")
        self.assertEqual([item.type for item in compacted.output], ["message", "message", "compaction"])
        items = [item.model_dump(exclude_none=True) for item in compacted.output]
        after = create(input=[*items, {"role": "user", "content": "Which city?"}])
        self.assertIn(after.status, ["completed", "incomplete"])

    def test_conversations(self):
        message = {"type": "message", "role": "user", "content": "Hi."}
        conversation = client.conversations.create(items=[message], metadata={"a": "b"})
        create(conversation=conversation.id)
        items = list(client.conversations.items.list(conversation.id, order="asc", limit=2))
        self.assertEqual([item.role for item in items], ["user", "user", "assistant"])
        item = client.conversations.items.retrieve(items[0].id, conversation_id=conversation.id)
        self.assertEqual(item.content[0].text, "Hi.")
        client.conversations.items.create(conversation.id, items=[message])
        client.conversations.items.delete(items[0].id, conversation_id=conversation.id)
        self.assertEqual(client.conversations.update(conversation.id, metadata={"c": "d"}).metadata, {"c": "d"})
        self.assertTrue(client.conversations.delete(conversation.id).deleted)

    def test_errors(self):
        for options, param in [
            (dict(input=[{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]), "input[0].content[0]"),
            (dict(tools=[{"type": "unheard_of"}]), "tools[0].type"),
            (dict(max_output_tokens=0), "max_output_tokens"),
        ]:
            with self.assertRaises(openai.BadRequestError) as caught:
                create(**options)
            self.assertEqual(caught.exception.param, param)


class Agents(unittest.TestCase):
    def test_an_agent_calls_its_tool(self):
        set_tracing_disabled(True)
        set_default_openai_client(openai.AsyncOpenAI(**OPTIONS))
        called = []

        @function_tool
        def get_weather(city: Literal["Paris", "Rome"]) -> str:
            """The weather of a city."""
            called.append(city)
            return "20 degrees"

        settings = ModelSettings(temperature=0, max_tokens=300, tool_choice="required", parallel_tool_calls=False)
        agent = Agent(name="a", model="default", instructions="Be brief.", tools=[get_weather], model_settings=settings)

        async def run():
            result = Runner.run_streamed(agent, "How warm is it in Rome?", max_turns=4)
            async for _ in result.stream_events():
                pass
            return result

        self.assertIsInstance(asyncio.run(run()).final_output, str)
        self.assertEqual(len(called), 1)


if __name__ == "__main__":
    unittest.main()
