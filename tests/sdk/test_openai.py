"""The server as OpenAI's Python client sees it. BASE_URL is the API root, with /v1."""

import asyncio
import enum
import json
import math
import os
import unittest
from typing import Literal, Optional, Union

import openai
from pydantic import BaseModel, Field

BASE_URL = os.environ["BASE_URL"]
# Retries are off: they would turn a server that fails every other request into a green test.
OPTIONS = dict(base_url=BASE_URL, api_key="unused", max_retries=0, timeout=60)
client = openai.OpenAI(**OPTIONS)

CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "all-minilm-l6-v2"
SENTENCE = "A man is eating food."

# The model answers this with emoji, whose bytes span several tokens.
EMOJI_PROMPT = "Say hi to me"
EMOJI_TOKENS = 12  # ends on a whole emoji
STORY_PROMPT = "Write a long story about a river."


def user(text):
    return [{"role": "user", "content": text}]


def request(prompt=STORY_PROMPT, **options):
    """The arguments of a short, repeatable chat request."""
    return {
        "model": "default",
        "messages": user(prompt),
        "temperature": 0,
        "max_completion_tokens": 16,
        **options,
    }


def chat(prompt=STORY_PROMPT, **options):
    return client.chat.completions.create(**request(prompt, **options))


def chat_chunks(prompt=STORY_PROMPT, **options):
    with client.chat.completions.create(stream=True, **request(prompt, **options)) as stream:
        return list(stream)


def text_of(completion):
    return completion.choices[0].message.content


def streamed_text(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def embed(texts, **options):
    return client.embeddings.create(model="default", input=texts, **options)


def norm(vector):
    return math.sqrt(sum(x * x for x in vector))


class TestCase(unittest.TestCase):
    def assert_vectors_equal(self, a, b, tolerance=1e-6):
        self.assertEqual(len(a), len(b))
        self.assertLessEqual(max(abs(x - y) for x, y in zip(a, b)), tolerance)

    def assert_usage_adds_up(self, usage):
        self.assertGreater(usage.prompt_tokens, 0)
        self.assertGreater(usage.completion_tokens, 0)
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)


