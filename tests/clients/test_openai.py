"""Python's `openai`."""

import base64
import json
import math
import struct

import openai
import pytest
from conftest import HELLO, KEY, MODEL, SCHEMA, SKY, URL, WEATHER, City


@pytest.fixture
def client():
    with openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def chat(client, **more):
    more = {"model": MODEL, "messages": HELLO, "max_tokens": 16, "temperature": 0, **more}
    return client.chat.completions.create(**more)


def test_models(client):
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).object == "model"


def test_chat(client):
    answer = chat(client)
    assert answer.model == MODEL and answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content.strip()
    usage = answer.usage
    assert usage.prompt_tokens > 5 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_roles_and_parts(client):
    answer = chat(client, messages=[
        {"role": "developer", "content": "You are brief."},
        {"role": "user", "content": [{"type": "text", "text": "Say"}, {"type": "text", "text": " hello."}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Again."},
    ])
    assert answer.choices[0].message.content


def test_streaming_says_the_same(client):
    whole = chat(client, messages=SKY, max_tokens=32)
    chunks = list(chat(client, messages=SKY, max_tokens=32, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_stream_helper(client):
    with client.chat.completions.stream(model=MODEL, messages=HELLO, max_tokens=200, temperature=0) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds and "content.done" in kinds
    assert final.choices[0].message.content == chat(client, max_tokens=200).choices[0].message.content


def test_a_left_stream_does_no_harm(client):
    stream = chat(client, max_tokens=500, stream=True)
    next(iter(stream))
    stream.close()
    assert chat(client).choices


def test_stop(client):
    whole = chat(client, messages=SKY, max_tokens=32).choices[0].message.content
    word = whole.split()[3]
    cut = chat(client, messages=SKY, max_tokens=32, stop=[word, "never seen"]).choices[0]
    assert cut.finish_reason == "stop" and cut.message.content == whole[: whole.index(word)]


def test_n_and_seed(client):
    def texts():
        choices = chat(client, n=3, temperature=1, seed=7, max_tokens=12).choices
        assert [c.index for c in choices] == [0, 1, 2]
        return [c.message.content for c in choices]

    assert texts() == texts()
    assert len(set(texts())) > 1


def test_logprobs(client):
    content = chat(client, logprobs=True, top_logprobs=3, max_tokens=5).choices[0].logprobs.content
    assert len(content) == 5
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        # Greedy: the token taken is the likeliest.
        assert token.token == token.top_logprobs[0].token and bytes(token.bytes).decode() == token.token


def test_logit_bias_and_tokenize(client):
    first = chat(client, max_tokens=1, logprobs=True).choices[0].message.content
    tokens = client.post("/../tokenize", body={"content": first}, cast_to=object)["tokens"]
    other = chat(client, max_tokens=1, logit_bias={str(tokens[0]): -100}).choices[0].message.content
    assert other != first


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_forced_tools(client, choice):
    answer = chat(client, messages=[{"role": "user", "content": "The weather in Paris?"}], tools=[WEATHER],
                  tool_choice=choice, max_tokens=100, parallel_tool_calls=False).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    assert call.type == "function" and call.id and call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Oslo")


def test_a_tool_s_result_goes_back(client):
    ask = {"role": "user", "content": "The weather in Paris?"}
    more = {"tools": [WEATHER], "max_tokens": 100, "parallel_tool_calls": False}
    said = chat(client, messages=[ask], tool_choice="required", **more).choices[0].message
    result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "Sunny, 21 degrees."}
    answer = chat(client, messages=[ask, said.model_dump(exclude_none=True), result], tool_choice="none", **more)
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls


def test_streamed_tools(client):
    arguments, names = "", []
    for chunk in chat(client, tools=[WEATHER], tool_choice="required", max_tokens=100, parallel_tool_calls=False, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.index == 0
            names += [call.function.name] if call.function.name else []
            arguments += call.function.arguments or ""
    assert names == ["get_weather"] and json.loads(arguments)["city"] in ("Paris", "Oslo")


def test_structured_output(client):
    form = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": SCHEMA}}
    ask = [{"role": "user", "content": "Describe Paris as JSON."}]
    city = json.loads(chat(client, messages=ask, response_format=form, max_tokens=100).choices[0].message.content)
    assert set(city) == {"name", "population"} and isinstance(city["population"], int)
    parsed = client.chat.completions.parse(model=MODEL, messages=ask, response_format=City, max_tokens=200, temperature=0)
    assert isinstance(parsed.choices[0].message.parsed, City)


def test_json_object(client):
    form = {"type": "json_object"}
    ask = [{"role": "user", "content": 'Write {"a": 1} as JSON.'}]
    answer = chat(client, messages=ask, response_format=form, max_tokens=200).choices[0]
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)
    assert answer.message.content.lstrip().startswith("{")


def test_harmless_fields(client):
    answer = chat(client, user="someone", store=False, metadata={"a": "b"}, service_tier="auto",
                  safety_identifier="x", prompt_cache_key="k", extra_body={"never_heard_of": [1]})
    assert answer.choices


@pytest.mark.parametrize("fields, param", [
    ({"temperature": -1}, "temperature"), ({"stop": 5}, "stop"), ({"n": 1000}, "n"), ({"logprobs": "many"}, "logprobs"),
    ({"functions": [{"name": "f"}]}, "functions"), ({"modalities": ["audio"]}, "modalities"), ({"messages": []}, "messages"),
])
def test_refused_by_name(client, fields, param):
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, **fields)
    assert error.value.status_code == 400 and error.value.param == param
    assert error.value.type == "invalid_request_error"


def test_errors(client):
    with pytest.raises(openai.NotFoundError) as error:
        chat(client, model="no-such-model")
    assert error.value.code == "model_not_found" and error.value.param == "model"
    with pytest.raises(openai.AuthenticationError) as error:
        chat(client.with_options(api_key="wrong"))
    assert error.value.code == "invalid_api_key" and error.value.type == "authentication_error"
    with pytest.raises(openai.NotFoundError):
        client.get("/nowhere", cast_to=object)
    long = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, messages=long)
    assert error.value.code == "context_length_exceeded"


def test_completions(client):
    def ask(**more):
        return client.completions.create(**{"model": MODEL, "prompt": "The sky is", "max_tokens": 8, "temperature": 0, **more})

    whole = ask()
    assert whole.object == "text_completion" and whole.choices[0].text and whole.usage.completion_tokens <= 8
    assert "".join(chunk.choices[0].text for chunk in ask(stream=True)) == whole.choices[0].text
    batch = ask(prompt=["The sky is", "One, two, three,"], n=2)
    assert [choice.index for choice in batch.choices] == [0, 1, 2, 3]
    assert batch.choices[0].text == whole.choices[0].text
    echo = ask(echo=True, logprobs=2)
    assert echo.choices[0].text == "The sky is" + whole.choices[0].text
    lists = echo.choices[0].logprobs
    assert lists.token_logprobs[0] is None and "".join(lists.tokens) == echo.choices[0].text
    assert len(lists.text_offset) == len(lists.tokens) == len(lists.top_logprobs)
    tokens = client.post("/../tokenize", body={"content": "The sky is", "add_special_tokens": True}, cast_to=object)["tokens"]
    assert ask(prompt=tokens).choices[0].text == whole.choices[0].text
    with pytest.raises(openai.BadRequestError) as error:
        ask(suffix="blue")
    assert error.value.param == "suffix"


def test_embeddings(client):
    def embed(text, **more):
        return client.embeddings.create(model=MODEL, input=text, **more)

    # The client asks for base64 unless it is told otherwise.
    answer = embed(["A cat sat.", "A dog sat.", "Integers are numbers."])
    vectors = [item.embedding for item in answer.data]
    assert [item.index for item in answer.data] == [0, 1, 2] and answer.usage.prompt_tokens > 6

    def alike(a, b):
        return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    assert alike(vectors[0], vectors[1]) > alike(vectors[0], vectors[2])
    floats = embed("A cat sat.", encoding_format="float").data[0].embedding
    raw = client.post("/embeddings", body={"model": MODEL, "input": "A cat sat.", "encoding_format": "base64"}, cast_to=object)
    raw = base64.b64decode(raw["data"][0]["embedding"])
    assert struct.unpack(f"<{len(floats)}f", raw) == pytest.approx(floats) and floats == pytest.approx(vectors[0])
    tokens = client.post("/../tokenize", body={"content": "A cat sat.", "add_special_tokens": True}, cast_to=object)["tokens"]
    assert embed(tokens).data[0].embedding == pytest.approx(vectors[0])
    both = embed([tokens, tokens[:2]])
    assert len(both.data) == 2 and both.data[0].embedding == pytest.approx(vectors[0])
    with pytest.raises(openai.BadRequestError) as error:
        embed("A cat sat.", dimensions=3)
    assert error.value.param == "dimensions"


def test_responses(client):
    more = {"model": MODEL, "input": "Say hello.", "max_output_tokens": 16, "temperature": 0}
    answer = client.responses.create(**more)
    assert answer.output_text.strip() and answer.object == "response"
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    events = list(client.responses.create(**more, stream=True))
    assert [events[0].type, events[-1].type] in (["response.created", "response.completed"], ["response.created", "response.incomplete"])
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == answer.output_text == events[-1].response.output_text
    told = client.responses.create(**{**more, "instructions": "You are a pirate."})
    assert told.instructions == "You are a pirate." and told.usage.input_tokens != answer.usage.input_tokens


def test_responses_tools_and_forms(client):
    tool = {"type": "function", **WEATHER["function"]}
    more = {"model": MODEL, "max_output_tokens": 100, "temperature": 0}
    ask = {"role": "user", "content": "The weather in Paris?"}
    answer = client.responses.create(**more, input=[ask], tools=[tool], tool_choice="required", parallel_tool_calls=False)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "get_weather" and json.loads(call.arguments)["city"] in ("Paris", "Oslo")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    after = client.responses.create(**more, input=[ask, call.model_dump(exclude_none=True), result], tools=[tool], tool_choice="none")
    assert after.output_text
    with client.responses.stream(**more, input=[ask], tools=[tool], tool_choice="required", parallel_tool_calls=False) as stream:
        final = [event for event in stream][-1]
        assert final.type == "response.completed" and stream.get_final_response().output[0].type == "function_call"
    form = {"format": {"type": "json_schema", "name": "city", "strict": True, "schema": SCHEMA}}
    city = json.loads(client.responses.create(**more, input="Describe Paris as JSON.", text=form).output_text)
    assert set(city) == {"name", "population"}
    parsed = client.responses.parse(**{**more, "max_output_tokens": 200}, input="Describe Paris as JSON.", text_format=City)
    assert isinstance(parsed.output_parsed, City)


def test_responses_continue(client):
    more = {"model": MODEL, "max_output_tokens": 16, "temperature": 0}
    first = client.responses.create(**more, input="My name is Ada.")
    second = client.responses.create(**more, input="What is my name?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    whole = client.responses.create(**more, input=[
        {"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "What is my name?"}])
    assert second.output_text == whole.output_text and second.usage.input_tokens == whole.usage.input_tokens
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(**more, input="Hello", previous_response_id="resp_none")
    assert error.value.param == "previous_response_id" and error.value.code == "previous_response_not_found"
    unkept = client.responses.create(**more, input="Hello", store=False)
    with pytest.raises(openai.BadRequestError):
        client.responses.create(**more, input="Hello", previous_response_id=unkept.id)


def test_responses_errors(client):
    for fields, param in [({"background": True}, "background"), ({"input": 5}, "input"), ({"temperature": -1}, "temperature")]:
        with pytest.raises(openai.BadRequestError) as error:
            client.responses.create(**{"model": MODEL, "input": "x", **fields})
        assert error.value.param == param
