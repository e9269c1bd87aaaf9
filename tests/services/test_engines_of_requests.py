"""Tokens that name engines, over real sockets: whatever form a request has, its engine is what the upstream will run."""

import base64
import gzip
import json
import os
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest

import aisbreaker_mw.services.engine_reader
from aisbreaker_mw.services.engines import LARGE_BODY_BYTES, read_models

from ..product.test_memory import Sink, resident
from ..support import KEY, RecordingUpstream, bearer, mint, wait_until

CHAT = "/openai/v1/chat/completions"


MINI = "chat:openai.com/gpt-4o-mini"


SCAN_LIMIT = 32 << 20


class Client:
    """Asks with a token for two engines of each task, with a secret of its own for each."""

    def __init__(self, base: str, upstream: RecordingUpstream) -> None:
        tasks = ("chat", "speech-to-text", "text-to-image", "image-to-image", "embeddings")
        vendors = ("openai.com", "google.com", "stability.ai")
        secrets = [
            (f"{task}:{vendor}/{engine}", f"sk-{engine}")
            for task in tasks
            for vendor in vendors
            for engine in ("gpt-4o-mini", "o1")
        ]
        self.base = base
        self.upstream = upstream
        self.token = mint(base, *secrets[:60])

    def ask(self, path: str = CHAT, **options: Any) -> tuple[int, str | None]:
        """Return the status, and which secret went upstream."""
        before = len(self.upstream.requests)
        headers = {**bearer(self.token), **options.pop("headers", {})}
        response = httpx.post(self.base + path, headers=headers, timeout=60, **options)
        self.text = response.text
        if len(self.upstream.requests) == before:
            return response.status_code, None
        request = self.upstream.last
        return response.status_code, (request.all(b"authorization") or request.all(b"x-goog-api-key"))[0].decode()

    def ask_json(self, text: bytes | str, **headers: str) -> tuple[int, str | None]:
        return self.ask(content=text, headers={"content-type": "application/json", **headers})


SENT_AS_MINI = (200, "Bearer sk-gpt-4o-mini")


REFUSED = (403, None)


AMBIGUOUS = (400, None)


@pytest.fixture(scope="module")
def caller(base: str, upstream: RecordingUpstream) -> Client:
    return Client(base, upstream)


# Where the engine stands


def test_json(caller: Client) -> None:
    assert caller.ask(json={"model": "gpt-4o-mini"}) == SENT_AS_MINI
    assert caller.ask(json={"model": "o1"}) == (200, "Bearer sk-o1")
    assert caller.ask(json={"model": "gpt-4o"}) == REFUSED
    assert "chat:openai.com/gpt-4o" in caller.text
    assert caller.ask(json={}) == REFUSED
    assert caller.ask(content=b"") == REFUSED


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_chunked_body_travels_as_well(caller: Client, size: int) -> None:
    text = b'{"model":"o1","messages":["' + b"a" * size + b'"]}'
    headers = {"content-type": "application/json"}
    assert caller.ask(content=iter([text[:20], text[20:]]), headers=headers) == (200, "Bearer sk-o1")
    assert caller.upstream.last.body == text


def test_the_type_that_a_body_was_read_by_travels(caller: Client) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded", "connection": "content-type"}
    assert caller.ask(content=b'{"a":"&model=gpt-4o-mini&"}', headers=headers) == SENT_AS_MINI
    assert caller.upstream.last.all(b"content-type") == [b"application/x-www-form-urlencoded"]
    assert caller.ask(content=b'{"model":"o1","a":"&model=gpt-4o-mini&"}', headers=headers) == AMBIGUOUS


def test_multipart(caller: Client) -> None:
    path = "/openai/v1/audio/transcriptions"
    audio = {"file": ("a.wav", os.urandom(1000), "audio/wav")}
    assert caller.ask(path, data={"model": "gpt-4o-mini"}, files=audio) == SENT_AS_MINI
    assert audio["file"][1] in caller.upstream.last.body
    assert caller.ask(path, data={"model": "whisper-1"}, files=audio) == REFUSED
    assert caller.ask(path, data={"model": ["gpt-4o-mini", "o1"]}, files=audio) == AMBIGUOUS
    assert caller.ask(path, files=audio) == REFUSED
    assert caller.ask(path, files={"model": ("m", b"gpt-4o-mini"), **audio}) == AMBIGUOUS


def test_a_large_multipart_upload(caller: Client) -> None:
    audio = os.urandom(20 << 20)
    files = {"file": ("a.wav", audio, "audio/wav")}
    assert caller.ask("/openai/v1/audio/transcriptions", data={"model": "gpt-4o-mini"}, files=files) == SENT_AS_MINI
    assert audio in caller.upstream.last.body


