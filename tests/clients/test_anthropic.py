"""Python's `anthropic`."""

import json

import anthropic
import pytest
from conftest import HELLO, KEY, MODEL, SCHEMA, SKY, URL, WEATHER

TOOL = {
    "name": "get_weather",
    "description": WEATHER["function"]["description"],
    "input_schema": WEATHER["function"]["parameters"],
}
# The client has no argument for it any more.
GREEDY = {"extra_body": {"temperature": 0}}


@pytest.fixture
def client():
    with anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def ask(client, **more):
    return client.messages.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 16, **GREEDY, **more})


def test_messages(client):
    answer = ask(client, system=[{"type": "text", "text": "You are brief.", "cache_control": {"type": "ephemeral"}}])
    assert answer.role == "assistant" and answer.type == "message" and answer.model == MODEL
    assert answer.content[0].type == "text" and answer.content[0].text.strip()
    assert answer.stop_reason in ("end_turn", "max_tokens") and answer.usage.output_tokens <= 16


def test_streaming_says_the_same(client):
    more = {"messages": SKY, "max_tokens": 32}
    whole = ask(client, **more)
    with client.messages.stream(model=MODEL, **GREEDY, **more) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason and final.usage.output_tokens == whole.usage.output_tokens
    kinds = [event.type for event in ask(client, stream=True, **more)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_stop_sequences(client):
    whole = ask(client, messages=SKY, max_tokens=32).content[0].text
    word = whole.split()[3]
    cut = ask(client, messages=SKY, max_tokens=32, stop_sequences=[word])
    assert cut.stop_reason == "stop_sequence" and cut.stop_sequence == word
    assert cut.content[0].text == whole[: whole.index(word)]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_forced_tools(client, choice):
    choice = {**choice, "disable_parallel_tool_use": True}
    first = [{"role": "user", "content": "The weather in Paris?"}]
    answer = ask(client, messages=first, tools=[TOOL], tool_choice=choice, max_tokens=100)
    assert answer.stop_reason == "tool_use"
    (use,) = [block for block in answer.content if block.type == "tool_use"]
    assert use.name == "get_weather" and use.input["city"] in ("Paris", "Oslo")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "Sunny."}]}
    said = {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in answer.content]}
    after = ask(client, messages=[*first, said, {"role": "user", "content": [result]}], tools=[TOOL], tool_choice={"type": "none"})
    assert after.content[0].type == "text"


def test_streamed_tools(client):
    choice = {"type": "any", "disable_parallel_tool_use": True}
    with client.messages.stream(model=MODEL, messages=HELLO, max_tokens=100, **GREEDY, tools=[TOOL], tool_choice=choice) as stream:
        parts = "".join(event.partial_json for event in stream if event.type == "input_json")
        final = stream.get_final_message()
    assert json.loads(parts) == final.content[-1].input and final.stop_reason == "tool_use"


def test_structured_output(client):
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    answer = ask(client, messages=[{"role": "user", "content": "Describe Paris as JSON."}], max_tokens=100, output_config=form)
    assert set(json.loads(answer.content[0].text)) == {"name", "population"}


def test_count_tokens(client):
    count = client.messages.count_tokens(model=MODEL, messages=SKY).input_tokens
    usage = ask(client, messages=SKY).usage
    assert count == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_errors(client):
    def kind(error):
        body = error.value.body
        assert body["type"] == "error" and body["error"]["message"] and body["request_id"]
        return body["error"]["type"]

    with pytest.raises(anthropic.AuthenticationError) as error:
        ask(client.with_options(api_key="wrong"))
    assert kind(error) == "authentication_error"
    with pytest.raises(anthropic.NotFoundError) as error:
        ask(client, model="no-such-model")
    assert kind(error) == "not_found_error"
    with pytest.raises(anthropic.BadRequestError) as error:
        ask(client, extra_body={"temperature": -1})
    assert kind(error) == "invalid_request_error" and "temperature" in error.value.message
    with pytest.raises(anthropic.NotFoundError) as error:
        client.get("/v1/messages/nowhere", cast_to=object)
    assert kind(error) == "not_found_error"
    with pytest.raises(anthropic.APIStatusError) as error:
        client.get("/v1/messages", cast_to=object)
    assert error.value.status_code == 405 and kind(error) == "invalid_request_error"
    with pytest.raises(anthropic.APIStatusError) as error:
        client.post("/v1/messages", body={"messages": "x" * (33 << 20)}, cast_to=object)
    assert error.value.status_code == 413 and kind(error) == "request_too_large"