class Chat(TestCase):
    def test_answer_has_every_field_and_repeats_at_temperature_0(self):
        first, second = chat(), chat()
        self.assertTrue(text_of(first))
        self.assertEqual(text_of(first), text_of(second))
        self.assertEqual(first.object, "chat.completion")
        self.assertEqual(first.model, CHAT_MODEL)
        self.assertTrue(first.id.startswith("chatcmpl-"))
        self.assertNotEqual(first.id, second.id)
        self.assertTrue(first.system_fingerprint)
        self.assertEqual(first.system_fingerprint, second.system_fingerprint)
        self.assertEqual(len(first.choices), 1)
        choice = first.choices[0]
        self.assertEqual(choice.index, 0)
        self.assertEqual(choice.finish_reason, "length")
        self.assertEqual(choice.message.role, "assistant")
        self.assertIsNone(choice.message.refusal)
        self.assertIsNone(choice.message.tool_calls)
        self.assertIsNone(choice.logprobs)
        self.assert_usage_adds_up(first.usage)
        self.assertEqual(first.usage.completion_tokens, 16)

    def test_token_limit(self):
        by_new_name = chat(max_completion_tokens=3)
        by_old_name = chat(max_completion_tokens=openai.omit, max_tokens=3)
        for answer in by_new_name, by_old_name:
            self.assertEqual(answer.choices[0].finish_reason, "length")
            self.assertEqual(answer.usage.completion_tokens, 3)
        self.assertEqual(chat(max_tokens=9, max_completion_tokens=3).usage.completion_tokens, 3)

    def test_developer_role_means_system(self):
        instruction = "You answer in French and in capital letters."
        system, developer = (
            chat(messages=[{"role": role, "content": instruction}, *user("Hello")])
            for role in ("system", "developer")
        )
        self.assertEqual(text_of(developer), text_of(system))
        self.assertEqual(developer.usage.prompt_tokens, system.usage.prompt_tokens)
        # An equal prompt length would mean that our instruction was dropped for the template's own.
        self.assertNotEqual(system.usage.prompt_tokens, chat("Hello").usage.prompt_tokens)

    def test_text_parts_are_joined(self):
        parts = [{"type": "text", "text": "Say hi"}, {"type": "text", "text": " to me"}]
        joined, plain = chat(parts), chat("Say hi to me")
        self.assertEqual(text_of(joined), text_of(plain))
        self.assertEqual(joined.usage.prompt_tokens, plain.usage.prompt_tokens)

    def test_earlier_turns_count(self):
        turns = [
            *user("My name is Ada."),
            {"role": "assistant", "content": "Hello Ada!"},
            *user("Say hi to me"),
        ]
        self.assertGreater(
            chat(messages=turns).usage.prompt_tokens,
            chat("Say hi to me").usage.prompt_tokens,
        )

    def test_several_answers(self):
        whole = chat()
        answer = chat(n=2)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1])
        self.assertEqual({choice.message.content for choice in answer.choices}, {text_of(whole)})
        self.assertEqual(answer.usage.prompt_tokens, whole.usage.prompt_tokens)
        self.assertEqual(answer.usage.completion_tokens, 2 * whole.usage.completion_tokens)
        chunks = [chunk for chunk in chat_chunks(n=2) if chunk.choices]
        for index in range(2):
            of_choice = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
            self.assertEqual("".join(choice.delta.content or "" for choice in of_choice), text_of(whole))
            self.assertEqual(of_choice[-1].finish_reason, whole.choices[0].finish_reason)

    def test_a_long_prompt_is_truncated_on_request(self):
        completion = chat("word " * 20_000, extra_body={"truncate_prompt_tokens": 50})
        self.assertEqual(completion.usage.prompt_tokens, 50)

    def test_null_means_default(self):
        nulls = dict.fromkeys(["stop", "seed", "top_p", "logprobs", "n", "stream", "max_tokens"])
        self.assertEqual(text_of(chat(**nulls)), text_of(chat()))

    def test_stop_string_ends_the_answer_and_is_not_in_it(self):
        whole = text_of(chat())
        # It begins and ends inside words, and so inside tokens.
        stop = whole[11:17]
        expected = whole[: whole.index(stop)]
        for stops in stop, ["never said", stop]:
            with self.subTest(stop=stops):
                answer = chat(stop=stops)
                self.assertEqual(text_of(answer), expected)
                self.assertEqual(answer.choices[0].finish_reason, "stop")
                chunks = chat_chunks(stop=stops)
                self.assertEqual(streamed_text(chunks), expected)
                self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")

    def test_seed_makes_sampling_repeatable(self):
        def sample(seed):
            return text_of(chat(temperature=1, seed=seed))

        self.assertEqual(sample(7), sample(7))
        self.assertEqual(sample(-7), sample(-7))
        self.assertGreater(len({sample(seed) for seed in range(4)}), 1)


