"""instructor in each of its modes for this server, against a scripted model. It needs an older openai-python."""

import os

import instructor
import openai
import pytest
from instructor import Mode
from pydantic import BaseModel

client = openai.OpenAI(base_url=os.environ["SERVER"] + "/v1", api_key="unused")


class Weather(BaseModel):
    city: str
    celsius: int


@pytest.mark.parametrize(
    "mode", [Mode.TOOLS, Mode.TOOLS_STRICT, Mode.RESPONSES_TOOLS, Mode.JSON, Mode.JSON_SCHEMA, Mode.MD_JSON]
)
def test_a_model_is_parsed(mode):
    said = "Call Weather." if "TOOLS" in mode.name else "Answer in JSON."
    weather = instructor.from_openai(client, mode=mode).chat.completions.create(
        model="scripted", response_model=Weather, max_retries=0, messages=[{"role": "user", "content": said}]
    )
    assert weather.model_dump() == {"city": "Rome", "celsius": 20}
