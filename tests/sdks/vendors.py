"""The AI services as their SDKs know them: upstreams that answer in the vendors' published shapes, and record what they got."""

import json
import re
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..support import WAIT, Recorded, RecordingUpstream, ok

ANSWERS = Path(__file__).with_name("answers")
TEXT = "Grüße vom Modell"
"""What every recorded answer of a language model says; its streams say it in the `PIECES`."""
PIECES = ["Grüße", " vom", " Modell"]
VECTOR = [0.25, -0.5, 1.0]
AUDIO = b"ID3\x04" + bytes(range(256)) * 8
"""What stands for a sound file: every byte there is."""
FILE_CONTENT = b'{"custom_id": "1"}\n\xff\x00'

# What a vendor tells beside its answers, as far as its SDK hands it on.
_HEADERS = {
    "openai": [b"x-request-id: req_openai", b"openai-processing-ms: 17", b"x-ratelimit-remaining-requests: 4999"],
    "anthropic": [b"request-id: req_anthropic", b"anthropic-ratelimit-requests-remaining: 49"],
    "gemini": [b"server-timing: gfet4t7; dur=17", b"vary: Origin, X-Origin, Referer"],
    "huggingface": [b"x-inference-provider: hf-inference", b"x-request-id: hf-1"],
    "replicate": [b"ratelimit-remaining: 599"],
}

# "METHOD path" as a regular expression: name of the recorded answer. A streamed one is the same name with `.sse`.
_ROUTES = {
    "openai": {
        "POST /v1/chat/completions": "chat.json",
        "POST /v1/responses": "response.json",
        "POST /v1/embeddings": "embeddings.json",
        "POST /v1/images/generations": "image.json",
        "POST /v1/audio/transcriptions": "transcription.json",
        "POST /v1/audio/speech": AUDIO,
        "POST /v1/files": "file.json",
        "GET /v1/files": "files.json",
        "GET /v1/files/file-abc123": "file.json",
        "GET /v1/files/file-abc123/content": FILE_CONTENT,
        "DELETE /v1/files/file-abc123": "file-deleted.json",
        "GET /v1/models": "models.json",
        "GET /v1/models/gpt-4o": "model.json",
    },
    "anthropic": {
        "POST /v1/messages": "message.json",
        "POST /v1/messages/count_tokens": "count.json",
    },
    "gemini": {
        "POST /v1/models/gemini-2.5-flash:generateContent": "generate.json",
        "POST /v1/models/gemini-2.5-flash:streamGenerateContent": "generate.sse",
        "POST /v1/models/gemini-2.5-flash:countTokens": "count.json",
        "POST /v1/models/gemini-embedding-001:embedContent": "embedding.json",
        "POST /v1/models/gemini-embedding-001:batchEmbedContents": "embeddings.json",
        "GET /v1/models": "models.json",
    },
    "huggingface": {
        "POST /v1/chat/completions": "chat.json",
        "POST /hf-inference/models/distilbert/distilbert-base-uncased-finetuned-sst-2-english": "classification.json",
        "POST /hf-inference/models/openai/whisper-large-v3": "transcription.json",
        "POST /hf-inference/models/hexgrad/Kokoro-82M": AUDIO,
    },
    "replicate": {
        "POST /v1/predictions": "prediction.json",
        "POST /v1/models/meta/meta-llama-3-8b-instruct/predictions": "prediction.json",
        "GET /v1/predictions/gm3qorzdhgbfurvjtvhg6dckhu": "prediction.json",
        "GET /v1/models/meta/meta-llama-3-8b-instruct": "model.json",
    },
}


@dataclass(frozen=True)
class Trouble:
    """What an upstream does instead of answering: `silent`, `garbage`, or a status with the vendor's own error."""

    kind: str
    headers: tuple[bytes, ...] = ()


