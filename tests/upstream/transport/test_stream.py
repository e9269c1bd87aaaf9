"""Streaming in both directions, backpressure, and pieces that are taken at once."""

import asyncio

import httpx
import pytest

from aisbreaker_mw.upstream.transport import HTTPTransport

from ...upstreams import CHUNKED, OK, WAIT, Peer, Script, Upstream
from .support import (
    CHUNKED_HEADER,
    FINE,
    Body,
    Taker,
    always,
    collect,
    fetch,
    length,
    make_request,
    make_transport,
    native_only,
    timeouts,
)


async def test_pieces_are_delivered_as_they_arrive(transport: httpx.AsyncBaseTransport) -> None:
    taken = asyncio.Semaphore(0)

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED)
        for number in range(20):
            await taken.acquire()
            await peer.send(b"3\r\n%03d\r\n" % number)
        await taken.acquire()
        await peer.send(b"0\r\n\r\n")

    async with Upstream(script) as upstream, asyncio.timeout(WAIT):
        response = await transport.handle_async_request(make_request(upstream.port))
        taken.release()
        assert isinstance(response.stream, httpx.AsyncByteStream)
        pieces = []
        async for piece in response.stream:
            pieces.append(piece)
            taken.release()
        await response.stream.aclose()
    assert pieces == [b"%03d" % number for number in range(20)]


@native_only
async def test_pieces_that_came_together_are_delivered_together(transport: httpx.AsyncBaseTransport) -> None:
    async with Upstream(always(CHUNKED + 20 * b"2\r\nhi\r\n" + b"0\r\n\r\n")) as upstream:
        response = await transport.handle_async_request(make_request(upstream.port))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        assert [piece async for piece in response.stream] == [20 * b"hi"]


async def test_a_large_body_arrives_whole(transport: httpx.AsyncBaseTransport) -> None:
    body = bytes(range(256)) * 20_000
    async with Upstream(always(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)) as upstream:
        for _ in range(2):
            assert await fetch(transport, upstream.port) == (200, body)
        assert upstream.connections == 1


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_slow_reader_holds_the_upstream_back(transport: httpx.AsyncBaseTransport, framing: str) -> None:
    block = b"x" * 65_536
    blocks = 500  # 32 MB: more than the kernel holds
    written = 0

    async def script(peer: Peer) -> None:
        nonlocal written
        await peer.head()
        if framing == "chunked":
            head, piece, end = CHUNKED, b"10000\r\n" + block + b"\r\n", b"0\r\n\r\n"
        else:
            head, piece, end = OK + b"Content-Length: %d\r\n\r\n" % (blocks * len(block)), block, b""
        await peer.send(OK + b"\r\n" if framing == "close" else head)
        for _ in range(blocks):
            await peer.send(piece)
            written += 1
        await peer.send(end)

    async with Upstream(script) as upstream, asyncio.timeout(2 * WAIT):
        response = await transport.handle_async_request(make_request(upstream.port))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        last = -1
        while written != last:
            last = written
            await asyncio.sleep(0.02)
        assert written < blocks / 2
        if isinstance(transport, HTTPTransport):
            assert response.stream.reader.buffered <= 65_536  # type: ignore[attr-defined]
        assert len(await collect(response)) == blocks * len(block)


