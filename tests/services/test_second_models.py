"""Models that a request names beside its engine: matched like the engine, or refused."""

import json
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from aisbreaker_mw.exceptions import InvalidRequest, PayloadTooLarge
from aisbreaker_mw.services.engines import LARGE_BODY_BYTES, read_models
from aisbreaker_mw.services.second_models import NamedModels, plain

from ..support import RecordingUpstream, bearer, mint, proxy

CHAT = "/openai/v1/chat/completions"
RESPONSES = "/openai/v1/responses"
MESSAGES = "/anthropic/v1/messages"
ROUTER = "/openrouter/v1/chat/completions"
GEMINI = "/gemini/v1beta/models/mine:generateContent"
AZURE = "/azure/openai/deployments/mine/chat/completions"
BEDROCK = "/bedrock/model/mine/converse"
SENT, REFUSED, UNCHECKED = 200, 403, 400


@pytest.fixture(scope="module")
def upstream() -> Iterator[RecordingUpstream]:
    with RecordingUpstream() as upstream:
        yield upstream


NAMES = ("openai", "anthropic", "openrouter", "gemini", "azure", "stability", "huggingface", "groq", "replicate")
VENDORS = ("openai.com", "anthropic.com", "openrouter.ai", "google.com", "azure.com", "groq.com")


@pytest.fixture(scope="module")
def base(upstream: RecordingUpstream) -> Iterator[str]:
    with proxy(upstream, *NAMES) as base:
        yield base


@pytest.fixture(scope="module")
def token(base: str) -> str:
    """A key for the model `mine` of every vendor, and for `ours-*`."""
    secrets = [(f"chat:{vendor}/{engine}", "sk") for vendor in VENDORS for engine in ("mine", "ours-*")]
    more = ["image-to-image:openai.com/mine", "text-to-image:stability.ai/mine", "inference:huggingface.co/mine"]
    return mint(base, *secrets, *((name, "sk") for name in (*more, "inference:replicate.com/mine")))


def ask(base: str, path: str, token: str, **options: Any) -> int:
    headers = {**bearer(token), **options.pop("headers", {})}
    return httpx.post(base + path, headers=headers, timeout=60, **options).status_code


SCHEMA = {"type": "object", "properties": {"model": {"type": "string", "enum": ["a"], "model": "other"}}}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}

