"""serviceIds and their patterns, routes and paths, the built-in catalogue, and what the configuration may change."""

import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aisbreaker_mw.exceptions import ConfigurationError, InvalidRequest
from aisbreaker_mw.services import catalog
from aisbreaker_mw.services.catalog import ServiceCatalog
from aisbreaker_mw.services.patterns import LONGEST_PATTERN, covers_vendor, matches, needs_engine, validate_pattern
from aisbreaker_mw.services.service import Service

from . import make_routes

CATALOG = ServiceCatalog.load()


def service(name: str = "openai", **overrides: Any) -> Service:
    found = (ServiceCatalog.load({name: overrides}) if overrides else CATALOG).get(name)
    assert found is not None
    return found


# Patterns

VALID = [
    "=chat:openai.com",
    "=chat:openai.com/gpt-4o",
    "",
    "*",
    "chat:",
    "chat:*",
    "chat*",
    "chat:openai.com",
    "chat:openai.com/",
    "chat:openai.com/*",
    "chat:openai.com/gpt-4o",
    "chat:openai.com/gpt-4*",
    "chat:openai.com*",
    "chat:huggingface.co/meta-llama/Llama-3.1-8B:fastest",
    "chat:openai.com/ft:gpt-4o:org::id",
    "*:openai.com",
    "*:openai.com/gpt-4o",
    "*:",
    "*:*",
    "aisbreaker:network",
    "chat:dummy",
    "text-to-image:stability.ai",
    "chat:x/" + "m" * (LONGEST_PATTERN - 7),
]
INVALID = [
    "chat",
    "openai.com",
    ":",
    ":openai.com",
    "chat::openai.com",
    "chat:/gpt-4o",
    "chat:openai.com:gpt",
    "ch*t:openai.com",
    "**",
    "*chat:openai.com",
    "chat:**",
    "chat:*.com",
    "chat:openai.com/gpt*4",
    "chat: openai.com",
    "chat:openai.com ",
    "chat:openai.com/gpt 4",
    "chat:openai.com\n",
    "chat:openai.com/\x00",
    "chat:openai.com/\x7f",
    "chat:opena\u0131.com",
    "chat:openai.com/gpt-\uff14o",
    "-chat:openai.com",
    "chat:x/" + "m" * (LONGEST_PATTERN - 6),
    "=",
    "=chat",
    "=chat:",
    "=*:openai.com",
    "=chat:openai.com/",
    "=chat:openai.com/gpt-*",
    "==chat:openai.com",
    "chat:=openai.com",
]


@pytest.mark.parametrize("pattern", VALID, ids=lambda pattern: pattern[:40] or "empty")
def test_a_token_may_have_this_pattern(pattern: str) -> None:
    validate_pattern(pattern)


@pytest.mark.parametrize("pattern", INVALID, ids=lambda pattern: ascii(pattern[:40]))
def test_a_token_may_not_have_this_pattern_and_the_refusal_does_not_repeat_it(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"^must ") as refusal:
        validate_pattern(pattern)
    assert len(pattern) < 5 or pattern not in str(refusal.value)


@pytest.mark.parametrize(
    ("pattern", "service_id", "expected"),
    [
        ("", "chat:openai.com", True),
        ("*", "files:openai.com", True),
        ("chat:openai.com", "chat:openai.com", True),
        ("chat:openai.com", "chat:openai.com/gpt-4o", True),
        ("chat:openai.com", "chat:openai.com.evil.example", False),
        ("chat:openai.com", "files:openai.com", False),
        ("chat:openai.com", "chat", False),
        ("chat:openai.com/", "chat:openai.com/gpt-4o", True),
        ("chat:openai.com/", "chat:openai.com", False),
        ("chat:openai.com/gpt-4o", "chat:openai.com/gpt-4o", True),
        ("chat:openai.com/gpt-4o", "chat:openai.com/gpt-4o-mini", False),
        ("chat:openai.com/gpt-4o", "chat:openai.com", False),
        ("chat:openai.com/gpt-4*", "chat:openai.com/gpt-4o-mini", True),
        ("chat:openai.com/gpt-4*", "chat:openai.com/gpt-3.5", False),
        ("chat:openai.com/*", "chat:openai.com", False),
        ("chat:huggingface.co/meta-llama", "chat:huggingface.co/meta-llama/Llama-3", True),
        ("chat:x/llama3", "chat:x/llama3:8b", True),
        ("chat", "chat:openai.com", True),
        ("cha", "chat:openai.com", False),
        ("chat:", "chat:openai.com/gpt-4o", True),
        ("chat:", "chatter:openai.com", False),
        ("chat:open", "chat:openai.com", False),
        ("chat:open*", "chat:openai.com", True),
        ("chat:*", "chat:openai.com", True),
        ("*:openai.com", "files:openai.com", True),
        ("*:openai.com", "chat:openai.com/gpt-4o", True),
        ("*:openai.com", "chat:openai.community", False),
        ("*:openai.com", "chat:anthropic.com", False),
        ("*:openai.com/gpt-4*", "chat:openai.com/gpt-4o", True),
        ("*:openai.com/gpt-4", "chat:openai.com/gpt-4o", False),
        ("*:", "chat:openai.com", True),
        ("*:*", "chat:openai.com", True),
        ("aisbreaker:network", "aisbreaker:network", True),
        ("CHAT:openai.com", "chat:openai.com", False),
        ("=chat:openai.com/gpt-4o", "chat:openai.com/gpt-4o", True),
        ("=chat:openai.com/gpt-4o", "chat:openai.com/gpt-4o:free", False),
        ("=chat:openai.com/gpt-4o", "chat:openai.com", False),
        ("=chat:openai.com", "chat:openai.com", True),
        ("=chat:openai.com", "chat:openai.com/gpt-4o", False),
    ],
)
def test_matching(pattern: str, service_id: str, expected: bool) -> None:
    assert matches(pattern, service_id) is expected


