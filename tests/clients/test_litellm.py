"""`litellm`, as its OpenAI-compatible and its Anthropic provider."""

import json

import litellm
import pytest
from conftest import HELLO, KEY, MODEL, SCHEMA, SKY, URL, WEATHER

litellm.telemetry = False
PROVIDERS = {"openai": f"{URL}/v1", "anthropic": URL}


def ask(provider, **more):
    more = {"messages": HELLO, "max_tokens": 16, "temperature": 0, "num_retries": 0, "timeout": 120, **more}
    return litellm.completion(model=f"{provider}/{MODEL}", api_base=PROVIDERS[provider], api_key=more.pop("api_key", KEY), **more)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_chat_and_streaming(provider):
    whole = ask(provider, messages=SKY, max_tokens=32).choices[0].message.content
    chunks = ask(provider, messages=SKY, max_tokens=32, stream=True)
    assert whole.strip() and "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


@pytest.mark.parametrize("provider", PROVIDERS)
def test_stop(provider):
    whole = ask(provider, messages=SKY, max_tokens=32).choices[0].message.content
    word = whole.split()[3]
    cut = ask(provider, messages=SKY, max_tokens=32, stop=[word]).choices[0]
    assert cut.finish_reason == "stop" and cut.message.content.strip() == whole[: whole.index(word)].strip()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_forced_tools(provider):
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = ask(provider, tools=[WEATHER], tool_choice=choice, max_tokens=200, parallel_tool_calls=False).choices[0]
    assert answer.finish_reason == "tool_calls"
    call = answer.message.tool_calls[0]
    assert call.function.name == "get_weather" and json.loads(call.function.arguments)["city"] in ("Paris", "Oslo")


def test_structured_output_n_and_logprobs():
    form = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": SCHEMA}}
    answer = ask("openai", response_format=form, max_tokens=100, n=2, logprobs=True, top_logprobs=2)
    assert len(answer.choices) == 2
    for choice in answer.choices:
        assert set(json.loads(choice.message.content)) == {"name", "population"}
        assert len(choice.logprobs.content[0].top_logprobs) == 2


@pytest.mark.parametrize("provider", PROVIDERS)
def test_errors(provider):
    with pytest.raises(litellm.AuthenticationError):
        ask(provider, api_key="wrong")
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        ask(provider, temperature=-1)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model=f"{provider}/no-such-model", api_base=PROVIDERS[provider], api_key=KEY, messages=HELLO, max_tokens=1)


def test_embeddings():
    answer = litellm.embedding(model=f"openai/{MODEL}", api_base=PROVIDERS["openai"], api_key=KEY, input=["a cat", "a dog"])
    assert len(answer.data) == 2 and len(answer.data[0]["embedding"]) == len(answer.data[1]["embedding"]) > 100


def test_responses():
    more = {"model": f"openai/{MODEL}", "api_base": PROVIDERS["openai"], "api_key": KEY, "max_output_tokens": 16, "temperature": 0}
    whole = litellm.responses(input="Say hello.", **more)
    text = whole.output[0].content[0].text
    events = list(litellm.responses(input="Say hello.", stream=True, **more))
    assert text.strip() and "".join(e.delta for e in events if e.type == "response.output_text.delta") == text
