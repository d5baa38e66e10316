"""`instructor`, in each of the ways in which it asks for structure."""

import anthropic
import instructor
import openai
import pytest
from conftest import KEY, MODEL, URL, City

ASK = {"messages": [{"role": "user", "content": "Describe Paris, which has 2 million people."}], "max_tokens": 200, "temperature": 0}


def of(mode):
    return instructor.from_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0), mode=mode)


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA])
def test_objects(mode):
    city = of(mode).chat.completions.create(model=MODEL, response_model=City, max_retries=0, **ASK)
    assert isinstance(city, City)


def test_streamed_objects():
    parts = list(of(instructor.Mode.JSON_SCHEMA).chat.completions.create_partial(model=MODEL, response_model=City, max_retries=0, **ASK))
    assert len(parts) > 1 and isinstance(parts[-1].population, int)


def test_anthropic_s_tools():
    client = instructor.from_anthropic(anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0))
    # The client has no argument for the temperature any more.
    ask = {"messages": ASK["messages"], "max_tokens": ASK["max_tokens"], "extra_body": {"temperature": 0}}
    city = client.chat.completions.create(model=MODEL, response_model=City, max_retries=0, **ask)
    assert isinstance(city, City)


def test_errors():
    client = instructor.from_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key="wrong", max_retries=0))
    with pytest.raises(Exception) as error:
        client.chat.completions.create(model=MODEL, response_model=City, max_retries=0, **ASK)
    assert "API key" in str(error.value)