words = st.text("ab-*/:.", max_size=8)
engines = st.text("ab-/:.", min_size=1, max_size=8)


@given(st.one_of(words, words.map("t:v/".__add__), words.map("*:v/".__add__), words.map("t:v".__add__)), engines)
@example("t:v/", "a")
@example("*:v/a*", "ab")
def test_a_pattern_that_only_an_engine_can_match_is_said_to_need_it(pattern: str, engine: str) -> None:
    if not matches(pattern, "t:v") and matches(pattern, f"t:v/{engine}"):
        assert needs_engine(pattern, "t:v")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("chat:openai.com/gpt-4o", True),
        ("chat:openai.com/", True),
        ("chat:openai.com/*", True),
        ("*:openai.com/gpt-4*", True),
        ("chat:openai.com", False),
        ("chat:anthropic.com/claude", False),
        ("files:openai.com/x", False),
        ("", False),
        ("=chat:openai.com/gpt-4o", True),
        ("=chat:openai.com", True),
        ("=chat:openai.co", False),
        ("=files:openai.com/x", False),
    ],
)
def test_only_patterns_with_an_engine_need_the_engine(pattern: str, expected: bool) -> None:
    assert needs_engine(pattern, "chat:openai.com") is expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", True),
        ("*", True),
        ("chat*", True),
        ("chat:", True),
        ("chat:*", True),
        ("chat:open*", True),
        ("chat:openai.com", True),
        ("chat:openai.com/gpt-4o", True),
        ("*:openai.com", True),
        ("*:openai.com/gpt-4*", True),
        ("*:", True),
        ("=chat:openai.com/gpt-4o", True),
        ("=chat:openai.com", True),
        ("=chat:anthropic.com", False),
        ("chat:anthropic.com", False),
        ("*:anthropic.com", False),
        ("chat:openai.com.example", False),
        ("chat:openai", False),
        ("aisbreaker:network", False),
    ],
)
def test_any_secret_for_a_vendor_covers_the_vendor(pattern: str, expected: bool) -> None:
    assert covers_vendor(pattern, "openai.com") is expected


@given(st.sampled_from(VALID), st.sampled_from(["chat", "files"]), engines)
def test_a_pattern_that_matches_something_of_a_vendor_covers_it(pattern: str, task: str, engine: str) -> None:
    if matches(pattern, f"{task}:openai.com") or matches(pattern, f"{task}:openai.com/{engine}"):
        assert covers_vendor(pattern, "openai.com")


# Paths

REFUSED_PATHS = [
    b"chat/completions",
    b"//evil.example/v1",
    b"//",
    b"/v1/../files",
    b"/..",
    b"/.",
    b"/v1/./files",
    b"/v1/chat/completions/../../files",
    b"/v1/%2e%2e/files",
    b"/v1/.%2E/files",
    b"/v1/%2e/files",
    b"/v1/..%2ffiles",
    b"/v1/x%2F..%2Ffiles",
    b"/v1/..;/files",
    b"/v1/..;x=y/files",
    b"/v1/..%3bx/files",
    b"/v1/%2e%2e%3B/files",
    b"/v1/..%20/files",
    b"/v1/%20../files",
    b"/v1\\files",
    b"/v1/..%5cfiles",
    b"/v1/%5C",
    b"/v1/a\x00b",
    b"/v1/a b",
    b"/v1/a\tb",
    b"/v1/a\r\nb",
    b"/v1/a\x7fb",
    b"/v1/\xc3\xa9",
    b"/v1/%00",
    b"/v1/%0d%0aHost:x",
    b"/v1/%1F",
    b"/v1/%7f",
    b"/v1/%c0%ae%c0%ae/files",
    b"/v1/%e0%80%ae/files",
    b"/v1/%ff",
    b"/v1/%u002e%u002e/files",
    b"/v1/%",
    b"/v1/%2",
    b"/v1/%zz",
    b"/v1?x=y",
    b"/v1#x",
]


@pytest.mark.parametrize("rest", REFUSED_PATHS, ids=ascii)
@pytest.mark.parametrize("name", ["openai", "gemini", "perplexity", "network", "dummy"])
def test_a_path_that_could_be_taken_for_another_is_refused(name: str, rest: bytes) -> None:
    with pytest.raises(InvalidRequest):
        service(name).upstream_target(rest)
    with pytest.raises(InvalidRequest):
        service(name).route("GET", rest)


