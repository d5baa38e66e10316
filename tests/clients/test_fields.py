"""The table of requests' fields has every field that the official clients know."""

import json
import pathlib
import typing

import pytest
from anthropic.types.message_create_params import MessageCreateParamsBase
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as Chat
from openai.types.completion_create_params import CompletionCreateParamsBase as Completion
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase

TABLE = json.loads((pathlib.Path(__file__).parent.parent / "server/fields.json").read_text())


@pytest.mark.parametrize("path, params", [
    ("/v1/chat/completions", Chat), ("/v1/completions", Completion), ("/v1/embeddings", EmbeddingCreateParams),
    ("/v1/responses", ResponseCreateParamsBase), ("/v1/messages", MessageCreateParamsBase),
])
def test_no_field_is_forgotten(path, params):
    known = set(typing.get_type_hints(params))
    assert len(known) >= 5 and known <= set(TABLE[path]["fields"]), known - set(TABLE[path]["fields"])
