"""
The request types of the vendors' SDKs against keys that name engines: no model field of a body gets past, and the caller's
own data is left alone.
"""

import collections.abc
import json
import types
import typing
from collections.abc import Iterator
from typing import Any

import anthropic.types.beta.message_count_tokens_params
import anthropic.types.beta.message_create_params
import anthropic.types.message_count_tokens_params
import anthropic.types.message_create_params
import openai.types.audio.speech_create_params
import openai.types.audio.transcription_create_params
import openai.types.audio.translation_create_params
import openai.types.beta.response_compact_params
import openai.types.beta.response_create_params
import openai.types.beta.responses.input_token_count_params
import openai.types.chat.completion_create_params
import openai.types.responses.input_token_count_params
import openai.types.responses.response_compact_params
import openai.types.responses.response_create_params
import pydantic
import pytest
import typing_extensions
from google.genai import types as genai
from google.genai._gaos.types.interactions.createagentinteraction import CreateAgentInteractionParam
from google.genai._gaos.types.interactions.createmodelinteraction import CreateModelInteractionParam

from aisbreaker_mw.exceptions import InvalidRequest
from aisbreaker_mw.services.engines import read_models
from aisbreaker_mw.services.second_models import NamedModels

from ..services.support import service as the_service

Path = tuple[str, ...]
"""Keys down to a member; "[]" is the only element of a list."""

OPENAI = openai.types
REQUESTS: dict[tuple[str, str], list[Any]] = {
    ("openai", "/v1/chat/completions"): [OPENAI.chat.completion_create_params.CompletionCreateParamsNonStreaming],
    ("openai", "/v1/completions"): [OPENAI.completion_create_params.CompletionCreateParamsNonStreaming],
    ("openai", "/v1/responses"): [
        OPENAI.responses.response_create_params.ResponseCreateParamsNonStreaming,
        OPENAI.beta.response_create_params.ResponseCreateParamsNonStreaming,
    ],
    ("openai", "/v1/responses/compact"): [
        OPENAI.responses.response_compact_params.ResponseCompactParams,
        OPENAI.beta.response_compact_params.ResponseCompactParams,
    ],
    ("openai", "/v1/responses/input_tokens"): [
        OPENAI.responses.input_token_count_params.InputTokenCountParams,
        OPENAI.beta.responses.input_token_count_params.InputTokenCountParams,
    ],
    ("openai", "/v1/embeddings"): [OPENAI.EmbeddingCreateParams],
    ("openai", "/v1/moderations"): [OPENAI.ModerationCreateParams],
    ("openai", "/v1/images/generations"): [OPENAI.image_generate_params.ImageGenerateParamsNonStreaming],
    ("openai", "/v1/images/edits"): [OPENAI.image_edit_params.ImageEditParamsNonStreaming],
    ("openai", "/v1/images/variations"): [OPENAI.ImageCreateVariationParams],
    ("openai", "/v1/audio/speech"): [OPENAI.audio.speech_create_params.SpeechCreateParams],
    ("openai", "/v1/audio/transcriptions"): [OPENAI.audio.transcription_create_params.TranscriptionCreateParamsNonStreaming],
    ("openai", "/v1/audio/translations"): [OPENAI.audio.translation_create_params.TranslationCreateParams],
    ("openai", "/v1/videos"): [OPENAI.VideoCreateParams],
    ("anthropic", "/v1/messages"): [
        anthropic.types.message_create_params.MessageCreateParamsNonStreaming,
        anthropic.types.beta.message_create_params.MessageCreateParamsNonStreaming,
    ],
    ("anthropic", "/v1/messages/count_tokens"): [
        anthropic.types.message_count_tokens_params.MessageCountTokensParams,
        anthropic.types.beta.message_count_tokens_params.MessageCountTokensParams,
    ],
    ("gemini", "/v1beta/interactions"): [CreateModelInteractionParam, CreateAgentInteractionParam],
    ("gemini", "/v1beta/models/gemini-3-pro:generateContent"): [genai.GenerateContentConfig, genai.GenerationConfig],
    ("gemini", "/v1beta/models/gemini-3-pro:embedContent"): [genai.EmbedContentConfig],
    ("gemini", "/v1beta/models/gemini-3-pro:countTokens"): [genai.CountTokensConfig],
    ("gemini", "/v1beta/models/gemini-3-pro:predict"): [genai.GenerateImagesConfig],
    ("gemini", "/v1beta/models/gemini-3-pro:predictLongRunning"): [genai.GenerateVideosConfig],
}
TYPES = [
    pytest.param(*route, each, id=f"{each.__module__}.{each.__name__}")
    for route, each_of in REQUESTS.items()
    for each in each_of
]
OTHER = "another-model"
HISTORY: set[Path] = {  # Anthropic: an earlier response's, "not validated against the request's `fallbacks` or `model`"
    ("messages", "[]", "content", "[]", "from", "model"),
    ("messages", "[]", "content", "[]", "to", "model"),
    ("input", "[]", "svg_usage", "model"),  # OpenAI: what an earlier image cost
}
NOT_THE_CALLERS = {"configs", "customConfigs", "headers", "logit_bias"}
"""Maps of tools' names, settings, header names and tokens: a string under `model` is refused there."""
NOT_SENT = {"httpOptions"}


def is_model(place: Path) -> bool:
    return "model" in place[-1].lower() or place[-1] == "fallbacks" or place == ("agent",)