@pytest.mark.parametrize(
    ("name", "rest", "target"),
    [
        ("openai", b"", b"/v1"),
        ("openai", b"/", b"/v1/"),
        ("openai", b"/v1", b"/v1"),
        ("openai", b"/v1/", b"/v1/"),
        ("openai", b"/chat/completions", b"/v1/chat/completions"),
        ("openai", b"/v1/chat/completions", b"/v1/chat/completions"),
        ("openai", b"/v10/x", b"/v1/v10/x"),
        ("openai", b"/v1beta", b"/v1/v1beta"),
        ("openai", b"/%76%31/x", b"/v1/%76%31/x"),
        ("openai", b"/files/a%2Fb%2fc%20%252e%252e%c3%a9", b"/v1/files/a%2Fb%2fc%20%252e%252e%c3%a9"),
        ("openai", b"/v1//files", b"/v1//files"),
        ("openai", b"/v1/a.b/.c/...", b"/v1/a.b/.c/..."),
        ("gemini", b"/models", b"/v1beta/models"),
        ("gemini", b"/v1alpha/models", b"/v1alpha/models"),
        ("gemini", b"/upload/v1beta/files", b"/upload/v1beta/files"),
        ("gemini", b"/openai/chat/completions", b"/v1beta/openai/chat/completions"),
        ("groq", b"/chat/completions", b"/openai/v1/chat/completions"),
        ("groq", b"/v1/chat/completions", b"/openai/v1/chat/completions"),
        ("groq", b"/openai/v1/chat/completions", b"/openai/v1/chat/completions"),
        ("groq", b"/openai/v2/x", b"/openai/v1/openai/v2/x"),
        ("openrouter", b"/v1/chat/completions", b"/api/v1/chat/completions"),
        ("perplexity", b"", b"/"),
        ("perplexity", b"/chat/completions", b"/chat/completions"),
        ("network", b"/openai/v1/models", b"/openai/v1/models"),
    ],
)
def test_the_api_prefix_is_added_where_it_is_missing_and_nothing_else_changes(name: str, rest: bytes, target: bytes) -> None:
    assert service(name).upstream_target(rest) == target


@pytest.mark.parametrize(
    ("base_url", "target"),
    [
        ("http://10.0.0.7:8000", b"/v1/models"),
        ("http://10.0.0.7:8000/", b"/v1/models"),
        ("http://10.0.0.7:8000/v1", b"/v1/models"),
        ("http://10.0.0.7:8000/v1/", b"/v1/models"),
        ("http://10.0.0.7:8000/gateway/openai", b"/gateway/openai/v1/models"),
        ("http://10.0.0.7:8000/gateway/v1", b"/gateway/v1/models"),
        ("http://10.0.0.7:8000/gatewayv1", b"/gatewayv1/v1/models"),
    ],
)
def test_the_base_urls_own_path_goes_first(base_url: str, target: bytes) -> None:
    mine = service("mine", like="openai", base_url=base_url)
    assert mine.upstream_target(b"/models") == mine.upstream_target(b"/v1/models") == target
    assert mine.route("GET", b"/models").listing


# What a lenient upstream might make of a path: everything decoded twice, parameters dropped, slashes merged, case folded.
def most_lenient(path: bytes) -> bytes:
    path = unquote_to_bytes(unquote_to_bytes(path)).replace(b"\\", b"/").lower()
    segments: list[bytes] = []
    for segment in path.split(b"/"):
        segment = segment.partition(b";")[0].partition(b"?")[0].strip()
        if segment == b"..":
            del segments[-1:]
        elif segment not in (b"", b"."):
            segments.append(segment)
    return b"/" + b"/".join(segments)


pieces = st.sampled_from(
    [
        *(b"/", b"//", b"/v1", b"/chat", b"/completions", b"/files", b"/responses", b"/models", b"/messages"),
        *(b"/batches", b"..", b"/..", b"/../", b".", b"%2e", b"%2E", b"%252e", b"%2f", b"%252f", b"%5c", b"\\"),
        *(b";", b";x", b"%3b", b"%00", b"?", b"#", b"%23", b"%3f", b" ", b"%20", b"x", b"F", b"/Files", b"%66iles"),
        *(b"%c0%ae", b"@", b":"),
    ]
)


@given(st.sampled_from(["openai", "anthropic", "dummy", "perplexity"]), st.lists(pieces, max_size=9).map(b"".join))
@example("openai", b"/v1/chat/completions/%252e%252e/files")
@example("openai", b"/v1/chat/completions%2f..%2ffiles")
def test_no_spelling_of_a_path_makes_it_chat_unless_it_is_that_path(name: str, rest: bytes) -> None:
    try:
        found = service(name).route("POST", rest)
        target = service(name).upstream_target(rest)
    except InvalidRequest:
        return
    if found.task == "chat":
        assert most_lenient(target) == target
        assert target in {
            *(b"/v1/chat/completions", b"/v1/completions", b"/v1/responses", b"/chat/completions"),
            *(b"/v1/messages", b"/v1/complete"),
        }
    if found.task == "models":
        assert most_lenient(target).startswith(b"/v1/models")