def test_path(caller: Client) -> None:
    path = "/gemini/v1beta/models/{}:generateContent"
    assert caller.ask(path.format("gpt-4o-mini"), json={}) == (200, "sk-gpt-4o-mini")
    assert caller.ask(path.format("gpt-4o-mini"), json={"model": "models/gpt-4o-mini"}) == (200, "sk-gpt-4o-mini")
    assert caller.ask(path.format("gpt-4o-mini"), json={"model": "o1"}) == REFUSED
    assert caller.ask(path.format("gemini-2.5-pro"), json={"model": "o1"}) == REFUSED
    assert caller.ask(path.format("gpt-4o%2Dmini"), json={}) == REFUSED


# Compressed


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(caller: Client, encoding: str, compress: Any) -> None:
    good, bad = (compress(json.dumps({"x": "y" * 1000, "model": model}).encode()) for model in ("gpt-4o-mini", "gpt-4o"))
    assert caller.ask_json(good, **{"content-encoding": encoding}) == SENT_AS_MINI
    assert caller.upstream.last.body == good, "what is sent is what came"
    assert caller.ask_json(bad, **{"content-encoding": encoding}) == REFUSED
    assert caller.ask_json(good[:-3], **{"content-encoding": encoding}) == AMBIGUOUS
    assert caller.ask_json(b'{"model":"gpt-4o-mini"}', **{"content-encoding": encoding}) == AMBIGUOUS
    assert caller.ask_json(good + good, **{"content-encoding": encoding}) == AMBIGUOUS


def test_what_cannot_be_decompressed_is_refused(caller: Client) -> None:
    assert caller.ask_json(b"x", **{"content-encoding": "br"}) == AMBIGUOUS
    assert "gzip" in caller.text


def test_a_compressed_body_is_bounded_by_what_it_decompresses_to(caller: Client) -> None:
    bomb = gzip.compress(b'{"model":"gpt-4o-mini","x":"' + b"y" * SCAN_LIMIT + b'"}', 1)
    assert len(bomb) < SCAN_LIMIT / 50
    assert caller.ask_json(bomb, **{"content-encoding": "gzip"}) == (413, None)
    assert "model" in caller.text


# Large


def vision(megabytes: int, **members: Any) -> bytes:
    """A chat request with an image of that size."""
    image = base64.b64encode(os.urandom(megabytes * 750_000)).decode()
    content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}]
    return json.dumps({"messages": [{"role": "user", "content": content}], **members}).encode()


def test_a_vision_request_of_20_megabytes(caller: Client) -> None:
    body = vision(20, model="gpt-4o-mini")
    assert caller.ask_json(body) == SENT_AS_MINI
    assert caller.upstream.last.body == body
    assert caller.ask_json(body.replace(b"gpt-4o-mini", b"gpt-4o")) == REFUSED


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_no_second_copy_of_it_is_kept() -> None:
    size = 20 << 20
    with Sink() as upstream:
        environment = {
            **os.environ,
            "AISBREAKER_KEY": KEY,
            "AISBREAKER_SERVICES__OPENAI__BASE_URL": upstream.url,
            "AISBREAKER_LOG_LEVEL": "WARNING",
            # Large blocks come and go as such. Otherwise glibc begins to take them from its heap, where some grow by a copy
            # of all that is there: how much memory that takes for a moment is a matter of chance.
            "MALLOC_MMAP_THRESHOLD_": "131072",
        }
        code = (
            "import sys, uvicorn, socket; from aisbreaker_mw import create_app; "
            "listener = socket.create_server(('127.0.0.1', 0)); print(listener.getsockname()[1], flush=True); "
            "uvicorn.Server(uvicorn.Config(create_app(), log_config=None)).run(sockets=[listener])"
        )
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                base = f"http://127.0.0.1:{int(process.stdout.readline())}"
                token = mint(base, (MINI, "sk"))

                def send(body: bytes) -> None:
                    headers = {**bearer(token), "content-type": "application/json"}
                    assert httpx.post(base + CHAT, content=body, headers=headers, timeout=60).status_code == 200

                send(vision(1, model="gpt-4o-mini"))
                before = resident(process.pid)
                for _ in range(2):
                    send(vision(20, model="gpt-4o-mini"))
                assert resident(process.pid) - before < 1.9 * size
            finally:
                process.terminate()
        wait_until(lambda: len(upstream.requests) == 3)