CASES: list[tuple[str, dict[str, Any], int]] = [
    # Anthropic
    (MESSAGES, {"fallbacks": [{"model": "other"}]}, REFUSED),
    (MESSAGES, {"fallbacks": [{"model": "mine"}]}, SENT),
    (MESSAGES, {"fallbacks": [{"model": "mine"}, {"model": "other"}]}, REFUSED),
    (MESSAGES, {"fallbacks": "default"}, REFUSED),
    (MESSAGES, {"fallbacks": ["other"]}, REFUSED),
    (MESSAGES, {"fallbacks": [{"Model": "other"}]}, UNCHECKED),
    (MESSAGES, {"fallbacks": [{"model": "mine", "model\0": "other"}]}, UNCHECKED),
    (MESSAGES, {"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "other"}]}, REFUSED),
    (MESSAGES, {"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "mine"}]}, SENT),
    (MESSAGES, {"tools": [{"name": "f", "input_schema": SCHEMA, "input_examples": [{"model": "other"}]}]}, SENT),
    (
        MESSAGES,
        {"messages": [{"content": [{"type": "tool_addition", "tool": {"definition": {"type": "a", "model": "other"}}}]}]},
        REFUSED,
    ),
    (
        MESSAGES,
        {"messages": [{"content": [{"type": "tool_use", "input": {"model": "other", "tools": [{"model": "x"}]}}]}]},
        SENT,
    ),
    (MESSAGES, {"metadata": {"user_id": "model", "model": "other"}, "system": [{"type": "text", "model": "other"}]}, SENT),
    (MESSAGES, {"fallback_credit_token": "token"}, SENT),
    # OpenAI
    (RESPONSES, {"tools": [{"type": "image_generation", "model": "other"}]}, REFUSED),
    (RESPONSES, {"tools": [{"type": "image_generation", "svg": {"model": "other"}}]}, REFUSED),
    (RESPONSES, {"tools": [{"type": "image_generation", "model": "mine", "svg": {"model": "mine"}}]}, SENT),
    (RESPONSES, {"tools": [{"type": "namespace", "tools": [{"type": "image_generation", "model": "other"}]}]}, REFUSED),
    (RESPONSES, {"Tools": [{"type": "image_generation", "model": "other"}]}, REFUSED),
    (RESPONSES, {"tools": [{"type": "image_generation", "MODEL": "other"}]}, UNCHECKED),
    (RESPONSES, {"input": [{"type": "additional_tools", "tools": [{"type": "image_generation", "model": "other"}]}]}, REFUSED),
    (RESPONSES, {"input": [{"type": "function_call", "arguments": '{"model":"other"}', "model": "other"}]}, SENT),
    (RESPONSES, {"tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]}, SENT),
    (RESPONSES, {"prompt": {"id": "p", "variables": {"model": "other"}}, "instructions": "model"}, SENT),
    (RESPONSES, {"prompt": {"id": "p", "model": "other"}}, UNCHECKED),
    (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}, SENT),
    (CHAT, {"moderation": {"model": "other"}}, REFUSED),
    (CHAT, {"moderation": {"model": "mine"}}, SENT),
    (CHAT, {"tools": [FUNCTION], "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, SENT),
    (CHAT, {"functions": [{"name": "f", "parameters": SCHEMA}]}, SENT),
    (CHAT, {"model\0": "other"}, UNCHECKED),
    (CHAT, {"model ": "other"}, UNCHECKED),
    (CHAT, {"mo-del": "other"}, UNCHECKED),
    (CHAT, {"x": {"y": [{"reward_model": "other"}]}}, UNCHECKED),
    (CHAT, {"x": {"modelIds": ["other"]}}, UNCHECKED),
    (CHAT, {"x": {"model": {"id": "other"}}}, UNCHECKED),
    (CHAT, {"use_model": True, "model_count": 3, "x": {"model": None}}, SENT),
    (CHAT, {"messages": [{"role": "user", "content": '"model":"other"', "model": "other"}]}, SENT),
    # OpenRouter, Groq
    (ROUTER, {"fallbacks": ["other"]}, REFUSED),
    (ROUTER, {"fallbacks": ["ours-a"]}, REFUSED),
    (ROUTER, {"route": "fallback"}, REFUSED),
    (ROUTER, {"models": ["other"]}, UNCHECKED),
    (ROUTER, {"preset": "other"}, REFUSED),
    (ROUTER, {"plugins": [{"id": "auto-router", "allowed_models": ["other"]}]}, UNCHECKED),
    (ROUTER, {"provider": {"order": ["x"], "allow_fallbacks": True}, "plugins": [{"id": "web", "engine": "exa"}]}, SENT),
    (ROUTER, {"tools": [{"type": "openrouter:image_generation", "parameters": {"model": "other"}}]}, REFUSED),
    (ROUTER, {"tools": [{"type": "function", "TYPE": "openrouter:x", "parameters": {"model": "other"}}]}, REFUSED),
    ("/groq/chat/completions", {"compound_custom": {"models": {"answering_model": "other"}}}, UNCHECKED),
    # The engine in the path
    (GEMINI, {}, SENT),
    (GEMINI, {"model": "models/mine"}, SENT),
    (GEMINI, {"model": "other"}, REFUSED),
    (GEMINI, {"generateContentRequest": {"model": "models/other", "contents": []}}, REFUSED),
    (GEMINI, {"generateContentRequest": {"model": "models/mine", "contents": [{"parts": [{"model": "x"}]}]}}, SENT),
    (GEMINI, {"generationConfig": {"routingConfig": {"manualMode": {"modelName": "other"}}}}, UNCHECKED),
    (GEMINI, {"generationConfig": {"routingConfig": {"autoMode": {"modelRoutingPreference": "BALANCED"}}}}, UNCHECKED),
    (GEMINI, {"modelArmorConfig": {"promptTemplateName": "projects/x"}, "labels": {"model": "x"}}, SENT),
    (GEMINI, {"tools": [{"functionDeclarations": [{"name": "f", "parameters": SCHEMA, "response": SCHEMA}]}]}, SENT),
    (
        GEMINI,
        {"generationConfig": {"responseSchema": SCHEMA}, "contents": [{"parts": [{"functionCall": {"model": "x"}}]}]},
        SENT,
    ),
    (AZURE, {"model": "other"}, SENT),
    (AZURE, {"Model": "other"}, UNCHECKED),
    (AZURE, {"tools": [{"type": "image_generation", "model": "other"}]}, REFUSED),
    (AZURE, {"data_sources": [{"parameters": {"embedding_dependency": {"deployment_name": "other"}}}]}, UNCHECKED),
    ("/huggingface/hf-inference/models/mine", {"inputs": {"model": "x"}, "parameters": {"top_k": 1}}, SENT),
    ("/huggingface/hf-inference/models/mine", {"inputs": "x", "parameters": {"model": "other"}}, UNCHECKED),
    ("/replicate/v1/predictions", {"version": "mine", "input": {"model": "dev"}}, SENT),
    ("/replicate/v1/predictions", {"version": "mine", "model": "other"}, REFUSED),
]


def named(path: str) -> dict[str, str]:
    """Return what names the engine in a body to this path, if anything does."""
    return {"model": "mine"} if path in (CHAT, RESPONSES, MESSAGES, ROUTER, "/groq/chat/completions") else {}


@pytest.mark.parametrize(
    ("path", "body", "status"), CASES, ids=[f"{path.split('/')[1]} {json.dumps(body)[:90]}" for path, body, _ in CASES]
)
def test_a_key_for_one_model(base: str, upstream: RecordingUpstream, token: str, path: str, body: Any, status: int) -> None:
    before = len(upstream.requests)
    content = json.dumps({**named(path), **body}).encode()
    json_type = {"content-type": "application/json"}
    assert ask(base, path, token, content=content, headers=json_type) == status
    assert len(upstream.requests) - before == (status == SENT)
    # The same in a large body, of which an outline is read, and in a compressed one.
    large = content[:-1] + (b"," if len(content) > 2 else b"") + b'"user":"' + b"x" * LARGE_BODY_BYTES + b'"}'
    assert ask(base, path, token, content=large, headers=json_type) == status
    compressed = zlib.compress(content)
    assert ask(base, path, token, content=compressed, headers={**json_type, "content-encoding": "deflate"}) == status


def test_a_key_for_every_model_is_not_held_up(base: str, upstream: RecordingUpstream) -> None:
    token = mint(base, ("", "sk"))
    for path, body, _ in CASES:
        assert ask(base, path, token, json={**named(path), **body}) == SENT


def test_a_second_secret_for_every_model_covers_them_only_where_it_has_the_engine(base: str) -> None:
    token = mint(base, ("chat:openai.com/mine", "INVALID"), ("chat:openai.com", "sk"))
    tools = {"tools": [{"type": "image_generation", "model": "other"}]}
    assert ask(base, RESPONSES, token, json={"model": "yours", **tools}) == SENT
    assert ask(base, RESPONSES, token, json={"model": "mine", **tools}) == REFUSED


def test_one_pattern_must_cover_them_all(base: str) -> None:
    token = mint(base, ("chat:openai.com/mine", "sk"), ("chat:openai.com/ours-*", "sk"))
    for engine, other, status in (("ours-a", "ours-b", SENT), ("ours-a", "mine", REFUSED), ("mine", "ours-a", REFUSED)):
        assert ask(base, CHAT, token, json={"model": engine, "moderation": {"model": other}}) == status


FILE = {"image": ("a.png", b"\x89PNG", "image/png")}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model": "mine", "prompt": 'model "other"', "n": "1", "user": "model"}, SENT),
        ({"model": "mine", "tools": '[{"model":"other"}]'}, UNCHECKED),
        ({"model": "mine", "tools[0][model]": "other"}, UNCHECKED),
        ({"model": "mine", "x[model]": "other"}, UNCHECKED),
        ({"model": "mine", "fallbacks": "other"}, UNCHECKED),
        ({"model": "mine", "image_model": "other"}, UNCHECKED),
        ({"model": "other"}, REFUSED),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_forms(base: str, token: str, fields: dict[str, str], status: int) -> None:
    assert ask(base, "/openai/v1/images/edits", token, data=fields, files=FILE) == status
    assert ask(base, "/openai/v1/images/edits", token, data=fields) == status


def test_a_form_beside_an_engine_in_the_path(base: str, token: str) -> None:
    path = "/stability/v2beta/stable-image/generate/mine"
    assert ask(base, path, token, data={"prompt": "x"}, files=FILE) == SENT
    assert ask(base, path, token, data={"prompt": "x", "model": "mine"}, files=FILE) == SENT
    assert ask(base, path, token, data={"prompt": "x", "model": "other"}, files=FILE) == REFUSED
    assert ask(base, path, token, data={"prompt": "x", "Model": "mine"}, files=FILE) == UNCHECKED


def test_a_recording_names_no_model_but_json_under_its_name_may(base: str, token: str) -> None:
    path = "/huggingface/hf-inference/models/mine"
    audio = {"content-type": "audio/flac"}
    assert ask(base, path, token, content=b"fLaC\0", headers=audio) == SENT
    assert ask(base, path, token, content=b"", headers=audio) == SENT
    for body in (b'{"model":"other"}', b' \n{"model":"other"}', b'\xef\xbb\xbf{"model":"other"}', b"[]"):
        assert ask(base, path, token, content=body, headers=audio) == UNCHECKED
    assert ask(base, path, token, content=b"fLaC\0", headers={"content-type": "text/plain"}) == UNCHECKED


def test_a_leading_equals_sign_is_this_service_id_alone(base: str) -> None:
    loose, exact = (mint(base, (f"{sign}chat:openai.com/mine", "sk")) for sign in ("", "="))
    for engine, by_loose, by_exact in (("mine", SENT, SENT), ("mine:free", SENT, REFUSED), ("mine/x", SENT, REFUSED)):
        assert ask(base, CHAT, loose, json={"model": engine}) == by_loose
        assert ask(base, CHAT, exact, json={"model": engine}) == by_exact
    assert ask(base, CHAT, exact, json={"model": "mine", "moderation": {"model": "mine:free"}}) == REFUSED
    assert httpx.get(base + "/openai/v1/models", headers=bearer(exact)).status_code == SENT
    bare = mint(base, ("=chat:openai.com", "sk"))
    assert ask(base, CHAT, bare, json={"model": "mine"}) == REFUSED
    assert ask(base, CHAT, bare, json={}) == SENT


def test_the_refusal_names_the_model_and_never_its_place(base: str, token: str) -> None:
    body = {"model": "mine", "moderation": {"model": "other"}}
    response = httpx.post(base + CHAT, json=body, headers=bearer(token))
    assert "chat:openai.com/other" in response.json()["error"]["message"]
    response = httpx.post(base + CHAT, json={"model": "mine", "x": {"model": "secret"}}, headers=bearer(token))
    assert response.json()["error"]["code"] == "invalid_request"
    assert "secret" not in response.text


# Units


def read(text: str, kind: str = "json:model", content_type: str = "application/json") -> NamedModels:
    return read_models(kind, text.encode(), content_type, "", limit=1 << 24)


@pytest.mark.parametrize("key", ["model", "Model", "MODEL", " model", "model\0", "mod\0el", "model[]", "mo_del", "mode\u200bl"])
def test_the_most_lenient_reading_of_a_key(key: str) -> None:
    assert plain(key) == "model"


def test_the_engine_of_a_key_with_a_capital_is_found() -> None:
    assert read('{"modelId":"m","modelInput":{"taskType":"x"}}', "json:modelId") == NamedModels("m")


@pytest.mark.parametrize("name", ["m" * 257, "m m", "é", "m" * 5000])
def test_another_model_must_be_a_name(name: str) -> None:
    with pytest.raises(InvalidRequest):
        read(json.dumps({"model": "m", "moderation": {"model": name}}))


def test_a_repeated_key_hides_nothing() -> None:
    text = '{"model":"m","tools":[{"model":"a","model":"b"}],"tools":[{"model":"c"}],"x":{"y":1,"y":{"model":"d"}}}'
    assert read(text) == NamedModels("m", frozenset("abc"), unchecked=True)


@pytest.mark.parametrize("part", ['{"a":[]},', "[],", '"",'])
def test_the_search_is_bounded(part: str) -> None:
    with pytest.raises(PayloadTooLarge, match="too many parts"):
        read('{"model":"m","x":[' + part * 60_000 + "[]]}")
    assert read('{"model":"m","messages":[' + part * 60_000 + "[]]}") == NamedModels("m")


def test_numbers_are_no_parts() -> None:
    assert read('{"model":"m","x":[' + "1," * 100_000 + "1]}") == NamedModels("m")


def test_many_parameters_take_linear_time() -> None:
    """Each of them asks for its tool's type, which is looked for once."""
    assert read('{"model":"m","tools":[{' + '"parameters":[],' * 40_000 + '"type":"function"}]}') == NamedModels("m")