class Streaming(TestCase):
    def test_chunks_come_in_order_with_usage_last(self):
        *chunks, last = chat_chunks(stream_options={"include_usage": True})
        for chunk in chunks:
            self.assertEqual(len(chunk.choices), 1)
            self.assertEqual(chunk.choices[0].index, 0)
            self.assertIsNone(chunk.usage)
            self.assertIn("usage", chunk.model_fields_set)
        for chunk in (*chunks, last):
            self.assertEqual(chunk.object, "chat.completion.chunk")
            self.assertEqual(chunk.model, CHAT_MODEL)
            self.assertEqual((chunk.id, chunk.created), (last.id, last.created))
        self.assertTrue(last.id.startswith("chatcmpl-"))

        # Clients concatenate deltas, so a second role would read "assistantassistant".
        first, *deltas = [chunk.choices[0].delta for chunk in chunks]
        self.assertEqual((first.role, first.content), ("assistant", ""))
        for delta in deltas:
            self.assertNotIn("role", delta.model_fields_set)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
        self.assertEqual(reasons, [None] * (len(chunks) - 1) + ["length"])
        self.assertFalse(deltas[-1].content)

        self.assertEqual(last.choices, [])
        self.assert_usage_adds_up(last.usage)
        whole = chat()
        self.assertEqual(streamed_text(chunks), text_of(whole))
        self.assertEqual(last.usage, whole.usage)

    def test_no_usage_unless_asked_for(self):
        for chunk in chat_chunks(max_completion_tokens=3):
            self.assertEqual(len(chunk.choices), 1)
            self.assertNotIn("usage", chunk.model_fields_set)

    def test_characters_are_never_split(self):
        options = dict(max_completion_tokens=EMOJI_TOKENS)
        whole = text_of(chat(EMOJI_PROMPT, **options))
        chunks = chat_chunks(EMOJI_PROMPT, **options)
        self.assertGreater(len(whole.encode()), len(whole))
        self.assertNotIn("\ufffd", whole)
        for chunk in chunks:
            self.assertNotIn("\ufffd", chunk.choices[0].delta.content or "")
        self.assertEqual(streamed_text(chunks), whole)

    def test_stream_helper_accumulates_the_same_completion(self):
        # A stop string, because this helper raises if the token limit ends the response.
        options = dict(logprobs=True, top_logprobs=2, stop=text_of(chat())[-4:])
        with client.chat.completions.stream(
            **request(**options, stream_options={"include_usage": True})
        ) as stream:
            events = list(stream)
            final = stream.get_final_completion()
        whole = chat(**options)
        self.assertEqual(text_of(final), text_of(whole))
        self.assertEqual(final.choices[0].message.role, "assistant")
        self.assertEqual(final.choices[0].finish_reason, "stop")
        self.assertEqual(final.usage, whole.usage)
        self.assertEqual(
            [entry.token for entry in final.choices[0].logprobs.content],
            [entry.token for entry in whole.choices[0].logprobs.content],
        )
        deltas = [event.delta for event in events if event.type == "content.delta"]
        self.assertEqual("".join(deltas), text_of(whole))
        done = [event.content for event in events if event.type == "content.done"]
        self.assertEqual(done, [text_of(whole)])
        self.assertEqual(sum(event.type == "logprobs.content.done" for event in events), 1)

    def test_a_closed_stream_frees_the_server(self):
        # If they were not cancelled, these responses would take minutes, far longer than the client's timeout.
        for _ in range(12):
            stream = client.chat.completions.create(
                stream=True, **request(max_completion_tokens=8000)
            )
            for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
            stream.close()
        self.assertEqual(chat(max_completion_tokens=3).usage.completion_tokens, 3)


class Logprobs(TestCase):
    OPTIONS = dict(logprobs=True, top_logprobs=3, max_completion_tokens=EMOJI_TOKENS)

    def test_entries_describe_the_answer(self):
        for prompt in STORY_PROMPT, EMOJI_PROMPT:
            with self.subTest(prompt=prompt):
                answer = chat(prompt, **self.OPTIONS)
                entries = answer.choices[0].logprobs.content
                self.check(entries, text_of(answer), answer.usage.completion_tokens)

                choices = [chunk.choices[0] for chunk in chat_chunks(prompt, **self.OPTIONS)]
                streamed = [e for c in choices if c.logprobs for e in c.logprobs.content]
                self.check(streamed, text_of(answer), answer.usage.completion_tokens)

    def check(self, entries, text, tokens):
        self.assertEqual(len(entries), tokens)
        # The limit may cut a character, which is then no text.
        self.assertEqual(b"".join(bytes(entry.bytes) for entry in entries).decode(errors="ignore"), text)
        for entry in entries:
            top = [alternative.logprob for alternative in entry.top_logprobs]
            self.assertEqual(len(top), 3)
            self.assertEqual(top, sorted(top, reverse=True))
            self.assertLessEqual(top[0], 0)
            # Temperature 0 takes the most likely token.
            self.assertEqual(entry.bytes, entry.top_logprobs[0].bytes)
            self.assertLessEqual(entry.logprob, top[0])

    def test_without_alternatives(self):
        for entry in chat(logprobs=True).choices[0].logprobs.content:
            self.assertLessEqual(entry.logprob, 0)
            self.assertEqual(entry.top_logprobs, [])


