"""Timeouts of the wait for a response, for a piece of it, and for an upstream that takes the body."""

import asyncio
import contextlib

import httpx
import pytest

from ...upstreams import CHUNKED, OK, WAIT, Peer, Upstream
from .support import CHUNKED_HEADER, Body, collect, echo, fetch, length, make_request, native_only, timeouts


async def test_an_upstream_that_does_not_answer_is_a_read_timeout(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.closed()

    async with Upstream(script) as upstream:
        with pytest.raises(httpx.ReadTimeout):
            await fetch(transport, upstream.port, timeout=timeouts(read=0.02))


@native_only
async def test_a_head_that_trickles_is_a_read_timeout(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        with contextlib.suppress(ConnectionError):
            await peer.send(OK)
            while True:
                await peer.send(b"A: b\r\n")
                await asyncio.sleep(0.005)

    async with Upstream(script) as upstream:
        with pytest.raises(httpx.ReadTimeout):
            await fetch(transport, upstream.port, timeout=timeouts(read=0.05))


async def test_the_timeout_is_looked_up_anew_for_the_body(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED + b"1\r\nx\r\n")
        await peer.closed()

    async with Upstream(script) as upstream:
        timeout = timeouts()
        response = await transport.handle_async_request(make_request(upstream.port, timeout=timeout))
        timeout["read"] = 0.02
        with pytest.raises(httpx.ReadTimeout):
            await collect(response)


async def test_the_timeout_bounds_each_wait_and_not_their_sum(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED)
        for _ in range(20):
            await asyncio.sleep(0.02)
            await peer.send(b"1\r\nx\r\n")
        await peer.send(b"0\r\n\r\n")

    async with Upstream(script) as upstream:
        assert await fetch(transport, upstream.port, timeout=timeouts(read=0.3)) == (200, 20 * b"x")


@native_only
async def test_the_time_to_the_head_begins_at_the_end_of_the_body(
    transport: httpx.AsyncBaseTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    clock, passed = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: clock() + passed)

    async def last_piece_is_late() -> None:
        nonlocal passed
        passed = WAIT / 2

    async with Upstream(echo) as upstream:
        options = {"method": "POST", "headers": [length(2)], "body": Body(last_piece_is_late, b"hi")}
        assert await fetch(transport, upstream.port, timeout=timeouts(read=WAIT / 4), **options) == (200, b"hi")


@pytest.mark.parametrize("there", [False, True], ids=["coming", "there"])
async def test_an_upstream_that_stops_reading_is_a_write_timeout(transport: httpx.AsyncBaseTransport, there: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(WAIT)

    async with Upstream(script) as upstream:
        body = Body(*[b"x" * 65_536] * 500)
        with pytest.raises(httpx.WriteTimeout):
            await fetch(
                transport, upstream.port, method="POST", headers=[CHUNKED_HEADER], body=body, timeout=timeouts(write=0.02)
            )
    assert body.given < 500
