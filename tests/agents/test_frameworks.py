"""Python frameworks, each with its own way to call a tool or to ask for JSON, against a scripted model.

The model calls `get_weather` and, once it sees "20 degrees", says "It is warm there."; it answers in JSON if asked to.
"""

import asyncio
import json
import os
from typing import Literal

import litellm
import openai
import outlines
import pytest
from agent_framework import Agent as FrameworkAgent
from agent_framework.openai import OpenAIChatClient, OpenAIChatCompletionClient
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIConversationsSession,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from huggingface_hub import InferenceClient
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel as PydanticResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

SERVER = os.environ["SERVER"]
BASE_URL = SERVER + "/v1"
OPTIONS = dict(base_url=BASE_URL, api_key="unused")
QUESTION = "How warm is it in Rome?"
ANSWER = "It is warm there."
JSON_QUESTION = "How warm is it? Answer in JSON."
# The model's context holds 262,144 tokens, each a byte.
TOO_LONG = "x" * 300_000

set_tracing_disabled(True)


class Weather(BaseModel):
    city: str
    celsius: int


WEATHER = Weather(city="Rome", celsius=20)

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def get_weather(city: str) -> str:
    """The weather of a city."""
    assert city == "Rome"
    return "20 degrees"


@pytest.mark.parametrize("model", [OpenAIResponsesModel, OpenAIChatCompletionsModel])
@pytest.mark.parametrize("streamed", [False, True])
def test_openai_agents(model, streamed):
    async def run():
        client = openai.AsyncOpenAI(**OPTIONS)
        agent = Agent(name="a", model=model("scripted", client), tools=[function_tool(get_weather)])
        if not streamed:
            return await Runner.run(agent, QUESTION)
        result = Runner.run_streamed(agent, QUESTION)
        async for _ in result.stream_events():
            pass
        return result

    assert asyncio.run(run()).final_output == ANSWER


@pytest.mark.parametrize("model", [OpenAIResponsesModel, OpenAIChatCompletionsModel])
def test_openai_agents_parse_an_output_type(model):
    async def run():
        agent = Agent(name="a", model=model("scripted", openai.AsyncOpenAI(**OPTIONS)), output_type=Weather)
        return await Runner.run(agent, JSON_QUESTION)

    assert asyncio.run(run()).final_output == WEATHER


def test_openai_agents_remember_a_conversation():
    async def run():
        client = openai.AsyncOpenAI(**OPTIONS)
        agent = Agent(name="a", model=OpenAIResponsesModel("scripted", client), tools=[function_tool(get_weather)])
        session = OpenAIConversationsSession(openai_client=client)
        await Runner.run(agent, QUESTION, session=session)
        answer = (await Runner.run(agent, "And now?", session=session)).final_output
        return answer, [item.get("type", "message") for item in await session.get_items()]

    call = ["message", "function_call", "function_call_output", "message"]
    assert asyncio.run(run()) == (ANSWER, [*call, "message", "message"])


@pytest.mark.parametrize("use_previous_response_id", [False, True])
def test_langchain_responses(use_previous_response_id):
    options = dict(use_responses_api=True, use_previous_response_id=use_previous_response_id)
    model = ChatOpenAI(model="scripted", **OPTIONS, **options)
    bound = model.bind_tools([tool(get_weather)])
    messages = [HumanMessage(QUESTION)]
    messages.append(bound.invoke(messages))
    (call,) = messages[-1].tool_calls
    messages.append(tool(get_weather).invoke(call))
    assert bound.invoke(messages).text == ANSWER
    assert "".join(chunk.text for chunk in bound.stream(messages)) == ANSWER
    assert model.with_structured_output(Weather).invoke(JSON_QUESTION) == WEATHER


@pytest.mark.parametrize("model", [PydanticResponsesModel, OpenAIChatModel])
def test_pydantic_ai(model):
    model = model("scripted", provider=OpenAIProvider(**OPTIONS))
    assert PydanticAgent(model, tools=[get_weather]).run_sync(QUESTION).output == ANSWER

    async def stream():
        async with PydanticAgent(model, tools=[get_weather]).run_stream(QUESTION) as result:
            return await result.get_output()

    assert asyncio.run(stream()) == ANSWER


