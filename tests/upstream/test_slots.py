"""No client takes the others' connections to a service: fair shares, turns, slow uploads, and clients that do not read."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from aisbreaker_mw import create_app
from aisbreaker_mw.upstream import watch
from aisbreaker_mw.upstream.watch import DISCONNECT_CHECK

from ..support import (
    WAIT,
    Recorded,
    RecordingUpstream,
    bearer,
    connect,
    mint,
    ok,
    proxy,
    serve,
    settings,
    wait_until,
)

CHAT = "/openai/v1/chat/completions"
OTHER = "192.0.2.99"


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Ends the waits of `holding`."""
    event = threading.Event()
    yield event
    event.set()


def holding(release: threading.Event) -> Callable[[Recorded, socket.socket], bytes]:
    """A script that has each request to `held` wait."""

    def script(request: Recorded, connection: socket.socket) -> bytes:
        if request.target.endswith(b"held"):
            assert release.wait(WAIT)
        return ok()

    return script


@contextlib.contextmanager
def through(script: Any, slots: int, **upstream: Any) -> Iterator[tuple[str, RecordingUpstream]]:
    """Run a proxy that believes in X-Forwarded-For, with so many connections to its service."""
    limits = {"max_connections": slots, **upstream}
    with (
        RecordingUpstream(script) as recording,
        proxy(services=open_to_all(recording.url), upstream=limits, trusted_proxies=["127.0.0.1"]) as base,
    ):
        yield base, recording


def open_to_all(url: str) -> dict[str, dict[str, str]]:
    """A service for clients that, by their headers, are not on this machine."""
    return {"openai": {"base_url": url, "strangers": "allow"}}


def head(token: str, client: str, path: str = "/openai/v1/held", method: str = "GET", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {token}", f"X-Forwarded-For: {client}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode()


def ask(base: str, token: str, client: str, path: str = CHAT) -> int:
    return httpx.get(base + path, headers={**bearer(token), "x-forwarded-for": client}, timeout=WAIT).status_code


@pytest.mark.parametrize("one", ["client", "token"])
def test_one_client_or_token_with_many_slow_requests_leaves_slots_to_others(release: threading.Event, one: str) -> None:
    with through(holding(release), 10, pool_timeout="300ms") as (base, upstream), contextlib.ExitStack() as stack:
        theirs, other = mint(base, ("", "sk-theirs")), mint(base, ("", "sk-other"))
        for number in range(15):
            connection = stack.enter_context(connect(base))
            by_client = one == "client"
            token = mint(base, ("", "sk-theirs")) if by_client else theirs
            connection.sendall(head(token, "192.0.2.1" if by_client else f"192.0.2.{number}"))
        wait_until(lambda: len(upstream.requests) == 8, "80 % of the slots taken")
        assert ask(base, theirs if one == "token" else other, "192.0.2.1") == 503
        assert ask(base, other, OTHER) == 200
        assert len([request for request in upstream.requests if request.target.endswith(b"held")]) == 8


def test_the_last_slot_goes_only_to_those_that_hold_none(release: threading.Event) -> None:
    with through(holding(release), 2, pool_timeout="100ms") as (base, upstream), connect(base) as first:
        token, other = mint(base, ("", "sk-one")), mint(base, ("", "sk-other"))
        first.sendall(head(token, "192.0.2.1"))
        wait_until(lambda: upstream.requests)
        assert ask(base, other, "192.0.2.1") == 503
        assert ask(base, token, OTHER) == 503
        assert ask(base, other, OTHER) == 200


def test_waiting_clients_have_turns(release: threading.Event) -> None:
    with through(holding(release), 1, pool_timeout="10s") as (base, upstream), connect(base) as first:
        token, other = mint(base, ("", "sk-one")), mint(base, ("", "sk-other"))
        first.sendall(head(token, OTHER))
        wait_until(lambda: upstream.requests)
        with contextlib.ExitStack() as stack:
            for client in ["192.0.2.1"] * 5 + ["192.0.2.2"]:
                waiting = stack.enter_context(connect(base))
                waiting.sendall(head(other, client, f"/openai/v1/{client}"))
                time.sleep(0.02)  # they arrive in this order
            release.set()
            wait_until(lambda: len(upstream.requests) == 7)
        order = [request.target.rpartition(b".")[2] for request in upstream.requests[1:]]
    assert order == [b"1", b"2", b"1", b"1", b"1", b"1"]


def test_slow_uploads_give_up_their_slots_when_others_wait(release: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "UPLOAD_WINDOW", 2 * DISCONNECT_CHECK)
    with through(holding(release), 20, pool_timeout="8s") as (base, _), contextlib.ExitStack() as stack:
        uploads = [stack.enter_context(connect(base)) for _ in range(20)]
        for number, upload in enumerate(uploads):
            token = mint(base, ("", "sk-theirs"))
            upload.sendall(head(token, f"192.0.2.{number}", CHAT, "POST", "Content-Length: 1000000") + b"x" * 100)
        time.sleep(0.1)  # each has its connection
        assert ask(base, mint(base, ("", "sk-other")), OTHER) == 200
        for upload in uploads:
            assert upload.recv(12) == b"HTTP/1.1 408"


def test_a_slow_upload_goes_on_while_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "UPLOAD_WINDOW", DISCONNECT_CHECK)
    with through(ok(), 1) as (base, upstream), connect(base) as upload:
        token = mint(base, ("", "sk-one"))
        upload.sendall(head(token, OTHER, CHAT, "POST", "Transfer-Encoding: chunked") + b"1\r\na\r\n")
        wait_until(lambda: upstream.requests)
        time.sleep(4 * DISCONNECT_CHECK)
        upload.sendall(b"1\r\nb\r\n0\r\n\r\n")
        assert upload.recv(12) == b"HTTP/1.1 200"
    assert upstream.last.body == b"ab"


