"""The SDKs of services whose key goes elsewhere: ElevenLabs, Deepgram and AssemblyAI, each added with a few lines of TOML."""

import contextlib
import json
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import assemblyai
import httpx
import pytest
from deepgram import DeepgramClient
from deepgram.environment import DeepgramClientEnvironment
from elevenlabs.client import ElevenLabs

from ..support import RecordingUpstream, mint, ok, proxy

# What the SDKs themselves still use.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SERVICES = """
[elevenlabs]
vendor = "elevenlabs.io"
api_prefix = "/v1"
credential = { header = "xi-api-key" }

[deepgram]
vendor = "deepgram.com"
api_prefix = "/v1"
credential = { header = "authorization", format = "Token {secret}" }

[assemblyai]
vendor = "assemblyai.com"
credential = { header = "authorization", format = "{secret}" }
"""
SENT = {
    "elevenlabs": (b"xi-api-key", b"sk-1"),
    "deepgram": (b"authorization", b"Token sk-1"),
    "assemblyai": (b"authorization", b"sk-1"),
}


def elevenlabs(base: str, token: str) -> object:
    with httpx.Client(timeout=10) as http:
        client = ElevenLabs(api_key=token, base_url=f"{base}/elevenlabs", httpx_client=http)
        return b"".join(client.text_to_speech.convert("voice1", text="hello"))


def deepgram(base: str, token: str) -> object:
    url = f"{base}/deepgram"
    environment = DeepgramClientEnvironment(base=url, production=url, agent=url, agent_rest=url)
    with httpx.Client(timeout=10) as http:
        client = DeepgramClient(api_key=token, environment=environment, httpx_client=http)
        response = client.listen.v1.media.transcribe_file(request=b"audio", model="nova-3")
    return response.results.channels[0].alternatives[0].transcript  # type: ignore[union-attr, index]


def transcribe(base: str, token: str) -> object:
    settings = assemblyai.Settings(api_key=token, base_url=f"{base}/assemblyai", http_timeout=10)
    client = assemblyai.Client(settings=settings)
    with contextlib.closing(client.http_client):
        return assemblyai.Transcript(transcript_id="t1", client=client).wait_for_completion().text


CALLS: dict[str, tuple[Callable[[str, str], object], bytes, object]] = {
    "elevenlabs": (elevenlabs, ok(b"some audio"), b"some audio"),
    "deepgram": (
        deepgram,
        ok(
            json.dumps(
                {
                    "metadata": {
                        "request_id": "r",
                        "created": "2026-01-01T00:00:00Z",
                        "duration": 1.0,
                        "channels": 1,
                        "models": [],
                        "model_info": {},
                        "sha256": "x",
                    },
                    "results": {"channels": [{"alternatives": [{"transcript": "hello", "confidence": 1.0, "words": []}]}]},
                }
            ).encode()
        ),
        "hello",
    ),
    "assemblyai": (
        transcribe,
        ok(json.dumps({"id": "t1", "status": "completed", "audio_url": "https://x.example/a", "text": "hello"}).encode()),
        "hello",
    ),
}


@contextlib.contextmanager
def services(upstream: RecordingUpstream) -> Iterator[str]:
    tables: dict[str, dict[str, Any]] = tomllib.loads(SERVICES)
    with proxy(services={name: {**table, "base_url": upstream.url} for name, table in tables.items()}) as base:
        yield base


@pytest.mark.parametrize("name", CALLS)
def test_the_sdk_works_with_base_url_and_key_alone(name: str) -> None:
    """The token is taken out where the SDK puts it, and the service's own key put there."""
    call, answer, expected = CALLS[name]
    with RecordingUpstream(answer) as upstream, services(upstream) as base:
        assert call(base, mint(base, ("", "sk-1"))) == expected
        header, value = SENT[name]
        assert upstream.last.all(header) == [value]
        assert b"aisbreaker_" not in upstream.last.raw


@pytest.mark.parametrize("name", CALLS)
def test_a_key_that_is_refused_is_the_sdks_own_error(name: str) -> None:
    call, answer, _ = CALLS[name]
    with RecordingUpstream(answer) as upstream, services(upstream) as base:
        with pytest.raises(Exception, match=r"401|invalid_token|not valid on this server"):
            call(base, mint(base, ("", "sk-1")) + "x")
        assert not upstream.requests