@pytest.mark.parametrize("prefix", ["openai:", "openai-chat:", "openai-responses:"])
def test_pydantic_ai_by_name(prefix, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", BASE_URL)
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    assert PydanticAgent(prefix + "scripted", tools=[get_weather]).run_sync(QUESTION).output == ANSWER


@pytest.mark.parametrize("client", [OpenAIChatClient, OpenAIChatCompletionClient])
def test_agent_framework(client):
    async def run():
        agent = FrameworkAgent(client=client(model="scripted", **OPTIONS), tools=[get_weather])
        streamed = await agent.run(QUESTION, stream=True).get_final_response()
        return (await agent.run(QUESTION)).text, streamed.text

    assert asyncio.run(run()) == (ANSWER, ANSWER)


def litellm_tools(kind):
    function = {"name": "get_weather", "description": "The weather of a city."}
    return [
        {
            "chat": {"type": "function", "function": {**function, "parameters": PARAMETERS}},
            "responses": {"type": "function", **function, "parameters": PARAMETERS},
            "messages": {**function, "input_schema": PARAMETERS},
        }[kind]
    ]


@pytest.mark.parametrize(
    "options",
    [
        dict(model="openai/scripted", api_base=BASE_URL),
        dict(model="hosted_vllm/scripted", api_base=BASE_URL),
        dict(model="anthropic/scripted", api_base=SERVER),
    ],
    ids=lambda options: options["model"],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_litellm_completion(options, streamed):
    def complete(messages):
        answer = litellm.completion(
            messages=messages, tools=litellm_tools("chat"), api_key="unused", stream=streamed, **options
        )
        if streamed:
            answer = litellm.stream_chunk_builder(list(answer))
        return answer.choices[0].message

    messages = [{"role": "user", "content": QUESTION}]
    said = complete(messages)
    (call,) = said.tool_calls
    result = get_weather(**json.loads(call.function.arguments))
    messages += [said.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": result}]
    assert complete(messages).content == ANSWER


def test_litellm_responses():
    def respond(items):
        return litellm.responses(
            model="openai/scripted", api_base=BASE_URL, api_key="unused", input=items, tools=litellm_tools("responses")
        )

    items = [{"role": "user", "content": QUESTION}]
    said = respond(items).output
    (call,) = [item for item in said if item.type == "function_call"]
    items += [item.model_dump(exclude_none=True) for item in said]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": get_weather("Rome")})
    (message,) = respond(items).output
    assert message.content[0].text == ANSWER


def test_litellm_messages():
    async def run(messages):
        return await litellm.anthropic.messages.acreate(
            model="anthropic/scripted",
            api_base=SERVER,
            api_key="unused",
            max_tokens=1000,
            messages=messages,
            tools=litellm_tools("messages"),
        )

    messages = [{"role": "user", "content": QUESTION}]
    content = asyncio.run(run(messages))["content"]
    (call,) = [block for block in content if block["type"] == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": get_weather(**call["input"])}
    messages += [{"role": "assistant", "content": content}, {"role": "user", "content": [result]}]
    assert asyncio.run(run(messages))["content"][0]["text"] == ANSWER


@pytest.mark.parametrize("prefix", ["openai/", "hosted_vllm/", "anthropic/"])
def test_litellm_recognizes_a_prompt_that_is_too_long(prefix):
    api_base = SERVER if prefix == "anthropic/" else BASE_URL
    messages = [{"role": "user", "content": TOO_LONG}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(model=prefix + "scripted", api_base=api_base, api_key="unused", messages=messages)


@pytest.mark.parametrize("use_responses_api", [False, True])
def test_langchain_recognizes_a_prompt_that_is_too_long(use_responses_api):
    model = ChatOpenAI(model="scripted", **OPTIONS, use_responses_api=use_responses_api)
    with pytest.raises(ContextOverflowError):
        model.invoke(TOO_LONG)


@pytest.mark.parametrize("make", [outlines.from_openai, outlines.from_vllm, outlines.from_sglang])
def test_outlines(make):
    model = make(openai.OpenAI(**OPTIONS), "scripted")
    assert Weather.model_validate_json(model(JSON_QUESTION, Weather)) == WEATHER
    streamed = "".join(model.stream(JSON_QUESTION, Weather))
    assert Weather.model_validate_json(streamed) == WEATHER


@pytest.mark.parametrize("make", [outlines.from_vllm, outlines.from_sglang])
def test_outlines_choices_and_grammars(make):
    model = make(openai.OpenAI(**OPTIONS), "scripted")
    assert model("Answer with a city.", Literal["Paris", "Rome"]) == "Rome"
    grammar = outlines.types.CFG('start: "Paris" | "Rome"')
    assert model("Answer with a city.", grammar) == "Rome"


def test_hugging_face():
    client = InferenceClient(base_url=BASE_URL, api_key="unused")
    schema = {"name": "Weather", "schema": Weather.model_json_schema(), "strict": True}
    answer = client.chat_completion(
        [{"role": "user", "content": JSON_QUESTION}],
        model="scripted",
        max_tokens=100,
        response_format={"type": "json_schema", "json_schema": schema},
    )
    assert Weather.model_validate_json(answer.choices[0].message.content) == WEATHER
    answer = client.chat_completion(
        [{"role": "user", "content": QUESTION}], model="scripted", tools=litellm_tools("chat"), max_tokens=100
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"
