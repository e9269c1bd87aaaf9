"""The built-in catalogue, and what the configuration may change."""

import re
from typing import Any

import pytest

from aisbreaker_mw.exceptions import ConfigurationError
from aisbreaker_mw.services.catalog import ServiceCatalog
from aisbreaker_mw.services.patterns import matches, validate_pattern

from .support import CATALOG, service

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
    found = service(name).resolve(method, path.encode())[0]
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
    found = service(name).resolve("POST", path.encode())[0]
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
    assert mine.resolve("POST", b"/chat/completions")[0].service_id == "chat:llm.internal"
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
    assert mine.resolve("POST", b"/files/a/score")[0].service_id == "classification:openai.com"
    assert mine.resolve("POST", b"/files/a")[0].task == "files"
    assert mine.resolve("POST", b"/completions")[0].task == "other"
    assert mine.resolve("PATCH", b"/v1/x/m")[0].engine == "m"


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
