"""`langchain-openai`."""

import openai
import pytest
from conftest import KEY, MODEL, URL, City
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


def chat(**more):
    more = {"base_url": f"{URL}/v1", "api_key": KEY, "model": MODEL, "max_tokens": 32, "temperature": 0, "max_retries": 0, **more}
    return ChatOpenAI(**more)


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


ASK = [SystemMessage("You are brief."), HumanMessage("The weather in Paris?")]


@pytest.mark.parametrize("responses", [False, True])
def test_chat_and_streaming(responses):
    model = chat(use_responses_api=responses)
    whole = model.invoke(ASK)
    assert whole.text.strip() and whole.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in model.stream(ASK)) == whole.text


def test_stop_and_logprobs():
    whole = chat().invoke(ASK).text
    word = whole.split()[2]
    assert chat(stop=[word]).invoke(ASK).text == whole[: whole.index(word)]
    tokens = chat(logprobs=True, top_logprobs=2, max_tokens=4).invoke(ASK).response_metadata["logprobs"]["content"]
    assert len(tokens) == 4 and len(tokens[0]["top_logprobs"]) == 2


@pytest.mark.parametrize("responses", [False, True])
def test_forced_tools(responses):
    model = chat(max_tokens=200, use_responses_api=responses).bind_tools([get_weather], tool_choice="get_weather", parallel_tool_calls=False)
    said = model.invoke(ASK)
    call = said.tool_calls[0]
    assert call["name"] == "get_weather" and isinstance(call["args"]["city"], str)
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    assert chat(use_responses_api=responses).invoke([*ASK, said, result]).text


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(method):
    model = chat(max_tokens=200).with_structured_output(City, method=method)
    assert isinstance(model.invoke("Describe Paris as JSON."), City)


def test_errors():
    with pytest.raises(openai.AuthenticationError):
        chat(api_key="wrong").invoke("Hi")
    with pytest.raises(openai.NotFoundError):
        chat(model="no-such-model").invoke("Hi")


def test_embeddings_by_token_ids():
    # Without this option langchain cuts texts by tiktoken, whose token ids are another model's.
    model = OpenAIEmbeddings(base_url=f"{URL}/v1", api_key=KEY, model=MODEL, check_embedding_ctx_length=False)
    cat, dog = model.embed_documents(["a cat", "a dog"])
    assert len(cat) == len(dog) > 100 and cat != dog
    assert model.embed_query("a cat") == pytest.approx(cat, rel=1e-3, abs=1e-3)
