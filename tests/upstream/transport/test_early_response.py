"""Responses that come before the request's body has been sent."""

import asyncio

import httpx
import pytest

from aisbreaker_mw.upstream.transport import HTTPTransport

from ...upstreams import CHUNKED, WAIT, Peer, Upstream, until
from .support import CHUNKED_HEADER, FINE, Body, collect, echo, fetch, length, make_request, native_only


@native_only
@pytest.mark.parametrize("given", [0, 1], ids=["before the body", "in the body"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("closes", [False, True], ids=["stays", "closes"])
async def test_an_early_answer_is_delivered_and_the_body_stopped(
    transport: httpx.AsyncBaseTransport, given: int, framing: str, closes: bool
) -> None:
    rest: list[bytes] = []
    never = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        if peer.number == 1:
            await peer.body(given)
            await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
            if closes:
                return
            rest.append(await peer.closed())
        else:
            await peer.send(FINE)

    async with Upstream(script) as upstream:
        body = Body(*[b"x"] * given, never.wait, b"more")
        headers = [length(5) if framing == "length" else CHUNKED_HEADER]
        task = asyncio.current_task()
        assert task is not None
        assert await fetch(transport, upstream.port, method="POST", headers=headers, body=body) == (413, b"big")
        assert task.cancelling() == 0
        assert body.closed
        assert not body.ended
        assert (await fetch(transport, upstream.port))[0] == 200
        assert upstream.connections == 2
        await until(lambda: rest or closes)
    assert b"more" not in b"".join(rest)


@native_only
@pytest.mark.parametrize("there", [False, True], ids=["coming", "there"])
async def test_an_early_answer_reaches_a_body_that_waits_for_the_upstream(
    transport: httpx.AsyncBaseTransport, there: bool
) -> None:
    async def script(peer: Peer) -> None:
        if (await peer.head()).startswith(b"POST"):
            await until(buffers_are_full)
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await peer.closed()

    def buffers_are_full() -> bool:
        assert isinstance(transport, HTTPTransport)
        (pool,) = transport._pools.values()
        return any(connection.writing_paused for connection in pool.connections)

    async with Upstream(script) as upstream:
        body = Body(*[b"x" * 65_536] * 500)
        stream = httpx.ByteStream(b"x" * 32_768_000) if there else body
        assert await fetch(transport, upstream.port, method="POST", headers=[CHUNKED_HEADER], body=stream) == (413, b"big")
        await fetch(transport, upstream.port, method="HEAD")
        assert upstream.connections == 2
    assert there or (body.closed and body.given < 500)


@native_only
async def test_an_early_answer_is_streamed_after_the_body_was_stopped(transport: httpx.AsyncBaseTransport) -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED)
        await go.wait()
        await peer.send(b"2\r\nhi\r\n0\r\n\r\n")
        await peer.closed()

    async with Upstream(script) as upstream, asyncio.timeout(WAIT):
        request = make_request(upstream.port, method="POST", headers=[length(5)], body=Body(asyncio.Event().wait))
        response = await transport.handle_async_request(request)
        go.set()
        assert await collect(response) == b"hi"


@native_only
async def test_an_interim_answer_does_not_stop_the_body(transport: httpx.AsyncBaseTransport) -> None:
    interim = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        interim.set()
        assert await peer.body(2) == b"hi"
        await peer.send(FINE)
        await peer.head()
        await peer.send(FINE)

    async with Upstream(script) as upstream:
        body = Body(interim.wait, lambda: asyncio.sleep(0.01), b"hi")
        assert await fetch(transport, upstream.port, method="POST", headers=[length(2)], body=body) == (200, b"fine")
        assert await fetch(transport, upstream.port) == (200, b"fine")
        assert upstream.connections == 1


@native_only
async def test_a_body_that_is_complete_but_does_not_say_so_is_no_early_answer(transport: httpx.AsyncBaseTransport) -> None:
    async with Upstream(echo) as upstream:
        body = Body(b"hi", asyncio.Event().wait)
        assert await fetch(transport, upstream.port, method="POST", headers=[length(2)], body=body) == (200, b"hi")
        assert await fetch(transport, upstream.port, method="POST", headers=[length(2)], body=Body(b"ho")) == (200, b"ho")
        assert upstream.connections == 1


@native_only
@pytest.mark.parametrize("reused", [False, True], ids=["fresh", "reused"])
async def test_an_upstream_that_goes_in_the_middle_of_a_body_is_noticed(
    transport: httpx.AsyncBaseTransport, reused: bool
) -> None:
    async def script(peer: Peer) -> None:
        if reused:
            await peer.head()
            await peer.send(FINE)
        await peer.head()
        await peer.body(1)

    async with Upstream(script) as upstream:
        if reused:
            await fetch(transport, upstream.port)
        body = Body(b"x", asyncio.Event().wait)
        with pytest.raises(httpx.TransportError):
            await fetch(transport, upstream.port, method="POST", headers=[length(5)], body=body)
        assert body.closed