@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", b"/v1//files"),
        ("GET", b"/v1/%66iles"),
        ("POST", b"/v1/%63hat/completions"),
        ("POST", b"/v1/chat%2Fcompletions"),
        ("POST", b"/v1/chat/completions/"),
        ("POST", b"/v1/chat/completions;x"),
        ("POST", b"/v1/chat/completions%3Fx"),
        ("POST", b"/v1/chat//completions"),
        ("POST", b"/V1/chat/completions"),
        ("POST", b"/v1/Chat/Completions"),
        ("PUT", b"/v1/chat/completions"),
        ("HEAD", b"/v1/models"),
        ("GET", b"/v1/models/a%252e%252e%252f"),
        ("GET", b"/v1/organization/admin_api_keys"),
        ("GET", b"/v1/responses"),
        ("GET", b""),
    ],
)
def test_what_is_not_literally_listed_is_other(method: str, rest: bytes) -> None:
    found = service().route(method, rest)
    assert (found.task, found.engine_source, found.listing) == ("other", None, False)


# Routes of the built-in services, as the vendors' SDKs ask for them

ROUTES = [
    ("openai", "POST", "/v1/chat/completions", "chat", "json:model", ""),
    ("openai", "POST", "/v1/responses", "chat", "json:model", ""),
    ("openai", "POST", "/v1/responses/input_tokens", "chat", "json:model", ""),
    ("openai", "GET", "/v1/chat/completions", "stored", None, ""),
    ("openai", "GET", "/v1/chat/completions/chatcmpl-1", "stored", None, ""),
    ("openai", "POST", "/v1/chat/completions/chatcmpl-1", "stored", None, ""),
    ("openai", "DELETE", "/v1/chat/completions/chatcmpl-1", "stored", None, ""),
    ("openai", "GET", "/v1/chat/completions/chatcmpl-1/messages", "stored", None, ""),
    ("openai", "GET", "/v1/responses/resp_1", "stored", None, ""),
    ("openai", "POST", "/v1/responses/resp_1/cancel", "stored", None, ""),
    ("openai", "GET", "/v1/responses/resp_1/input_items", "stored", None, ""),
    ("openai", "POST", "/v1/conversations", "stored", None, ""),
    ("openai", "POST", "/v1/embeddings", "embeddings", "json:model", ""),
    ("openai", "POST", "/v1/moderations", "moderation", "json:model", ""),
    ("openai", "POST", "/v1/images/generations", "text-to-image", "json:model", ""),
    ("openai", "POST", "/v1/images/edits", "image-to-image", "form:model", ""),
    ("openai", "POST", "/v1/audio/speech", "text-to-speech", "json:model", ""),
    ("openai", "POST", "/v1/audio/transcriptions", "speech-to-text", "form:model", ""),
    ("openai", "POST", "/v1/videos", "video", "form:model", ""),
    ("openai", "GET", "/v1/videos/video_1/content", "video", None, ""),
    ("openai", "GET", "/v1/videos", "stored", None, ""),
    ("openai", "GET", "/v1/realtime", "realtime", "query:model", ""),
    ("openai", "POST", "/v1/realtime/client_secrets", "client-secrets", None, ""),
    ("openai", "GET", "/v1/files", "files", None, ""),
    ("openai", "GET", "/v1/files/file-1/content", "files", None, ""),
    ("openai", "POST", "/v1/uploads/upload_1/parts", "files", None, ""),
    ("openai", "POST", "/v1/fine_tuning/jobs", "fine-tuning", None, ""),
    ("openai", "DELETE", "/v1/models/ft:gpt-4o:org::id", "fine-tuning", None, ""),
    ("openai", "GET", "/v1/models", "models", None, ""),
    ("openai", "GET", "/v1/models/gpt-4o", "models", None, ""),
    ("openai", "GET", "/v1/models/meta-llama%2FLlama-3", "models", None, ""),
    ("openai", "POST", "/v1/batches", "batches", None, ""),
    ("openai", "POST", "/v1/threads/t/runs", "assistants", None, ""),
    ("openai", "POST", "/v1/vector_stores/v/search", "vector-stores", None, ""),
    ("azure", "POST", "/openai/deployments/my-gpt/chat/completions", "chat", "deployment", "my-gpt"),
    ("azure", "POST", "/deployments/my-gpt/embeddings", "embeddings", "deployment", "my-gpt"),
    ("azure", "POST", "/openai/deployments/w/audio/translations", "speech-to-text", "deployment", "w"),
    ("azure", "POST", "/openai/deployments/a/b/chat/completions", "other", None, ""),
    ("azure", "POST", "/openai/deployments/my%2Dgpt/chat/completions", "other", None, ""),
    ("azure", "POST", "/openai/v1/chat/completions", "chat", "json:model", ""),
    ("azure", "POST", "/v1/responses", "chat", "json:model", ""),
    ("azure", "GET", "/openai/responses/resp_1", "stored", None, ""),
    ("azure", "GET", "/openai/realtime", "realtime", "query:deployment", ""),
    ("azure", "GET", "/openai/models", "models", None, ""),
    ("azure", "POST", "/anthropic/v1/messages", "chat", "json:model", ""),
    ("anthropic", "POST", "/v1/messages", "chat", "json:model", ""),
    ("anthropic", "POST", "/v1/messages/count_tokens", "chat", "json:model", ""),
    ("anthropic", "POST", "/v1/messages/batches", "batches", None, ""),
    ("anthropic", "GET", "/v1/messages/batches/b/results", "batches", None, ""),
    ("anthropic", "GET", "/v1/models/claude-opus-4", "models", None, ""),
    ("anthropic", "POST", "/v1/files", "files", None, ""),
    ("gemini", "POST", "/v1beta/models/gemini-2.5-flash:generateContent", "chat", "path", "gemini-2.5-flash"),
    ("gemini", "POST", "/v1beta/models/gemini-2.5-flash:streamGenerateContent", "chat", "path", "gemini-2.5-flash"),
    ("gemini", "POST", "/v1/models/gemini-2.5-flash:countTokens", "chat", "path", "gemini-2.5-flash"),
    ("gemini", "POST", "/v1alpha/models/gemini-2.5-flash:generateContent", "chat", "path", "gemini-2.5-flash"),
    ("gemini", "POST", "/models/gemini-2.5-flash:generateContent", "chat", "path", "gemini-2.5-flash"),
    ("gemini", "POST", "/v1beta/models/text-embedding-004:embedContent", "embeddings", "path", "text-embedding-004"),
    ("gemini", "POST", "/v1beta/models/e:batchEmbedContents", "embeddings", "path", "e"),
    ("gemini", "POST", "/v1beta/models/imagen-4:predict", "text-to-image", "path", "imagen-4"),
    ("gemini", "POST", "/v1beta/models/veo-3:predictLongRunning", "video", "path", "veo-3"),
    ("gemini", "POST", "/v1beta/models/g:batchGenerateContent", "batches", "path", "g"),
    ("gemini", "POST", "/v1beta/models/a:b:generateContent", "other", None, ""),
    ("gemini", "POST", "/v1beta/models/gemini%2D2:generateContent", "other", None, ""),
    ("gemini", "POST", "/v1beta/models/x/y:generateContent", "other", None, ""),
    ("gemini", "GET", "/v1beta/models/gemini-2.5-flash", "models", None, ""),
    ("gemini", "POST", "/v1beta/openai/chat/completions", "chat", "json:model", ""),
    ("gemini", "POST", "/upload/v1beta/files", "files", None, ""),
    ("gemini", "POST", "/v1beta/cachedContents", "stored", None, ""),
    ("gemini", "POST", "/v1alpha/auth_tokens", "client-secrets", None, ""),
    ("huggingface", "POST", "/v1/chat/completions", "chat", "json:model", ""),
    ("huggingface", "POST", "/hf-inference/models/org/name", "inference", "path", "org/name"),
    ("huggingface", "POST", "/hf-inference/models/gpt2", "inference", "path", "gpt2"),
    ("huggingface", "POST", "/hf-inference/models/o/n/pipeline/feature-extraction", "embeddings", "path", "o/n"),
    ("huggingface", "POST", "/hf-inference/models/o/n/v1/chat/completions", "chat", "path", "o/n"),
    ("huggingface", "POST", "/groq/openai/v1/chat/completions", "chat", "json:model", ""),
    ("huggingface", "POST", "/fal-ai/fal-ai/flux/dev", "inference", None, ""),
    ("stability", "POST", "/v2beta/stable-image/generate/ultra", "text-to-image", "path", "ultra"),
    ("stability", "POST", "/v2beta/stable-image/edit/inpaint", "image-to-image", "path", "inpaint"),
    ("stability", "POST", "/v1/generation/sdxl-1.0/text-to-image", "text-to-image", "path", "sdxl-1.0"),
    ("replicate", "POST", "/v1/models/meta/llama-3/predictions", "inference", "path", "meta/llama-3"),
    ("replicate", "POST", "/v1/predictions", "inference", "json:version", ""),
    ("replicate", "GET", "/v1/predictions/abc", "inference", None, ""),
    ("replicate", "GET", "/v1/predictions", "stored", None, ""),
    ("mistral", "POST", "/v1/fim/completions", "chat", "json:model", ""),
    ("mistral", "POST", "/v1/agents/completions", "assistants", None, ""),
    ("groq", "POST", "/openai/v1/audio/transcriptions", "speech-to-text", "form:model", ""),
    ("deepseek", "POST", "/chat/completions", "chat", "json:model", ""),
    ("deepseek", "POST", "/v1/chat/completions", "chat", "json:model", ""),
    ("deepseek", "POST", "/beta/completions", "chat", "json:model", ""),
    ("openrouter", "POST", "/v1/chat/completions", "chat", "json:model", ""),
    ("openrouter", "GET", "/api/v1/models/openai/gpt-4o/endpoints", "models", None, ""),
    ("openrouter", "POST", "/api/v1/keys", "other", None, ""),
    ("xai", "POST", "/v1/messages", "chat", "json:model", ""),
    ("xai", "GET", "/v1/chat/deferred-completion/x", "stored", None, ""),
    ("cohere", "POST", "/v2/chat", "chat", "json:model", ""),
    ("cohere", "POST", "/v1/rerank", "rerank", "json:model", ""),
    ("cohere", "POST", "/compatibility/v1/chat/completions", "chat", "json:model", ""),
    ("together", "POST", "/v1/rerank", "rerank", "json:model", ""),
    ("perplexity", "POST", "/chat/completions", "chat", "json:model", ""),
    ("perplexity", "POST", "/search", "search", None, ""),
    ("network", "POST", "/openai/v1/chat/completions", "aisbreaker", None, ""),
    ("network", "GET", "/openai/v1/models", "aisbreaker", None, ""),
    ("dummy", "POST", "/v1/chat/completions", "chat", "json:model", ""),
]


