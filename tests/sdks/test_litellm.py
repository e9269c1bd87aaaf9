"""LiteLLM as a client."""

from typing import Any

import litellm
import pytest

from .conftest import Site
from .vendors import TEXT, VECTOR, Vendor

pytestmark = pytest.mark.filterwarnings("ignore:Item '.*' on TypedDict class:UserWarning")  # of models that LiteLLM declares
MESSAGES = [{"role": "user", "content": "hi"}]
GEMINI = "/v1beta/models/gemini-2.5-flash"
CASES = [
    ("openai/gpt-4o", "openai", "/openai/v1", "POST /v1/chat/completions", None),
    ("anthropic/claude-sonnet-5", "anthropic", "/anthropic", "POST /v1/messages", None),
    (
        "gemini/gemini-2.5-flash",
        "gemini",
        "/gemini/v1beta",
        f"POST {GEMINI}:generateContent",
        f"POST {GEMINI}:streamGenerateContent?alt=sse",
    ),
]
each = pytest.mark.parametrize(("model", "name", "path", "request_line", "streamed"), CASES, ids=[case[1] for case in CASES])


def arguments(site: Site, model: str, path: str) -> dict[str, Any]:
    return {"model": model, "messages": MESSAGES, "api_base": site.base + path, "api_key": site.token}


@each
def test_completion(site: Site, model: str, name: str, path: str, request_line: str, streamed: str | None) -> None:
    assert litellm.completion(**arguments(site, model, path)).choices[0].message.content == TEXT
    site.vendors[name].check(request_line)


@each
def test_completion_streamed(site: Site, model: str, name: str, path: str, request_line: str, streamed: str | None) -> None:
    vendor, text = site.vendors[name], ""
    for chunk in litellm.completion(**arguments(site, model, path), stream=True):
        vendor.release()
        text += chunk.choices[0].delta.content or ""
    assert text == TEXT
    vendor.check(streamed or request_line)


@each
async def test_async_completion(site: Site, model: str, name: str, path: str, request_line: str, streamed: str | None) -> None:
    vendor, text = site.vendors[name], ""
    assert (await litellm.acompletion(**arguments(site, model, path))).choices[0].message.content == TEXT
    async for chunk in await litellm.acompletion(**arguments(site, model, path), stream=True):
        vendor.release()
        text += chunk.choices[0].delta.content or ""
    assert text == TEXT
    await litellm.close_litellm_async_clients()
    vendor.check(request_line, streamed or request_line)


def test_embedding(site: Site) -> None:
    vendor: Vendor = site.vendors["openai"]
    answer = litellm.embedding(
        model="openai/text-embedding-3-small", input=["hi"], api_base=f"{site.base}/openai/v1", api_key=site.token
    )
    assert answer.data[0]["embedding"] == VECTOR
    vendor.check("POST /v1/embeddings")
