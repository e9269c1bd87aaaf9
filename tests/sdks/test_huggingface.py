"""The inference clients of huggingface_hub."""

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from .conftest import Site
from .vendors import AUDIO, PIECES, TEXT, Vendor

MESSAGES = [{"role": "user", "content": "hi"}]
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
CLASSIFIER = "distilbert/distilbert-base-uncased-finetuned-sst-2-english"


@pytest.fixture
def vendor(site: Site) -> Vendor:
    return site.vendors["huggingface"]


@pytest.fixture
def client(site: Site) -> InferenceClient:
    return InferenceClient(base_url=f"{site.base}/huggingface/v1", api_key=site.token)


def model_url(site: Site, model: str) -> str:
    return f"{site.base}/huggingface/hf-inference/models/{model}"


def test_chat_completion(client: InferenceClient, vendor: Vendor) -> None:
    assert client.chat.completions.create(model=MODEL, messages=MESSAGES).choices[0].message.content == TEXT
    assert MODEL.encode() in vendor.check("POST /v1/chat/completions").body


def test_chat_completion_streamed(client: InferenceClient, vendor: Vendor) -> None:
    pieces = []
    for chunk in client.chat_completion(MESSAGES, model=MODEL, stream=True):
        vendor.release()
        pieces.append(chunk.choices[0].delta.content)
    assert pieces == [*PIECES, ""]
    vendor.check("POST /v1/chat/completions")


def test_a_models_own_task(site: Site, vendor: Vendor) -> None:
    client = InferenceClient(model=model_url(site, CLASSIFIER), api_key=site.token)
    assert client.text_classification("I like you")[0].label == "POSITIVE"
    vendor.check(f"POST /hf-inference/models/{CLASSIFIER}")


def test_bytes_up_and_down(site: Site, vendor: Vendor) -> None:
    client = InferenceClient(api_key=site.token)
    transcription = client.automatic_speech_recognition(AUDIO, model=model_url(site, "openai/whisper-large-v3"))
    assert transcription.text == TEXT
    assert vendor.last.body == AUDIO
    assert client.text_to_speech("hi", model=model_url(site, "hexgrad/Kokoro-82M")) == AUDIO
    vendor.check("POST /hf-inference/models/openai/whisper-large-v3", "POST /hf-inference/models/hexgrad/Kokoro-82M")


def test_the_vendors_own_error_arrives(client: InferenceClient, vendor: Vendor) -> None:
    with pytest.raises(HfHubHTTPError, match="Model missing/model does not exist") as caught:
        client.chat_completion(MESSAGES, model="missing")
    assert caught.value.response.status_code == 404
    vendor.check("POST /v1/chat/completions")


async def test_async(site: Site, vendor: Vendor) -> None:
    async with AsyncInferenceClient(base_url=f"{site.base}/huggingface/v1", api_key=site.token) as client:
        assert (await client.chat_completion(MESSAGES, model=MODEL)).choices[0].message.content == TEXT
        pieces = []
        async for chunk in await client.chat_completion(MESSAGES, model=MODEL, stream=True):
            vendor.release()
            pieces.append(chunk.choices[0].delta.content)
    assert pieces == [*PIECES, ""]
    vendor.check("POST /v1/chat/completions", "POST /v1/chat/completions")