@pytest.mark.parametrize(("name", "method", "path", "task", "source", "engine"), ROUTES)
def test_a_request_of_an_sdk_has_its_task_and_its_engine(
    name: str, method: str, path: str, task: str, source: str | None, engine: str
) -> None:
    found = service(name).route(method, path.encode())
    assert (found.task, found.engine_source, found.engine) == (task, source, engine)
    assert found.listing is (task == "models")
    assert found.service_id == f"{task}:{service(name).vendor}"
    assert found.service_id_with("m") == f"{task}:{service(name).vendor}/m"
    assert found.service_id_with("") == found.service_id


NAMES = [
    *("openai", "anthropic", "gemini", "huggingface", "stability", "replicate", "mistral", "groq", "deepseek"),
    *("openrouter", "xai", "cohere", "together", "perplexity", "azure", "vertex", "bedrock", "network", "dummy"),
]


def test_the_catalogue_has_these_services() -> None:
    assert sorted(each.name for each in CATALOG) == sorted(NAMES)
    assert len(CATALOG) == len(NAMES)
    assert CATALOG.get("api") is None
    vendor_of_groq = CATALOG.by_vendor("groq.com")
    assert vendor_of_groq is not None
    assert vendor_of_groq.name == "groq"
    assert CATALOG.by_vendor("nobody.example") is None


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("azure", "network", "dummy")])
def test_a_vendors_service_is_reached_by_https(name: str) -> None:
    found = service(name)
    assert found.available
    assert (found.scheme, found.port, found.base_path) == ("https", 443, b"")
    assert found.host_header == found.host.encode()
    assert matches(f"chat:{found.vendor}", f"chat:{found.vendor}")
    validate_pattern(f"chat:{found.vendor}")