def one_by_one(framing: str, pieces: list[bytes], taker: Taker, end: bytes | None = None) -> Script:
    """Return an upstream that sends each piece when the one before has arrived."""
    head = {
        "length": OK + b"Content-Length: %d\r\n\r\n" % sum(map(len, pieces)),
        "chunked": CHUNKED,
        "close": OK + b"Connection: close\r\n\r\n",
    }[framing]
    if end is None:
        end = b"0\r\n\r\n" if framing == "chunked" else b""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(head)
        for number, piece in enumerate(pieces):
            taker.got_one.clear()
            await peer.send(b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunked" else piece)
            if framing == "length" and number == len(pieces) - 1:
                break
            await taker.got_one.wait()
        await peer.send(end)

    return script


@native_only
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize(
    "pattern", [(True,), (False,), (True, False), (True, True, False, False)], ids=["all", "none", "every-second", "pairs"]
)
@pytest.mark.parametrize("buffer_size", [65_536, 1], ids=["", "bytewise"])
async def test_pieces_taken_at_once_and_pieces_awaited_are_the_whole(
    stack: str, framing: str, pattern: tuple[bool, ...], buffer_size: int
) -> None:
    taker = Taker(*pattern)
    pieces = [b"%d " % number for number in range(50)]
    async with Upstream(one_by_one(framing, pieces, taker)) as upstream, asyncio.timeout(WAIT):
        transport = make_transport(stack, buffer_size=buffer_size)
        response = await transport.handle_async_request(make_request(upstream.port))
        assert await taker.read(response) == b"".join(pieces)
        assert bool(taker.taken) is any(pattern)
        await transport.aclose()


@native_only
async def test_the_last_piece_is_always_awaited(stack: str) -> None:
    taker = Taker(True)
    async with Upstream(one_by_one("length", [b"one", b"two", b"three"], taker)) as upstream, asyncio.timeout(WAIT):
        transport = make_transport(stack)
        response = await transport.handle_async_request(make_request(upstream.port))
        await taker.read(response)
        assert taker.pieces == [b"one", b"two", b"three"]
        assert b"two" in taker.taken
        assert b"three" not in taker.taken
        await transport.aclose()


@native_only
@pytest.mark.parametrize("end", [b"", b"x\r\n"], ids=["broken-off", "malformed"])
async def test_an_answer_that_fails_after_pieces_taken_at_once(stack: str, end: bytes) -> None:
    taker = Taker(True)
    async with Upstream(one_by_one("chunked", [b"one", b"two"], taker, end=end)) as upstream, asyncio.timeout(WAIT):
        transport = make_transport(stack)
        response = await transport.handle_async_request(make_request(upstream.port))
        with pytest.raises(httpx.RemoteProtocolError):
            await taker.read(response)
        assert taker.pieces == [b"one", b"two"]
        assert isinstance(transport, HTTPTransport)
        assert not any(pool.connections for pool in transport._pools.values())
        await transport.aclose()


@native_only
async def test_a_piece_taken_at_once_starts_the_timeout_anew(stack: str) -> None:
    """Without that the first piece's timeout, which is long, would go on."""
    seconds = timeouts()

    class Impatient(Taker):
        def __call__(self, piece: bytes) -> bool:
            seconds["read"] = 0.01
            return super().__call__(piece)

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED, b"3\r\none\r\n")
        await peer.closed()

    taker = Impatient(True)
    async with Upstream(script) as upstream, asyncio.timeout(WAIT / 2):
        transport = make_transport(stack)
        response = await transport.handle_async_request(make_request(upstream.port, timeout=seconds))
        with pytest.raises(httpx.ReadTimeout):
            await taker.read(response)
        assert taker.pieces == [b"one"]
        await transport.aclose()


@pytest.mark.parametrize("headers", [[length(32_768_000)], [CHUNKED_HEADER]], ids=["length", "chunked"])
async def test_a_slow_upstream_holds_the_body_back(
    transport: httpx.AsyncBaseTransport, headers: list[tuple[bytes, bytes]]
) -> None:
    body = Body(*[b"x" * 65_536] * 500)
    start = asyncio.Event()
    received: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        await start.wait()
        received.append(await (peer.chunked_body() if CHUNKED_HEADER in headers else peer.body(32_768_000)))
        await peer.send(FINE)

    async with Upstream(script) as upstream:
        task = asyncio.create_task(fetch(transport, upstream.port, method="POST", headers=headers, body=body))
        last = -1
        while body.given != last:
            last = body.given
            await asyncio.sleep(0.02)
        assert body.given < 250
        start.set()
        assert await task == (200, b"fine")
    assert received[0].count(b"x") == 32_768_000
