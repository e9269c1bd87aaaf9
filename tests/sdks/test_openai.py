"""The OpenAI SDK, sync and async."""

import io
from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from .conftest import Site
from .vendors import AUDIO, FILE_CONTENT, PIECES, TEXT, VECTOR, Vendor

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def vendor(site: Site) -> Vendor:
    return site.vendors["openai"]


@pytest.fixture
def client(site: Site) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{site.base}/openai/v1", api_key=site.token) as client:
        yield client


@pytest.fixture
async def async_client(site: Site) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{site.base}/openai/v1", api_key=site.token) as client:
        yield client


def test_chat_completion(client: openai.OpenAI, vendor: Vendor) -> None:
    completion = client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert completion.choices[0].message.content == TEXT
    assert completion.usage.total_tokens == 12
    assert completion._request_id == "req_openai"
    assert b'"gpt-4o"' in vendor.check("POST /v1/chat/completions").body


def test_chat_completion_streamed(client: openai.OpenAI, vendor: Vendor) -> None:
    pieces = []
    with client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True) as stream:
        for chunk in stream:
            vendor.release()
            pieces.append(chunk.choices[0].delta.content)
    assert pieces == ["", *PIECES, None]
    vendor.check("POST /v1/chat/completions")


def test_the_base_url_without_the_version_works_too(site: Site, vendor: Vendor) -> None:
    with openai.OpenAI(base_url=f"{site.base}/openai", api_key=site.token) as client:
        assert client.chat.completions.create(model="gpt-4o", messages=MESSAGES).choices[0].message.content == TEXT
    vendor.check("POST /v1/chat/completions")


def test_the_environment_is_configuration_enough(site: Site, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{site.base}/openai/v1")
    monkeypatch.setenv("OPENAI_API_KEY", site.token)
    with openai.OpenAI() as client:
        assert client.models.retrieve("gpt-4o").id == "gpt-4o"
    vendor.check("GET /v1/models/gpt-4o")


def test_response(client: openai.OpenAI, vendor: Vendor) -> None:
    assert client.responses.create(model="gpt-4o", input="hi").output_text == TEXT
    vendor.check("POST /v1/responses")


def test_response_streamed(client: openai.OpenAI, vendor: Vendor) -> None:
    pieces = []
    with client.responses.stream(model="gpt-4o", input="hi") as stream:
        for event in stream:
            vendor.release()
            if event.type == "response.output_text.delta":
                pieces.append(event.delta)
        assert stream.get_final_response().output_text == TEXT
    assert pieces == PIECES
    vendor.check("POST /v1/responses")


def test_embeddings(client: openai.OpenAI, vendor: Vendor) -> None:
    """The SDK asks for base64 by itself, and decodes it."""
    assert client.embeddings.create(model="text-embedding-3-small", input="hi").data[0].embedding == VECTOR
    assert b'"base64"' in vendor.check("POST /v1/embeddings").body


def test_image(client: openai.OpenAI, vendor: Vendor) -> None:
    assert client.images.generate(model="gpt-image-1", prompt="a cat").data[0].b64_json.startswith("iVBORw0KGgo")
    vendor.check("POST /v1/images/generations")


def test_transcription_of_an_upload(client: openai.OpenAI, vendor: Vendor) -> None:
    assert client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.mp3", io.BytesIO(AUDIO))).text == TEXT
    request = vendor.check("POST /v1/audio/transcriptions")
    assert request.all(b"content-type")[0].startswith(b"multipart/form-data; boundary=")
    assert request.body.count(AUDIO) == 1
    assert b'filename="a.mp3"' in request.body
    assert b"gpt-4o-transcribe" in request.body


def test_speech_download(client: openai.OpenAI, vendor: Vendor) -> None:
    with client.audio.speech.with_streaming_response.create(model="gpt-4o-mini-tts", voice="alloy", input="hi") as response:
        assert b"".join(response.iter_bytes()) == AUDIO
    assert client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="hi").content == AUDIO
    vendor.check("POST /v1/audio/speech", "POST /v1/audio/speech")


def test_files(client: openai.OpenAI, vendor: Vendor) -> None:
    assert client.files.create(file=("lines.jsonl", FILE_CONTENT), purpose="batch").id == "file-abc123"
    assert FILE_CONTENT in vendor.last.body
    assert [file.filename for file in client.files.list()] == ["lines.jsonl"]
    assert client.files.retrieve("file-abc123").purpose == "batch"
    assert client.files.content("file-abc123").content == FILE_CONTENT
    assert client.files.delete("file-abc123").deleted
    vendor.check(
        "POST /v1/files",
        "GET /v1/files",
        "GET /v1/files/file-abc123",
        "GET /v1/files/file-abc123/content",
        "DELETE /v1/files/file-abc123",
    )


def test_models(client: openai.OpenAI, vendor: Vendor) -> None:
    assert [model.id for model in client.models.list()] == ["gpt-4o"]
    assert client.models.retrieve("gpt-4o").owned_by == "system"
    vendor.check("GET /v1/models", "GET /v1/models/gpt-4o")


def test_the_vendors_own_error_and_headers_arrive(client: openai.OpenAI, vendor: Vendor) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="missing", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert caught.value.request_id == "req_openai"
    raw = client.models.with_raw_response.list()
    assert raw.headers["x-ratelimit-remaining-requests"] == "4999"
    vendor.check("POST /v1/chat/completions", "GET /v1/models")


async def test_async_chat_completion(async_client: openai.AsyncOpenAI, vendor: Vendor) -> None:
    completion = await async_client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert completion.choices[0].message.content == TEXT
    vendor.check("POST /v1/chat/completions")


async def test_async_streams(async_client: openai.AsyncOpenAI, vendor: Vendor) -> None:
    pieces = []
    async with async_client.chat.completions.stream(model="gpt-4o", messages=MESSAGES) as stream:
        async for event in stream:
            vendor.release()
            if event.type == "content.delta":
                pieces.append(event.delta)
    assert pieces == ["", *PIECES]
    async with async_client.responses.stream(model="gpt-4o", input="hi") as events:
        assert (await events.get_final_response()).output_text == TEXT
    vendor.check("POST /v1/chat/completions", "POST /v1/responses")


async def test_async_everything_else(async_client: openai.AsyncOpenAI, vendor: Vendor) -> None:
    client = async_client
    assert (await client.responses.create(model="gpt-4o", input="hi")).output_text == TEXT
    assert (await client.embeddings.create(model="text-embedding-3-small", input="hi")).data[0].embedding == VECTOR
    assert (await client.images.generate(model="gpt-image-1", prompt="a cat")).data[0].b64_json
    assert (await client.audio.transcriptions.create(model="whisper-1", file=("a.mp3", AUDIO))).text == TEXT
    assert vendor.last.body.count(AUDIO) == 1
    assert (await client.audio.speech.create(model="tts-1", voice="alloy", input="hi")).content == AUDIO
    assert (await client.files.create(file=("lines.jsonl", FILE_CONTENT), purpose="batch")).id == "file-abc123"
    assert [model.id async for model in client.models.list()] == ["gpt-4o"]
    vendor.check(
        "POST /v1/responses",
        "POST /v1/embeddings",
        "POST /v1/images/generations",
        "POST /v1/audio/transcriptions",
        "POST /v1/audio/speech",
        "POST /v1/files",
        "GET /v1/models",
    )