def test_network_waits_for_its_base_url_and_dummy_needs_none() -> None:
    assert not service("network").available
    assert service("network", base_url="http://127.0.0.1:3000").available
    assert service("dummy").available
    assert service("dummy").embedded
    assert service("dummy", delay="0.05").delay == 0.05


@pytest.mark.parametrize(
    ("name", "path", "headers", "errors"),
    [
        ("openai", "/v1/chat/completions", [(b"authorization", b"Bearer sk-1")], "openai"),
        ("anthropic", "/v1/messages", [(b"x-api-key", b"sk-1")], "anthropic"),
        ("anthropic", "/v1/chat/completions", [(b"authorization", b"Bearer sk-1")], "openai"),
        ("gemini", "/v1beta/models/g:generateContent", [(b"x-goog-api-key", b"sk-1")], "google"),
        ("gemini", "/v1beta/openai/chat/completions", [(b"authorization", b"Bearer sk-1")], "openai"),
        ("gemini", "/v1beta/openai/unknown", [(b"authorization", b"Bearer sk-1")], "openai"),
        ("gemini", "/v1beta/openaiX", [(b"x-goog-api-key", b"sk-1")], "google"),
        ("deepseek", "/anthropic/v1/messages", [(b"x-api-key", b"sk-1")], "anthropic"),
        ("network", "/anthropic/v1/messages", [(b"authorization", b"Bearer sk-1")], "anthropic"),
    ],
)
def test_the_credential_and_the_error_shape_are_the_protocols(
    name: str, path: str, headers: list[tuple[bytes, bytes]], errors: str
) -> None:
    found = service(name).route("POST", path.encode())
    assert found.credential.headers_for("sk-1") == headers
    assert found.credential.headers_for("") == []
    assert found.errors == errors


def test_anthropics_version_is_sent_by_default() -> None:
    assert service("anthropic").default_headers == ((b"anthropic-version", b"2023-06-01"),)
    assert service("openai").default_headers == ()


# The configuration


def test_a_service_of_ones_own_takes_over_everything_it_is_like() -> None:
    mine = service("my-vllm", like="openai", vendor="llm.internal", base_url="http://LLM.internal:8000")
    assert (mine.scheme, mine.host, mine.port, mine.host_header) == ("http", "llm.internal", 8000, b"llm.internal:8000")
    assert mine.route("POST", b"/chat/completions").service_id == "chat:llm.internal"
    assert CATALOG.get("my-vllm") is None