class Unit(str, enum.Enum):
    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


class Place(BaseModel):
    city: str = Field(max_length=20)
    country: Optional[Literal["Italy", "France"]]


class Rain(BaseModel):
    kind: Literal["rain"]
    millimetres: int = Field(ge=0, le=99)


class Sun(BaseModel):
    kind: Literal["sun"]
    hours: int = Field(ge=0, le=24)


class Report(BaseModel):
    nearby: Optional[Place]
    unit: Unit
    days: list[Union[Rain, Sun]] = Field(min_length=1, max_length=2)


class GetWeather(BaseModel):
    """The weather at a place"""

    place: Place
    unit: Unit


class Add(BaseModel):
    a: int = Field(ge=0, le=99)
    b: int = Field(ge=0, le=99)


WEATHER_PROMPT = "How warm is it in Rome?"


def parse(**options):
    return client.chat.completions.parse(**request(WEATHER_PROMPT, max_completion_tokens=300, **options))


def stream_to_the_end(**options):
    options = request(WEATHER_PROMPT, max_completion_tokens=300, **options)
    with client.chat.completions.stream(**options) as stream:
        return list(stream), stream.get_final_completion()


def events_of(events, type):
    return [event for event in events if event.type == type]


class StructuredOutput(TestCase):
    def test_parse_gives_the_object(self):
        choice = parse(response_format=Report).choices[0]
        self.assertEqual(choice.finish_reason, "stop")
        self.assertIsInstance(choice.message.parsed, Report)
        self.assertEqual(choice.message.parsed, Report.model_validate_json(choice.message.content))

    def test_a_stream_gives_the_same_object(self):
        events, final = stream_to_the_end(response_format=Report)
        message = final.choices[0].message
        self.assertEqual(message.parsed, parse(response_format=Report).choices[0].message.parsed)
        deltas = events_of(events, "content.delta")
        self.assertEqual("".join(event.delta for event in deltas), message.content)
        # The client parses the object so far.
        self.assertTrue(any(event.parsed and "nearby" in event.parsed for event in deltas[:-1]))
        [done] = events_of(events, "content.done")
        self.assertEqual(done.parsed, message.parsed)

    def test_several_objects(self):
        answer = parse(response_format=Place, n=2, temperature=1, seed=3)
        for choice in answer.choices:
            self.assertIsInstance(choice.message.parsed, Place)

    def test_any_json_object(self):
        answer = chat("Answer with {}", response_format={"type": "json_object"}, max_completion_tokens=40)
        text = text_of(answer)
        self.assertTrue(text.lstrip().startswith("{"), text)
        if answer.choices[0].finish_reason == "stop":
            self.assertIsInstance(json.loads(text), dict)

    def test_a_truncated_object_is_reported(self):
        with self.assertRaises(openai.LengthFinishReasonError):
            client.chat.completions.parse(**request(response_format=Report, max_completion_tokens=5))

    def test_choices_and_patterns(self):
        answer = chat(extra_body={"guided_choice": ["yes", "no"]})
        self.assertIn(text_of(answer), ["yes", "no"])
        self.assertRegex(text_of(chat(extra_body={"guided_regex": "[0-9]{4}"})), "^[0-9]{4}$")

    def test_invalid_schemas_are_refused(self):
        for schema in {"type": "thing"}, {"$ref": "#/$defs/missing"}:
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            for call in chat, chat_chunks:
                with self.subTest(schema=schema), self.assertRaises(openai.BadRequestError) as caught:
                    call(response_format=form)
                self.assertTrue(caught.exception.param.startswith("response_format"), caught.exception.param)


