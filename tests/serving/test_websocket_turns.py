"""Many frames at once: each turn of the event loop handles a few, and none is lost or out of order."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest
from websockets.server import ServerProtocol

from aisbreaker_mw.http1.frames import MAX_FRAGMENTS, BoundedFrames

from ..support import connect, mint
from ..upstream.websocket.support import REALTIME, SECRET, RawService, accepting, closing, gateway, handshake, opening, service
from ..upstreams import Peer
from .test_autobahn import BINARY, PING, TEXT, Wire, close, frame


class Frames(BoundedFrames, ServerProtocol):
    """A server's side, without I/O."""


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def front(request: pytest.FixtureRequest) -> Iterator[str]:
    with gateway(serving={"loop": request.param, "ws_ping_interval": None}) as made:
        yield made


def authorized(front: str) -> bytes:
    return handshake("Authorization: Bearer " + mint(front, ("", SECRET)))


@pytest.mark.parametrize(
    ("one", "most"),
    [
        pytest.param(frame(BINARY), 32, id="empty"),
        pytest.param(frame(PING), 32, id="pings"),
        pytest.param(frame(BINARY, bytes(60_000)), 3, id="long"),
        pytest.param(frame(BINARY, bytes(1_000_000)), 1, id="longer than a turn"),
    ],
)
def test_a_turn_is_bounded(one: bytes, most: int) -> None:
    frames = Frames()
    frames.receive_data(handshake())
    frames.events_received()
    frames.receive_data(one * 70)
    turns = [len(frames.events_received())]
    while frames.more:
        frames.receive_data(b"")
        turns.append(len(frames.events_received()))
    assert sum(turns) == 70
    assert max(turns) == most


def test_frames_that_wait_when_the_connection_is_lost() -> None:
    frames = Frames()
    frames.receive_data(handshake())
    frames.receive_data(frame(BINARY) * 70)
    frames.receive_eof()
    assert frames.state.name == "CLOSED"


async def test_a_burst_of_messages_keeps_its_order(front: str) -> None:
    def talk() -> Wire:
        with connect(front) as connection:
            wire = Wire(connection, head)
            wire.send(b"".join(frame(TEXT, b"%d" % number) for number in range(3000)))
            wire.until(3000, 0)
            wire.send(close())
            while wire.read():
                pass
            return wire

    async with service(ping_interval=None):
        head = await asyncio.to_thread(authorized, front)
        seen = (await asyncio.to_thread(talk)).seen
    assert seen.messages == [(TEXT, b"%d" % number) for number in range(3000)]
    assert seen.code == 1000


async def test_a_message_of_too_many_frames(front: str) -> None:
    def talk(count: int) -> Wire:
        with connect(front) as connection:
            wire = Wire(connection, head)
            wire.send(frame(TEXT, fin=False) + frame(0, fin=False) * (count - 2))
            wire.send(frame(0) + frame(PING))
            while wire.read() and not wire.seen.messages:
                pass
            return wire

    async with service(ping_interval=None) as upstream:
        head = await asyncio.to_thread(authorized, front)
        assert (await asyncio.to_thread(talk, MAX_FRAGMENTS)).seen.messages == [(TEXT, b"")]
        assert (await asyncio.to_thread(talk, MAX_FRAGMENTS + 1)).seen.code == 1009
        assert (await closing(upstream.last))[0] == 1009


async def test_pings_of_a_client_that_reads_nothing(front: str) -> None:
    """The server stops reading, and goes on when the client reads."""
    payload = bytes(125)
    one = frame(PING, payload)
    flood = one * 8192

    def talk() -> tuple[int, int]:
        with connect(front) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            wire = Wire(connection, head)
            connection.settimeout(1.0)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 64 << 20:
                    sent += connection.send(flood[sent % len(one) :])
            connection.settimeout(20.0)
            whole = sent // len(one)
            wire.until(0, whole)
            return sent, whole

    async with service(ping_interval=None):
        head = await asyncio.to_thread(authorized, front)
        sent, answered = await asyncio.to_thread(talk)
    assert sent < 48 << 20, "more than sockets hold"
    assert answered > 0


@pytest.mark.parametrize("kind", ["messages", "pings", "fragments"])
async def test_a_burst_of_the_service(front: str, kind: str) -> None:
    bursts = {
        "messages": b"\x82\x00" * 5000,
        "pings": b"\x89\x00" * 5000,
        "fragments": b"\x01\x00" + b"\x00\x00" * 5000,
    }

    async def script(peer: Peer) -> None:
        head = await peer.head()
        await peer.send(accepting(head) + bursts[kind] + b"\x81\x02ok" * (kind != "fragments"))
        await peer.closed()

    async with RawService(script):
        token = await asyncio.to_thread(mint, front, ("", SECRET))
        async with opening(front, REALTIME, token, ping_interval=None) as client:
            if kind == "fragments":
                assert (await closing(client))[0] == 1009
                return
            if kind == "messages":
                for _ in range(5000):
                    assert await client.recv() == b""
            assert await client.recv() == "ok"
