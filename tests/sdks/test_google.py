"""The Google GenAI SDK, sync and async."""

from collections.abc import Iterator

import pytest
from google import genai
from google.genai import errors, types

from .conftest import Site
from .vendors import PIECES, TEXT, VECTOR, Vendor

MODEL = "gemini-2.5-flash"
GENERATE = f"POST /v1/models/{MODEL}:generateContent"
STREAM = f"POST /v1/models/{MODEL}:streamGenerateContent?alt=sse"
EMBED = "POST /v1/models/gemini-embedding-001:batchEmbedContents"

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")  # of the SDK's own


@pytest.fixture
def vendor(site: Site) -> Vendor:
    return site.vendors["gemini"]


@pytest.fixture
def client(site: Site) -> Iterator[genai.Client]:
    with genai.Client(api_key=site.token, http_options=types.HttpOptions(base_url=f"{site.base}/gemini")) as client:
        yield client


def test_generate_content(client: genai.Client, vendor: Vendor) -> None:
    answer = client.models.generate_content(model=MODEL, contents="hi")
    assert answer.text == TEXT
    assert answer.usage_metadata.total_token_count == 7
    vendor.check(GENERATE)


def test_generate_content_streamed(client: genai.Client, vendor: Vendor) -> None:
    pieces = []
    for piece in client.models.generate_content_stream(model=MODEL, contents="hi"):
        vendor.release()
        pieces.append(piece.text)
    assert pieces == [*PIECES, ""]
    vendor.check(STREAM)


def test_embeddings(client: genai.Client, vendor: Vendor) -> None:
    assert client.models.embed_content(model="gemini-embedding-001", contents="hi").embeddings[0].values == VECTOR
    vendor.check(EMBED)


def test_count_tokens_and_models(client: genai.Client, vendor: Vendor) -> None:
    assert client.models.count_tokens(model=MODEL, contents="hi").total_tokens == 4
    assert [model.name for model in client.models.list(config={"query_base": True})] == [f"models/{MODEL}"]
    vendor.check(f"POST /v1/models/{MODEL}:countTokens", "GET /v1/models")


def test_the_environment_is_configuration_enough(site: Site, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", f"{site.base}/gemini")
    monkeypatch.setenv("GEMINI_API_KEY", site.token)
    with genai.Client() as client:
        assert client.models.generate_content(model=MODEL, contents="hi").text == TEXT
    vendor.check(GENERATE)


def test_the_vendors_own_error_arrives(client: genai.Client, vendor: Vendor) -> None:
    with pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model="missing", contents="hi")
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")
    vendor.check("POST /v1/models/missing:generateContent")


async def test_async(site: Site, vendor: Vendor) -> None:
    options = types.HttpOptions(base_url=f"{site.base}/gemini")
    async with genai.Client(api_key=site.token, http_options=options).aio as client:
        assert (await client.models.generate_content(model=MODEL, contents="hi")).text == TEXT
        pieces = []
        async for piece in await client.models.generate_content_stream(model=MODEL, contents="hi"):
            vendor.release()
            pieces.append(piece.text)
        embeddings = (await client.models.embed_content(model="gemini-embedding-001", contents="hi")).embeddings
    assert pieces == [*PIECES, ""]
    assert embeddings[0].values == VECTOR
    vendor.check(GENERATE, STREAM, EMBED)