def members(kind: Any) -> dict[str, Any] | None:
    """Return the members of a type, by the name that travels."""
    if typing_extensions.is_typeddict(kind):
        return typing_extensions.get_type_hints(kind)
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    return None


def walk(kind: Any, path: Path = (), above: tuple[Any, ...] = ()) -> Iterator[tuple[Path, Any, dict[Path, Any]]]:
    """Yield every member of a request type: its path, its type, and what else stands beside the way to it."""
    own = members(kind)
    if own is not None:
        if kind in above:
            return
        tags = (
            {(*path, "type"): typing.get_args(own["type"])[0]} if typing.get_origin(own.get("type")) is typing.Literal else {}
        )
        for name, each in own.items():
            yield (*path, name), each, tags
            for found, inner, beside in walk(each, (*path, name), (*above, kind)):
                yield found, inner, {**tags, **beside}
        return
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for each in arguments:
            yield from walk(each, path, above)
    elif origin in (typing_extensions.Required, typing_extensions.NotRequired, typing_extensions.Annotated):
        yield from walk(arguments[0], path, above)
    elif origin is not None and origin is not typing.Literal and origin not in (dict, collections.abc.Mapping):
        for each in arguments:
            yield from walk(each, (*path, "[]"), above)


def flat(kind: Any) -> Iterator[Any]:
    """Yield the alternatives of a type."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType, typing_extensions.Required, typing_extensions.Annotated):
        for each in typing.get_args(kind)[: None if origin in (typing.Union, types.UnionType) else 1]:
            yield from flat(each)
    else:
        yield kind


def is_text(kind: Any) -> bool:
    return any(each is str or typing.get_origin(each) is typing.Literal for each in flat(kind))


def is_mapping(kind: Any) -> bool:
    return any(each is dict or typing.get_origin(each) in (dict, collections.abc.Mapping) for each in flat(kind))


def is_list_of_text(kind: Any) -> bool:
    return any(
        typing.get_origin(each) not in (None, typing.Literal, dict) and any(is_text(inner) for inner in typing.get_args(each))
        for each in flat(kind)
    )


def put(body: Any, path: Path, value: Any) -> None:
    """Put a value at its place."""
    for at, key in enumerate(path):
        last, below = at == len(path) - 1, [] if path[at + 1 : at + 2] == ("[]",) else {}
        if key == "[]":
            if not body:
                body.append(value if last else below)
            body = body[0]
        else:
            body[key] = value if last else body.get(key, below)
            body = body[key]


def body_with(path: Path, value: Any, beside: dict[Path, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    put(body, path, value)
    if path[:2] == ("fallbacks", "[]") and path != ("fallbacks", "[]", "model"):
        put(body, ("fallbacks", "[]", "model"), "own-model")
    for place, tag in beside.items():
        if place != path:
            put(body, place, tag)
    return body


def read(service: str, path: str, body: dict[str, Any]) -> NamedModels:
    source = the_service(service).resolve("POST", path.encode())[0].engine_source
    assert source is not None, "the route names an engine"
    return read_models(source, json.dumps({"model": "own-model", **body}).encode(), "application/json", "")


def is_caught(service: str, path: str, body: dict[str, Any]) -> bool:
    try:
        named = read(service, path, body)
    except InvalidRequest:
        return True
    return named.unchecked or OTHER in named.others or named.engine == OTHER


@pytest.mark.parametrize(("service", "path", "kind"), TYPES)
def test_every_model_field_is_matched_or_refused(service: str, path: str, kind: Any) -> None:
    missed, seen = [], 0
    for place, each, beside in walk(kind):
        if not is_model(place):
            continue
        for value in ([OTHER] if is_text(each) else []) + ([[OTHER]] if is_list_of_text(each) else []):
            seen += 1
            if place not in HISTORY and not is_caught(service, path, body_with(place, value, beside)):
                missed.append(place)
    assert not missed
    assert seen or kind.__module__.startswith("google")


def test_the_walk_finds_the_fields_that_are_known() -> None:
    found = {place for _, _, kind in (each.values for each in TYPES) for place, _, _ in walk(kind) if place[-1] == "model"}
    assert {
        ("fallbacks", "[]", "model"),
        ("tools", "[]", "model"),
        ("moderation", "model"),
        ("input", "[]", "tools", "[]", "model"),
        ("messages", "[]", "content", "[]", "tool", "definition", "model"),
        ("messages", "[]", "content", "[]", "tool_changes", "[]", "tool", "definition", "model"),
    } | HISTORY <= found


@pytest.mark.parametrize(("service", "path", "kind"), TYPES)
def test_the_callers_own_maps_are_left_alone(service: str, path: str, kind: Any) -> None:
    refused = []
    for place, each, beside in walk(kind):
        if is_mapping(each) and place[-1] not in NOT_THE_CALLERS and place[0] not in NOT_SENT:
            named = read(service, path, body_with(place, {"model": OTHER, "x": {"type": "string", "model": OTHER}}, beside))
            if named.others - {"own-model"} or named.unchecked:
                refused.append(place)
    assert not refused


@pytest.mark.parametrize(("service", "path", "kind"), TYPES)
def test_text_that_speaks_of_models_passes(service: str, path: str, kind: Any) -> None:
    text = '{"model":"another-model"}, "model": "another-model"'
    for place, each, beside in walk(kind):
        if is_text(each) and not is_model(place):
            named = read(service, path, body_with(place, text, beside))
            assert (named.others - {"own-model"}, named.unchecked) == (frozenset(), False), place