class Tools(TestCase):
    TOOLS = [openai.pydantic_function_tool(GetWeather), openai.pydantic_function_tool(Add)]
    NAMED = {"type": "function", "function": {"name": "GetWeather"}}

    def test_a_named_function_is_called_with_what_it_takes(self):
        choice = parse(tools=self.TOOLS, tool_choice=self.NAMED).choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls")
        self.assertIsNone(choice.message.content)
        [call] = choice.message.tool_calls
        self.assertEqual((call.type, call.function.name), ("function", "GetWeather"))
        self.assertTrue(call.id)
        self.assertIsInstance(call.function.parsed_arguments, GetWeather)

    def test_required_calls_some_function(self):
        options = dict(tools=self.TOOLS, tool_choice="required", parallel_tool_calls=False)
        for seed in range(2):
            choice = parse(**options, **{"temperature": 1, "seed": seed}).choices[0]
            self.assertEqual(choice.finish_reason, "tool_calls")
            [call] = choice.message.tool_calls
            self.assertIsInstance(call.function.parsed_arguments, (GetWeather, Add))

    def test_only_an_allowed_function_is_called(self):
        name = {"type": "function", "function": {"name": "Add"}}
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [name]}}
        message = parse(tools=self.TOOLS, tool_choice=allowed, parallel_tool_calls=False).choices[0].message
        self.assertEqual([type(call.function.parsed_arguments) for call in message.tool_calls], [Add])

    def test_none_calls_nothing(self):
        plain = chat(WEATHER_PROMPT)
        answer = chat(WEATHER_PROMPT, tools=self.TOOLS, tool_choice="none")
        self.assertEqual(text_of(answer), text_of(plain))
        self.assertIsNone(answer.choices[0].message.tool_calls)

    def test_a_stream_gives_the_same_call(self):
        options = dict(tools=self.TOOLS, tool_choice=self.NAMED)
        events, final = stream_to_the_end(**options, stream_options={"include_usage": True})
        whole = parse(**options)
        choice = final.choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls")
        self.assertFalse(choice.message.content)
        [call], [same] = choice.message.tool_calls, whole.choices[0].message.tool_calls
        self.assertEqual(call.function.arguments, same.function.arguments)
        self.assertEqual(call.function.parsed_arguments, same.function.parsed_arguments)
        self.assertTrue(call.id)
        deltas = events_of(events, "tool_calls.function.arguments.delta")
        self.assertGreater(len(deltas), 3)
        self.assertEqual("".join(delta.arguments_delta for delta in deltas), call.function.arguments)
        [done] = events_of(events, "tool_calls.function.arguments.done")
        self.assertEqual((done.name, done.index), ("GetWeather", 0))
        self.assertEqual(done.parsed_arguments, call.function.parsed_arguments)
        self.assertEqual(final.usage.completion_tokens, whole.usage.completion_tokens)

    def test_question_call_result_and_answer(self):
        options = dict(tools=self.TOOLS, tool_choice=self.NAMED, max_completion_tokens=300)
        asked = chat(WEATHER_PROMPT, **options).choices[0].message
        [call] = asked.tool_calls
        turns = [
            *user(WEATHER_PROMPT),
            asked,
            {"role": "tool", "tool_call_id": call.id, "content": "It is 21 degrees."},
        ]
        for options in dict(tools=self.TOOLS, tool_choice="none"), {}:
            answer = chat(messages=turns, **options)
            self.assertTrue(text_of(answer))
            self.assertIsNone(answer.choices[0].message.tool_calls)
        # The function's result is part of the prompt.
        other = [*turns[:2], {**turns[2], "content": "It is 21 degrees, and there is a lot of wind."}]
        self.assertGreater(chat(messages=other).usage.prompt_tokens, chat(messages=turns).usage.prompt_tokens)

    def test_inconsistent_histories_are_refused(self):
        def called(id="call_1", arguments="{}"):
            function = {"name": "Add", "arguments": arguments}
            return {"role": "assistant", "tool_calls": [{"id": id, "type": "function", "function": function}]}

        def result(**fields):
            return {"role": "tool", "content": "21", **fields}

        for param, turns in [
            ("messages[2].tool_call_id", [called(), result(tool_call_id="call_2")]),
            ("messages[2].tool_call_id", [called(), result()]),
            ("messages[1].tool_call_id", [result(tool_call_id="call_1")]),
            ("messages[1].tool_calls", [called(), *user("And?")]),
            ("messages[1].tool_calls[0].id", [called(id=""), result(tool_call_id="")]),
            ("messages[1].content", [{"role": "assistant"}]),
        ]:
            for call in chat, chat_chunks:
                with self.subTest(param=param, call=call.__name__):
                    with self.assertRaises(openai.BadRequestError) as caught:
                        call(messages=[*user(WEATHER_PROMPT), *turns])
                    self.assertEqual(caught.exception.param, param)
        # A call that `max_tokens` cut.
        answer = chat(messages=[*user(WEATHER_PROMPT), called(arguments="{city"), result(tool_call_id="call_1")])
        self.assertEqual(len(answer.choices), 1)

    def test_invalid_tools_and_choices_are_refused(self):
        def named(name):
            return {"type": "function", "function": {"name": name}}

        tools = self.TOOLS
        for param, options in [
            ("tool_choice", dict(tool_choice="required")),
            ("tool_choice", dict(tools=tools, tool_choice=named("Subtract"))),
            ("tools[1].function.name", dict(tools=[tools[0], tools[0]])),
            ("tools[0].function.name", dict(tools=[named("a name")])),
        ]:
            for call in chat, chat_chunks:
                with self.subTest(param=param, call=call.__name__):
                    with self.assertRaises(openai.BadRequestError) as caught:
                        call(**options)
                    self.assertEqual(caught.exception.param, param)