def test_a_service_can_be_like_another_of_ones_own() -> None:
    catalog = ServiceCatalog.load(
        {
            "second": {"like": "first", "vendor": "second.internal"},
            "first": {"like": "anthropic", "base_url": "http://10.0.0.7", "vendor": "first.internal"},
        }
    )
    second = catalog.get("second")
    assert second is not None
    assert (second.host, second.vendor, second.errors) == ("10.0.0.7", "second.internal", "anthropic")


def test_ones_own_routes_go_before_the_inherited_ones() -> None:
    mine = service(
        "openai",
        routes={
            "POST /v1/files/{id}/score": "classification json:model",
            "POST /v1/completions": "other",
            "ANY {|/v1}/x/{engine}": "inference",
        },
    )
    assert mine.route("POST", b"/files/a/score").service_id == "classification:openai.com"
    assert mine.route("POST", b"/files/a").task == "files"
    assert mine.route("POST", b"/completions").task == "other"
    assert mine.route("PATCH", b"/v1/x/m").engine == "m"


def test_ipv6_base_urls() -> None:
    mine = service("openai", base_url="http://[::1]:8000")
    assert (mine.host, mine.port, mine.host_header) == ("::1", 8000, b"[::1]:8000")
    assert service("openai", base_url="https://[2001:db8::1]").host_header == b"[2001:db8::1]"


@pytest.mark.parametrize(
    ("credential", "headers", "query"),
    [
        ("token", [(b"authorization", b"Token s")], None),
        ("api-key", [(b"api-key", b"s")], None),
        ({"header": "X-Key"}, [(b"x-key", b"s")], None),
        ({"header": "Authorization", "format": "Key {secret}"}, [(b"authorization", b"Key s")], None),
        ({"query": "key"}, [], "key"),
        (["bearer", "api-key", {"query": "k"}], [(b"authorization", b"Bearer s"), (b"api-key", b"s")], "k"),
    ],
)
def test_credential_styles(credential: Any, headers: list[tuple[bytes, bytes]], query: str | None) -> None:
    style = service("openai", credential=credential).credential
    assert style.headers_for("s") == headers
    assert style.query == query


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("openai", {"base_uri": "http://x"}, "services.openai.base_uri is not a setting"),
    ("openai", {"embedded": True}, "services.openai.embedded is not a setting"),
    ("openai", {"base_url": "ftp://x"}, "services.openai.base_url takes"),
    ("openai", {"base_url": "x"}, "services.openai.base_url takes"),
    ("openai", {"base_url": "http://"}, "services.openai.base_url takes"),
    ("openai", {"base_url": "http://u:p@x"}, "services.openai.base_url takes"),
    ("openai", {"base_url": "http://x?"}, "services.openai.base_url takes"),
    ("openai", {"base_url": "http://x/#"}, "services.openai.base_url takes"),
    ("openai", {"base_url": "http://x/../y"}, "services.openai.base_url takes"),
    ("openai", {"base_url": "http://x:0"}, "services.openai.base_url takes"),
    ("openai", {"base_url": "http://x:99999"}, "services.openai.base_url takes"),
    ("openai", {"base_url": "http://x\ty"}, "services.openai.base_url takes"),
    ("openai", {"base_url": "http://ünï"}, "services.openai.base_url takes"),
    ("openai", {"base_url": "http://[::1"}, "services.openai.base_url takes"),
    ("openai", {"base_url": 7}, "services.openai.base_url takes"),
    ("openai", {"vendor": "a b"}, "services.openai.vendor takes"),
    ("openai", {"vendor": "localhost:8000"}, "services.openai.vendor takes"),
    ("openai", {"api_prefix": "v1"}, "services.openai.api_prefix takes"),
    ("openai", {"api_prefix": "/v1?x"}, "services.openai.api_prefix takes"),
    ("openai", {"other_prefixes": "/v2"}, "services.openai.other_prefixes takes"),
    ("openai", {"errors": "cohere"}, "services.openai.errors takes"),
    ("openai", {"credential": "basic"}, "services.openai.credential takes"),
    ("openai", {"credential": {"header": "x", "format": "no secret"}}, "services.openai.credential takes"),
    ("openai", {"credential": {"header": "x\r\ny"}}, "services.openai.credential takes"),
    ("openai", {"credential": {"header": "x", "format": "a\r\n{secret}"}}, "services.openai.credential takes"),
    ("openai", {"credential": []}, "services.openai.credential takes"),
    ("openai", {"default_headers": {"a b": "c"}}, "services.openai.default_headers takes"),
    ("openai", {"default_headers": {"a": "c\n"}}, "services.openai.default_headers takes"),
    ("openai", {"default_headers": []}, "services.openai.default_headers takes"),
    ("openai", {"delay": 1}, "services.openai.delay takes"),
    ("openai", {"routes": []}, "services.openai.routes takes"),
    ("openai", {"routes": {"/x": "chat"}}, "services.openai.routes.'/x' takes"),
    ("openai", {"routes": {"POST x": "chat"}}, "services.openai.routes.'POST x' takes"),
    ("openai", {"routes": {"POST /x": "chat json"}}, "services.openai.routes.'POST /x' takes"),
    ("openai", {"routes": {"POST /x": 1}}, "services.openai.routes.'POST /x' takes"),
    ("openai", {"routes": {"POST /{x}": "chat"}}, "services.openai.routes.'POST /{x}' takes"),
    ("openai", {"routes": {"POST /{engine}": "chat json:model"}}, "services.openai.routes.'POST /{engine}' takes"),
    ("openai", {"routes": {"POST /{engine}/{engine:2}": "chat"}}, "takes one place of the engine"),
    ("openai", {"variants": {"x": {}}}, "services.openai.variants.'x' takes"),
    ("openai", {"variants": {"/x": {"vendor": "v"}}}, "services.openai.variants.'/x' takes"),
    ("openai", {"like": "nobody"}, "services.openai.like takes"),
    ("openai", {"like": "openai"}, "services.openai.like takes"),
    ("dummy", {"base_url": "http://x"}, "services.dummy.base_url takes nothing here"),
    ("dummy", {"delay": -1}, "services.dummy.delay takes"),
    ("dummy", {"delay": "soon"}, "services.dummy.delay takes"),
    ("dummy", {"delay": True}, "services.dummy.delay takes"),
    ("dummy", {"delay": float("nan")}, "services.dummy.delay takes"),
    ("mine", {"base_url": "http://x"}, "services.mine.vendor takes"),
    ("api", {"like": "openai"}, "services: 'api' can't be a name"),
    ("My", {"like": "openai"}, "services: 'My' can't be a name"),
    ("-x", {"like": "openai"}, "services: '-x' can't be a name"),
    ("x/y", {"like": "openai"}, "services: 'x/y' can't be a name"),
    ("mine", [], "services.mine takes a table"),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("name", "table", "message"), BAD, ids=[f"{name}-{table}"[:60] for name, table, _ in BAD])
