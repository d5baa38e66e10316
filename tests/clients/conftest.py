"""What all clients ask for; `run.sh` starts the server and says where it is."""

import os

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

URL = os.environ["BIPLANE_URL"]
KEY = os.environ["BIPLANE_KEY"]
MODEL = os.environ["BIPLANE_MODEL_NAME"]

HELLO = [{"role": "user", "content": "Say hello."}]
SKY = [{"role": "user", "content": "Why is the sky blue? Answer in one sentence."}]


# Bounded: a small model may well write digits without end.
class City(BaseModel):
    """A city and how many people live there."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["Paris", "Oslo"]
    population: int = Field(ge=0, le=30_000_000)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "population": {"type": "integer", "minimum": 0, "maximum": 30_000_000}},
    "required": ["name", "population"],
    "additionalProperties": False,
}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(autouse=True)
def no_other_keys(monkeypatch):
    """A client that quietly fell back on the environment would prove nothing."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