class Completions(TestCase):
    def complete(self, prompt="The capital of France is", **options):
        options = {"max_tokens": 6, "temperature": 0, **options}
        return client.completions.create(model="default", prompt=prompt, **options)

    def test_a_prompt_is_continued(self):
        completion = self.complete()
        self.assertEqual(completion.object, "text_completion")
        self.assertIn("Paris", completion.choices[0].text)
        self.assertTrue(completion.choices[0].text.startswith(" "), "the space is part of the generated text")
        self.assertEqual(completion.choices[0].finish_reason, "length")
        self.assertEqual(completion.usage.completion_tokens, 6)

    def test_a_stream_has_the_same_text(self):
        chunks = list(self.complete(stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
        self.assertEqual(text, self.complete().choices[0].text)
        self.assertEqual(chunks[-1].usage.completion_tokens, 6)

    def test_several_prompts_echo_and_probabilities(self):
        prompts = ["One two three", "Red green"]
        completion = self.complete(prompts, n=2, echo=True)
        self.assertEqual([choice.index for choice in completion.choices], [0, 1, 2, 3])
        for choice in completion.choices:
            self.assertTrue(choice.text.startswith(prompts[choice.index // 2]))
        choice = self.complete(logprobs=3).choices[0]
        self.assertEqual("".join(choice.logprobs.tokens), choice.text)
        self.assertEqual(len(choice.logprobs.top_logprobs[0]), 3)
        self.assertEqual(choice.logprobs.text_offset[0], 0)
        self.assertEqual(self.complete(best_of=3).choices[0].text, self.complete().choices[0].text)

    def test_the_probabilities_of_a_prompt(self):
        prompt = "One two three"
        choice = self.complete(prompt, logprobs=1, echo=True, max_tokens=0).choices[0]
        self.assertEqual(choice.text, prompt)
        self.assertEqual("".join(choice.logprobs.tokens), prompt)
        self.assertIsNone(choice.logprobs.token_logprobs[0])
        self.assertTrue(all(logprob < 0 for logprob in choice.logprobs.token_logprobs[1:]))

    def test_unsupported_combinations_are_refused(self):
        for options, param in [
            (dict(suffix="."), "suffix"),
            (dict(best_of=2, stream=True), "best_of"),
        ]:
            with self.subTest(param=param), self.assertRaises(openai.BadRequestError) as caught:
                self.complete(**options)
            self.assertEqual(caught.exception.param, param)


class Embeddings(TestCase):
    def test_base64_and_float_are_the_same_unit_vector(self):
        by_default = embed(SENTENCE)  # the client asks for base64 and decodes it
        as_float = embed(SENTENCE, encoding_format="float")
        vector = by_default.data[0].embedding
        self.assertEqual(len(vector), 384)
        self.assertAlmostEqual(norm(vector), 1, places=5)
        self.assert_vectors_equal(vector, as_float.data[0].embedding)
        self.assertIsInstance(embed(SENTENCE, encoding_format="base64").data[0].embedding, str)
        self.assertEqual(by_default.object, "list")
        self.assertEqual(by_default.model, EMBEDDING_MODEL)

    def test_usage_counts_tokens(self):
        for response in embed(SENTENCE), embed([SENTENCE]):
            self.assertEqual(response.usage.prompt_tokens, 8)
            self.assertEqual(response.usage.total_tokens, 8)

    def test_a_batch_keeps_its_order(self):
        texts = [SENTENCE, "rain", "The quick brown fox jumps over the lazy dog. " * 5, "rain"]
        batch = embed(texts)
        self.assertEqual([item.index for item in batch.data], [0, 1, 2, 3])
        singles = [embed(text) for text in texts]
        for item, single in zip(batch.data, singles):
            # Texts of other lengths in the batch may cost the last bits, no more.
            self.assert_vectors_equal(item.embedding, single.data[0].embedding, 1e-5)
        self.assertEqual(
            batch.usage.total_tokens, sum(single.usage.total_tokens for single in singles)
        )

    def test_fewer_dimensions_are_the_first_ones_at_unit_length(self):
        first = embed(SENTENCE).data[0].embedding[:64]
        # This model was not trained for it, so it has to be asked for twice.
        with self.assertRaises(openai.BadRequestError):
            embed(SENTENCE, dimensions=64)
        forced = dict(dimensions=64, extra_body={"force_dimensions": True})
        for encoding in "float", openai.omit:
            short = embed(SENTENCE, encoding_format=encoding, **forced).data[0].embedding
            self.assert_vectors_equal(short, [x / norm(first) for x in first])

    def test_a_long_text_is_truncated_on_request(self):
        cut = embed("rain " * 600, extra_body={"truncate": True})
        self.assertEqual(cut.usage.prompt_tokens, 512)
        whole = embed("rain " * 510)
        self.assert_vectors_equal(cut.data[0].embedding, whole.data[0].embedding, 1e-5)

    def test_known_and_unknown_prompts(self):
        # This model was trained without any.
        plain = embed(SENTENCE).data[0].embedding
        for kind in "query", "document":
            found = embed(SENTENCE, extra_body={"input_type": kind}).data[0].embedding
            self.assert_vectors_equal(found, plain)
        with self.assertRaises(openai.BadRequestError) as caught:
            embed(SENTENCE, extra_body={"prompt_name": "clustering"})
        self.assertEqual(caught.exception.param, "prompt_name")
        with self.assertRaises(openai.BadRequestError) as caught:
            embed(SENTENCE, extra_body={"input_type": "cluster"})
        self.assertEqual(caught.exception.param, "input_type")

    def test_repeated_texts_hit_the_cache(self):
        texts = [f"{SENTENCE} {i}" for i in range(3)]
        embed(texts[:2])
        response = client.embeddings.with_raw_response.create(model="default", input=texts)
        self.assertEqual(response.headers["x-cache-hits"], "2")


class Models(TestCase):
    def test_list(self):
        models = {model.id: model for model in client.models.list()}
        self.assertEqual(set(models), {CHAT_MODEL, EMBEDDING_MODEL})
        for model in models.values():
            self.assertEqual(model.object, "model")
            self.assertIsInstance(model.created, int)
            self.assertTrue(model.owned_by)

    def test_retrieve_by_id_and_by_repository(self):
        for name, id in [
            (CHAT_MODEL, CHAT_MODEL),
            ("HuggingFaceTB/SmolLM2-135M-Instruct", CHAT_MODEL),
            (EMBEDDING_MODEL, EMBEDDING_MODEL),
            ("sentence-transformers/all-MiniLM-L6-v2", EMBEDDING_MODEL),
        ]:
            with self.subTest(name=name):
                self.assertEqual(client.models.retrieve(name).id, id)
        with self.assertRaises(openai.NotFoundError) as caught:
            client.models.retrieve("no/such-model")
        self.assertEqual(caught.exception.code, "model_not_found")

    def test_every_name_of_a_model_serves(self):
        for name in CHAT_MODEL, "HuggingFaceTB/SmolLM2-135M-Instruct":
            self.assertEqual(chat(model=name, max_completion_tokens=1).model, CHAT_MODEL)
        for name in EMBEDDING_MODEL, "sentence-transformers/all-MiniLM-L6-v2":
            response = client.embeddings.create(model=name, input="rain")
            self.assertEqual(response.model, EMBEDDING_MODEL)


class Errors(TestCase):
    def test_unknown_model(self):
        for call in (
            lambda: chat(model="no-such-model"),
            lambda: chat_chunks(model="no-such-model"),
            lambda: client.embeddings.create(model="no-such-model", input="rain"),
        ):
            with self.assertRaises(openai.NotFoundError) as caught:
                call()
            self.assertEqual(caught.exception.code, "model_not_found")
            self.assertEqual(caught.exception.param, "model")

    def test_bad_and_unsupported_chat_parameters(self):
        for param, value in [
            ("temperature", 3),
            ("top_p", 2),
            ("n", 17),
            ("functions", [{"name": "f", "parameters": {"type": "object"}}]),
            ("modalities", ["audio"]),
            ("max_completion_tokens", 0),
            ("messages", []),
        ]:
            for call in chat, chat_chunks:
                with self.subTest(param=param, call=call.__name__):
                    with self.assertRaises(openai.BadRequestError) as caught:
                        call(**{param: value})
                    self.assertEqual(caught.exception.param, param)
                    self.assertEqual(caught.exception.type, "invalid_request_error")
                    self.assertIn(param, caught.exception.message)

    def test_overlong_prompt(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            chat("rain " * 9000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        self.assertIn("8192", caught.exception.message)

    def test_embedding_input_and_dimensions_out_of_range(self):
        for options, param, limit in [
            (dict(texts="rain " * 600), "input", "512"),
            (dict(texts=["rain", "rain " * 600]), "input", "512"),
            (dict(texts="rain", dimensions=385), "dimensions", "384"),
            (dict(texts=[]), "input", "empty"),
        ]:
            with self.subTest(param=param, limit=limit):
                with self.assertRaises(openai.BadRequestError) as caught:
                    embed(**options)
                self.assertEqual(caught.exception.param, param)
                self.assertIn(limit, caught.exception.message)


class Headers(TestCase):
    def test_request_id(self):
        raw = client.chat.completions.with_raw_response
        options = request(max_completion_tokens=1)
        given = raw.create(**options, extra_headers={"X-Request-ID": "my-request-1"})
        self.assertEqual(given.headers["x-request-id"], "my-request-1")
        self.assertEqual(given.parse()._request_id, "my-request-1")
        made = [raw.create(**options).headers["x-request-id"] for _ in range(2)]
        self.assertTrue(all(made))
        self.assertNotEqual(*made)
        with self.assertRaises(openai.APIStatusError) as caught:
            chat(n=17)
        self.assertTrue(caught.exception.request_id)

    def test_ignored_parameters_are_named(self):
        raw = client.chat.completions.with_raw_response
        for stream in False, True:
            options = request(max_completion_tokens=1, stream=stream)
            ignoring = raw.create(**options, user="ada")
            self.assertEqual(ignoring.headers["x-ignored-params"], "user")
            self.assertNotIn("x-ignored-params", raw.create(**options).headers)


class Concurrency(TestCase):
    def test_all_concurrent_requests_are_answered(self):
        async def ask_at_once():
            async with openai.AsyncOpenAI(**OPTIONS) as async_client:
                create = async_client.chat.completions.create
                return await asyncio.gather(*(create(**request()) for _ in range(8)))

        answers = asyncio.run(ask_at_once())
        self.assertEqual({text_of(answer) for answer in answers}, {text_of(chat())})
        self.assertEqual(len({answer.id for answer in answers}), 8)


if __name__ == "__main__":
    unittest.main()
