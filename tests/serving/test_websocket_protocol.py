"""The server's side of a WebSocket handshake."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from aisbreaker_mw.serving.websocket_protocol import WebSocketProtocol

from ..support import WAIT, mint, raw_exchange
from ..support import connect as connect_raw
from ..upstream.websocket.support import SECRET, RawService, closing, gateway, handshake, service
from ..upstreams import Peer, until


@pytest.fixture(scope="module")
def front() -> Iterator[str]:
    """The base URL of a server of ours in front of the WebSocket services."""
    with gateway() as made:
        yield made


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        pytest.param(handshake(version="8"), 400, "invalid_request", id="version"),
        pytest.param(handshake("Sec-WebSocket-Version: 13"), 400, "invalid_request", id="two versions"),
        pytest.param(handshake(key="SENTINEL"), 400, "invalid_request", id="short key"),
        pytest.param(handshake(key="f\xfcr"), 400, "invalid_request", id="no base64"),
        pytest.param(handshake(key=""), 400, "invalid_request", id="no key"),
        pytest.param(handshake("Sec-WebSocket-Key: " + "A" * 22 + "=="), 400, "invalid_request", id="two keys"),
        pytest.param(handshake("X: " + "SENTINEL" * 1100), 431, "request_header_fields_too_large", id="long line"),
        pytest.param(handshake(target="/openai/?" + "x" * 9000), 431, "request_header_fields_too_large", id="long target"),
        pytest.param(handshake() + b"\x81\x80\x00\x00\x00\x00", 400, "invalid_request", id="early frame"),
        pytest.param(handshake("Sec-WebSocket-Protocol: a b"), 400, "invalid_request", id="subprotocol"),
        pytest.param(handshake("Sec-WebSocket-Protocol: "), 400, "invalid_request", id="empty subprotocol"),
        # Not an opening handshake, so the header is ignored, and the body is a body.
        pytest.param(handshake("Content-Length: 2", "Connection: close") + b"hi", 401, "missing_credential", id="body"),
        pytest.param(handshake("Connection: close", method="POST"), 401, "missing_credential", id="POST"),
    ],
)
def test_a_handshake_that_is_none(front: str, request_bytes: bytes, status: int, code: str) -> None:
    head, _, body = raw_exchange(front, request_bytes).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert json.loads(body)["error"]["code"] == code
    assert b"SENTINEL" not in head + body
    if b"Version: 8" in request_bytes:
        assert b"\r\nsec-websocket-version: 13" in head


async def test_a_frame_before_the_answer_cuts_the_connection(front: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await asyncio.to_thread(client.sendall, b"\x81\x80\x00\x00\x00\x00")
        await peer.closed()

    async with RawService(script) as upstream:
        with connect_raw(front) as client:
            client.sendall(handshake("Authorization: Bearer " + mint(front, ("", SECRET))))
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.to_thread(client.recv, 1000) == b""
            await until(lambda: upstream.finished == 1, "closing")


@pytest.mark.parametrize("end", ["the token expires", "no ping is answered"])
async def test_a_client_that_reads_nothing_is_cut_in_the_end(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    now = [1000.0]
    cut = threading.Event()

    class Protocol(WebSocketProtocol):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.close_timeout = 0.1

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            cut.set()

    async def talk(socket: ServerConnection) -> None:
        while True:
            await socket.send(b"x" * 100_000)

    monkeypatch.setattr("aisbreaker_mw.serving.websocket_protocol._CUT_AFTER", 0.1)
    monkeypatch.setattr("aisbreaker_mw.upstream.websocket.CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr("aisbreaker_mw.upstream.service_connection.CLOSE_TIMEOUT", 0.1)
    serving = {"ws": Protocol, "ws_ping_interval": 0.2 if end == "no ping is answered" else None, "ws_ping_timeout": 0.2}
    async with service(talk, ping_interval=None) as upstream:
        with gateway(serving=serving, clock=lambda: now[0]) as front, connect_raw(front) as client:
            token = mint(front, ("", SECRET), expirationTimeSpan="1h")
            if end == "the token expires":
                now[0] += 3600 - 0.3
            client.sendall(handshake("Authorization: Bearer " + token))
            assert await asyncio.to_thread(cut.wait, WAIT)
            await closing(upstream.last)