BIG = 64 << 20


def big(request: Recorded, connection: socket.socket) -> None:
    if not request.target.endswith(b"held"):
        connection.sendall(ok())
        return
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG)
    for _ in range(BIG >> 16):
        connection.sendall(bytes(1 << 16))


@pytest.mark.parametrize("transport", ["native", "httpx"])
@pytest.mark.parametrize("server", ["ours", "h11", "httptools"])
def test_a_client_that_does_not_read_is_cut_off(server: str, transport: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aisbreaker_mw.access")
    with RecordingUpstream(big) as upstream:
        limits = {"idle_timeout": "400ms", "transport": transport}
        app = create_app(settings(upstream=limits, services=open_to_all(upstream.url)))
        with serve(app, **({} if server == "ours" else {"http": server})) as base, connect(base) as client:
            client.sendall(head(mint(base, ("", "sk-one")), OTHER))
            wait_until(lambda: "client_not_reading" in caplog.text, "the cut")
            assert upstream.last.closed.wait(WAIT)
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while piece := client.recv(1 << 20):
                    received += len(piece)
    assert received < BIG


def test_a_client_that_reads_slowly_is_not_cut_off() -> None:
    with through(big, 1, idle_timeout="600ms") as (base, _), connect(base) as client:
        client.sendall(head(mint(base, ("", "sk-one")), OTHER))
        received = 0
        for _ in range(4):
            time.sleep(0.25)  # shorter than the timeout, and longer in all
            for _ in range(200):
                received += len(client.recv(1 << 16))
        while received < BIG and (piece := client.recv(1 << 20)):
            received += len(piece)
    assert received >= BIG


@pytest.mark.parametrize("transport", ["native", "httpx"])
def test_a_vanished_uploader_is_noticed_while_the_service_reads_nothing(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aisbreaker_mw.access")
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.settimeout(WAIT)
        services = open_to_all(f"http://127.0.0.1:{service.getsockname()[1]}")
        with proxy(services=services, upstream={"transport": transport}) as base:
            token = mint(base, ("", "sk-one"))
            with connect(base, seconds=0.2) as client:
                client.sendall(head(token, OTHER, CHAT, "POST", f"Content-Length: {BIG}"))
                with contextlib.suppress(TimeoutError):
                    while True:
                        client.send(bytes(1 << 16))
                connection, _ = service.accept()
            wait_until(lambda: "complete=False" in caplog.text, "the end of the request")
            connection.close()


def test_an_upload_that_was_read_ahead_arrives_whole() -> None:
    reading = threading.Event()
    received = bytearray()

    def serve_slowly(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            while stream.readline() != b"\r\n":
                pass
            assert reading.wait(WAIT)
            received.extend(stream.read(len(body)))
            connection.sendall(ok())

    body = bytes(range(256)) * (40 << 12)  # 40 MB: more than is read ahead, and than the kernel holds
    with socket.create_server(("127.0.0.1", 0)) as service, ThreadPoolExecutor() as threads:
        services = open_to_all(f"http://127.0.0.1:{service.getsockname()[1]}")
        with proxy(services=services) as base:
            served = threads.submit(serve_slowly, service)
            threading.Timer(4 * DISCONNECT_CHECK, reading.set).start()
            response = httpx.post(base + CHAT, content=body, headers=bearer(mint(base, ("", "sk-one"))), timeout=WAIT)
            served.result(WAIT)
    assert response.status_code == 200
    assert received == body