def test_the_model_may_come_after_a_megabyte_of_messages(caller: Client) -> None:
    messages = [{"role": "user", "content": f"message {number}"} for number in range(30_000)]
    for model, expected in (("gpt-4o-mini", SENT_AS_MINI), ("gpt-4o", REFUSED)):
        body = json.dumps({"messages": messages, "model": model}).encode()
        assert len(body) > 1 << 20
        assert caller.ask_json(body) == expected


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_beyond_the_bound_is_413_that_says_why(caller: Client, declared: bool) -> None:
    body = vision(34, model="gpt-4o-mini")
    assert len(body) > SCAN_LIMIT
    content = body if declared else iter([body[: 1 << 20], body[1 << 20 :]])
    status, sent = caller.ask(content=content, headers={"content-type": "application/json"})
    assert (status, sent) == (413, None)
    assert json.loads(caller.text)["error"]["message"] == aisbreaker_mw.services.engine_reader._TOO_LARGE


def test_tokens_without_engines_have_no_such_bound(caller: Client) -> None:
    caller = Client(caller.base, caller.upstream)
    caller.token = mint(caller.base, ("chat:openai.com", "sk-any"))
    assert caller.ask_json(vision(34)) == (200, "Bearer sk-any")


# What two readers could read in two ways

AMBIGUITIES = [
    '{"model":"gpt-4o-mini","model":"gpt-4o"}',
    '{"model":"gpt-4o-mini","mod\\u0065l":"gpt-4o"}',
    '{"model":"gpt-4o-mini","Model":"gpt-4o"}',
    '{"model":"gpt-4o-mini","models":["gpt-4o"]}',
    '{"model":"gpt-4o-mini"}{"model":"gpt-4o"}',
    '{"model":["gpt-4o-mini"]}',
    '[{"model":"gpt-4o-mini"}]',
    "{'model':'gpt-4o-mini'}",
]


UNAMBIGUOUS = [
    '{"messages":[{"model":"gpt-4o"}],"model":"gpt-4o-mini"}',
    '{"model":"gpt-4o-mini","metadata":{"model":"gpt-4o","x":{"model":"o1","model":"o1"}}}',
    '{"content":"\\"model\\":\\"gpt-4o\\"","model":"gpt-4o-mini"}',
    '{"model":"gpt-4o-min\\u0069"}',
]


LONG = json.dumps("x" * LARGE_BODY_BYTES)


def padded(text: str, where: str) -> str:
    """Return the same text as it is, or with a long string before or after everything else."""
    if where == "before":
        return text.replace("{", f'{{"pad":{LONG},', 1)
    if where == "after":
        end = text.rindex("}")
        return f'{text[:end]},"pad":{LONG}{text[end:]}'
    return text


@pytest.mark.parametrize("where", ["alone", "before", "after"])
@pytest.mark.parametrize("text", AMBIGUITIES)
def test_ambiguous_bodies_are_refused(caller: Client, text: str, where: str) -> None:
    assert caller.ask_json(padded(text, where)) == AMBIGUOUS


@pytest.mark.parametrize("where", ["alone", "before", "after"])
@pytest.mark.parametrize("text", UNAMBIGUOUS)
def test_a_model_in_the_callers_own_data_does_not_count(caller: Client, text: str, where: str) -> None:
    assert caller.ask_json(padded(text, where)) == SENT_AS_MINI


# On the event loop


@pytest.mark.parametrize(
    ("size", "encoding", "in_loop"),
    [(100, "", True), (LARGE_BODY_BYTES + 1, "", False), (100, "gzip", False)],
    ids=["small", "large", "compressed"],
)
def test_large_bodies_are_read_in_a_thread(
    caller: Client, monkeypatch: pytest.MonkeyPatch, size: int, encoding: str, in_loop: bool
) -> None:
    names: list[str] = []

    def read(*arguments: Any, **options: Any) -> Any:
        names.append(threading.current_thread().name)
        return read_models(*arguments, **options)

    monkeypatch.setattr(aisbreaker_mw.services.engine_reader, "read_models", read)
    body = json.dumps({"x": "y" * size, "model": "gpt-4o-mini"}).encode()
    headers = {"content-encoding": encoding} if encoding else {}
    assert caller.ask_json(gzip.compress(body) if encoding else body, **headers) == SENT_AS_MINI
    assert len(names) == 1
    assert names[0].startswith("asyncio_") is not in_loop


@pytest.mark.parametrize(
    "query", ["model=o3", "a=1&model=", "%6dodel=o3", "a=1;model=o3", "Model=o3", "models=o3", "model%00=o3"]
)
def test_a_query_names_no_model_beside_the_body(caller: Client, query: str) -> None:
    assert caller.ask(f"{CHAT}?{query}", json={"model": "o1"}) == (400, None)
    assert caller.ask(f"{CHAT}?n=model", json={"model": "o1"}) == (200, "Bearer sk-o1")