class Vendor(RecordingUpstream):
    """
    One vendor's API.

    Streams come event by event, and the last event only after `release()`: who reads the first event of a stream and then
    releases it has shown that nothing on the way collects.

    Args:
        name: of the service in the catalogue.
        secret: the API key that is sealed into the tokens.
        carrier: the header that the vendor wants it in, and how.
    """

    def __init__(self, name: str, secret: str, carrier: tuple[bytes, str]) -> None:
        self.name = name
        self.secret = secret
        self.carrier = carrier
        self.trouble: Trouble | None = None
        self._released = threading.Event()
        super().__init__(self._answer)

    def reset(self) -> None:
        """Forget what was recorded, and behave."""
        self.requests.clear()
        self.trouble = None
        self._released.clear()

    def release(self) -> None:
        """Let streams come to their end."""
        self._released.set()

    def _control(self, word: str) -> None:
        troubles = {"silent": Trouble("silent"), "garbage": Trouble("garbage"), "rejected": Trouble("401 Unauthorized")}
        if word == "release":
            self.release()
        else:
            self._released.clear()
            self.trouble = troubles.get(word)

    def check(self, *expected: str) -> Recorded:
        """
        Check that these requests have come, and `check_sealed` them; return the last one.

        Args:
            expected: "METHOD target" of each.
        """
        assert self.request_lines == list(expected)
        self.check_sealed()
        return self.last

    @property
    def request_lines(self) -> list[str]:
        """\"METHOD target\" of every request."""
        return [" ".join(request.request_line.decode().split(" ")[:2]) for request in self.requests]

    def check_sealed(self) -> None:
        """Check that every request carries the sealed credential once, as the vendor wants it, and no trace of this server."""
        header, form = self.carrier
        for request in self.requests:
            assert request.all(header) == [form.format(self.secret).encode()]
            assert request.raw.count(self.secret.encode()) == 1
            for other in {b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"cookie"} - {header}:
                assert not request.all(other)
            assert b"aisbreaker" not in request.raw.lower()
            assert request.all(b"host") == [self.url.removeprefix("http://").encode()]

    def _answer(self, request: Recorded, connection: socket.socket) -> bytes | None:
        method, target, _ = request.request_line.decode().split(" ")
        path = unquote(target.partition("?")[0]).replace("/v1beta/", "/v1/")
        if path.startswith("/control/"):  # for clients that are not of this process
            self.requests.remove(request)
            self._control(path.removeprefix("/control/"))
            return ok(b"{}", b"Access-Control-Allow-Origin: *")
        if self.trouble is not None:
            return self._make_trouble(self.trouble, request, connection)
        body = _json(request)
        answer = _ROUTES[self.name].get(f"{method} {path}")
        if answer is None or body.get("model") == "missing":
            return self._error(b"404 Not Found")
        if isinstance(answer, bytes):
            return ok(answer, *_HEADERS[self.name]).replace(b"application/json", b"application/octet-stream", 1)
        if answer.endswith(".sse") or body.get("stream"):
            self._stream(ANSWERS / self.name / answer.replace(".json", ".sse"), connection)
            return None
        if body.get("encoding_format") == "base64":
            answer = answer.replace(".", "-base64.")
        return ok((ANSWERS / self.name / answer).read_bytes(), *_HEADERS[self.name])

    def _stream(self, recording: Path, connection: socket.socket) -> None:
        events = re.findall(rb".+?(?:\r\n\r\n|\n\n)", recording.read_bytes(), re.DOTALL)
        head = [b"HTTP/1.1 200 OK", b"Content-Type: text/event-stream", b"Transfer-Encoding: chunked", *_HEADERS[self.name]]
        connection.sendall(b"\r\n".join(head) + b"\r\n\r\n")
        for number, event in enumerate(events, 1):
            if number == len(events) and not self._released.wait(WAIT):
                raise self.Hangup
            connection.sendall(b"%x\r\n%b\r\n" % (len(event), event))
        connection.sendall(b"0\r\n\r\n")

    def _error(self, status: bytes, *headers: bytes) -> bytes:
        recording = ANSWERS / self.name / f"error-{status[:3].decode()}.json"
        return ok(recording.read_bytes(), *_HEADERS[self.name], *headers, status=status)

    def _make_trouble(self, trouble: Trouble, request: Recorded, connection: socket.socket) -> bytes | None:
        if trouble.kind == "silent":
            connection.recv(1)  # returns when the peer has given up
            raise self.Hangup
        if trouble.kind == "garbage":
            connection.sendall(b"garbage\r\n\r\n")
            raise self.Hangup
        return self._error(trouble.kind.encode(), *trouble.headers)


def _json(request: Recorded) -> dict[str, Any]:
    if not request.all(b"content-type") or not request.all(b"content-type")[0].startswith(b"application/json"):
        return {}
    content: dict[str, Any] = json.loads(request.body or b"{}")
    return content


def make_vendors() -> dict[str, Vendor]:
    """Return an upstream for each vendor, by the name of its service."""
    return {
        "openai": Vendor("openai", "sk-openai-sealed", (b"authorization", "Bearer {}")),
        "anthropic": Vendor("anthropic", "sk-ant-sealed", (b"x-api-key", "{}")),
        "gemini": Vendor("gemini", "AIza-sealed", (b"x-goog-api-key", "{}")),
        "huggingface": Vendor("huggingface", "hf_sealed", (b"authorization", "Bearer {}")),
        "replicate": Vendor("replicate", "r8_sealed", (b"authorization", "Bearer {}")),
    }


SECRETS = {
    "openai": "*:openai.com",
    "anthropic": "*:anthropic.com",
    "gemini": "*:google.com",
    "huggingface": "*:huggingface.co",
    "replicate": "*:replicate.com",
}
"""Patterns of serviceIds that each service's secret is sealed under."""