def test_a_bad_setting_is_refused_with_one_line_that_names_it(name: str, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)) as refusal:
        ServiceCatalog.load({name: table})
    assert "\n" not in str(refusal.value)


def test_services_that_are_like_each_other_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=re.escape("takes the name of another service")):
        ServiceCatalog.load({"a": {"like": "b"}, "b": {"like": "a"}})


def test_no_path_takes_more_than_a_moment() -> None:
    path = b"/v1/models" + b"/a%2Fb" * 2000 + b"/%25"  # backtracking would need longer than the universe has
    assert service().route("GET", path).task == "other"


# The documentation

PROVIDERS = (Path(__file__).parents[1] / "docs" / "providers.md").read_text("utf-8")


def test_the_documentation_lists_every_service_with_its_vendor_and_tasks() -> None:
    tables = tomllib.loads((Path(catalog.__file__).parent / "catalog.toml").read_text("utf-8"))
    rows = {
        found[1]: (found[2], set(re.findall(r"`([^`]+)`", found[3])))
        for found in re.finditer(r"^\| `([^`]+)` \| `([^`]+)` \| .* \| (.*) \|$", PROVIDERS, re.MULTILINE)
    }
    assert rows == {
        name: (table["vendor"], {line.split()[0] for line in table.get("routes", {"": "aisbreaker"}).values()})
        for name, table in tables.items()
    }


def test_the_documentation_lists_every_route_as_its_script_writes_it() -> None:
    assert PROVIDERS.partition(make_routes.HEADING)[2] == make_routes.render()


def test_the_documentations_examples_work() -> None:
    examples = re.findall(r"```toml\n(.*?)```", PROVIDERS, re.DOTALL)
    tables = [tomllib.loads(example)["services"] for example in examples]
    loaded = ServiceCatalog.load({name: table for each in tables for name, table in each.items()})
    vllm, acme = loaded.get("my-vllm"), loaded.get("acme")
    assert vllm is not None
    assert acme is not None
    assert vllm.route("POST", b"/chat/completions").service_id == "chat:llm.internal"
    assert acme.upstream_target(b"/speech/voice-1") == b"/gateway/v2/speech/voice-1"
    assert acme.route("POST", b"/speech/voice-1").engine == "voice-1"
    assert acme.credential.headers_for("s") == [(b"x-acme-key", b"Key s")]
    assert acme.default_headers == ((b"x-acme-version", b"2025-01-01"),)
    assert all(len([line for line in example.splitlines() if line]) <= 10 for example in examples), "ten lines are enough"


def test_the_documentation_names_every_key() -> None:
    with pytest.raises(ConfigurationError, match="is not a setting; it takes") as refusal:
        ServiceCatalog.load({"openai": {"nothing": 1}})
    known = str(refusal.value).partition("it takes ")[2].split(", ")
    assert set(known) <= set(re.findall(r"^\| `([a-z_]+)` \|", PROVIDERS, re.MULTILINE))
