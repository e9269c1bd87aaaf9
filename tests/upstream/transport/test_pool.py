"""Connections: how many, which one is next, and when a request is sent again."""

import asyncio
import socket

import httpx
import pytest

from aisbreaker_mw.upstream.transport import HTTPTransport, dialing

from ...ports import free_port
from ...support import Recorded, RecordingUpstream
from ...upstreams import CHUNKED, OK, WAIT, Peer, Script, Upstream, until
from .support import FINE, Body, always, collect, echo, fetch, length, make_request, make_transport, native_only, timeouts


async def test_the_connection_used_last_is_used_next(transport: httpx.AsyncBaseTransport) -> None:
    numbers: list[int] = []
    both = asyncio.Barrier(2)

    async def script(peer: Peer) -> None:
        await peer.head()
        await both.wait()
        await peer.send(FINE)
        while True:
            await peer.head()
            numbers.append(peer.number)
            await peer.send(FINE)

    async with Upstream(script) as upstream:
        first = asyncio.create_task(fetch(transport, upstream.port))
        await fetch(transport, upstream.port)
        await first
        for _ in range(4):
            await fetch(transport, upstream.port)
        assert upstream.connections == 2
    assert len(set(numbers)) == 1


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_connections_than_the_limit_and_everybody_gets_one(stack: str, limit: int) -> None:
    async with Upstream(echo) as upstream:
        transport = make_transport(stack, max_connections=limit)
        answers = await asyncio.gather(
            *(
                fetch(transport, upstream.port, method="POST", headers=[length(3)], body=Body(b"%03d" % number))
                for number in range(50)
            )
        )
        assert answers == [(200, b"%03d" % number) for number in range(50)]
        assert upstream.connections == limit
        await transport.aclose()


@native_only
async def test_who_waits_longest_is_next(stack: str) -> None:
    order: list[int] = []

    async def one(number: int) -> None:
        await fetch(transport, upstream.port)
        order.append(number)

    async with Upstream(always(FINE)) as upstream:
        transport = make_transport(stack, max_connections=1)
        await asyncio.gather(*(one(number) for number in range(20)))
        await transport.aclose()
    assert order == list(range(20))


async def test_waiting_for_a_connection_ends_after_pool_timeout(stack: str) -> None:
    finish = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            await finish.wait()
            await peer.send(FINE)

    async with Upstream(script) as upstream:
        transport = make_transport(stack, max_connections=1)
        first = asyncio.create_task(fetch(transport, upstream.port))
        await until(lambda: upstream.connections)
        with pytest.raises(httpx.PoolTimeout):
            await fetch(transport, upstream.port, timeout=timeouts(pool=0.01))
        if isinstance(transport, HTTPTransport):
            assert not any(pool.slots.waited_for for pool in transport._pools.values())
        finish.set()
        assert await first == (200, b"fine")
        assert await fetch(transport, upstream.port, timeout=timeouts(pool=0.01)) == (200, b"fine")
        assert upstream.connections == 1
        await transport.aclose()


async def test_a_failed_connection_makes_room(stack: str) -> None:
    transport = make_transport(stack, max_connections=1)
    port = free_port()
    for _ in range(3):
        with pytest.raises(httpx.ConnectError):
            await fetch(transport, port)
    await transport.aclose()


async def test_a_dropped_answer_makes_room(stack: str) -> None:
    async with Upstream(always(OK + b"Content-Length: 5\r\n\r\nhe")) as upstream:
        transport = make_transport(stack, max_connections=1)
        for _ in range(3):
            response = await transport.handle_async_request(make_request(upstream.port, timeout=timeouts(pool=1)))
            assert isinstance(response.stream, httpx.AsyncByteStream)
            await response.stream.aclose()
            await response.stream.aclose()
        assert upstream.connections == 3
        await transport.aclose()


@native_only
async def test_an_answer_that_ends_with_an_error_makes_room(stack: str) -> None:
    """Without `aclose`, as when who reads it is cancelled."""
    async with Upstream(always(OK + b"Content-Length: 5\r\n\r\nhe")) as upstream:
        transport = make_transport(stack, max_connections=1)
        for _ in range(3):
            timeout = timeouts(pool=1, read=0.01)
            response = await transport.handle_async_request(make_request(upstream.port, timeout=timeout))
            pieces = aiter(response.stream)  # type: ignore[arg-type]
            assert await anext(pieces) == b"he"
            with pytest.raises(httpx.ReadTimeout):
                await anext(pieces)
        await transport.aclose()


@native_only
async def test_an_idle_connection_is_closed_after_its_time(stack: str) -> None:
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(FINE)
        await peer.closed()
        closed.set()

    async with Upstream(script) as upstream:
        transport = make_transport(stack, keepalive_expiry=0.02)
        await fetch(transport, upstream.port)
        async with asyncio.timeout(WAIT):
            await closed.wait()
        await fetch(transport, upstream.port)
        assert upstream.connections == 2
        await transport.aclose()


async def test_an_expired_connection_is_not_used(stack: str) -> None:
    async with Upstream(always(FINE)) as upstream:
        transport = make_transport(stack, keepalive_expiry=0.0)
        await fetch(transport, upstream.port)
        await fetch(transport, upstream.port)
        assert upstream.connections == 2
        await transport.aclose()


@native_only
async def test_an_old_connection_is_not_used_again(stack: str) -> None:
    async with Upstream(always(FINE)) as upstream:
        transport = make_transport(stack, max_connection_age=0.0, max_connections=1)
        first, second = await asyncio.gather(fetch(transport, upstream.port), fetch(transport, upstream.port))
        assert first == second == (200, b"fine")
        assert upstream.connections == 2
        await transport.aclose()


@pytest.mark.parametrize(
    "leftover", [b"", b"HTTP/1.1 408 Timeout\r\nConnection: close\r\n\r\n", b"x"], ids=["closed", "408", "junk"]
)
@pytest.mark.parametrize("closes", [True, False], ids=["closes", "stays"])
async def test_an_idle_connection_that_the_upstream_closes_or_uses_is_not_used_again(
    transport: httpx.AsyncBaseTransport, leftover: bytes, closes: bool
) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(FINE)
        if peer.number == 1:
            await asyncio.sleep(0.005)
            await peer.send(leftover)
            if closes or not leftover:
                peer.hang_up()
            gone.set()
            await peer.closed()

    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port)
        await gone.wait()
        await asyncio.sleep(0.005)
        assert await fetch(transport, upstream.port, method="POST", headers=[length(2)], body=Body(b"hi")) == (200, b"fine")
        assert upstream.connections == 2


@native_only
async def test_a_connection_whose_end_the_loop_has_not_seen_yet_is_not_used_again(transport: httpx.AsyncBaseTransport) -> None:
    def script(request: Recorded, connection: socket.socket) -> None:
        connection.sendall(FINE)
        raise RecordingUpstream.Hangup

    with RecordingUpstream(script) as upstream:
        for _ in range(3):
            answer = await fetch(transport, upstream.port, method="POST", headers=[length(2)], body=Body(b"hi"))
            assert answer == (200, b"fine")
            assert upstream.last.closed.wait(WAIT)  # the loop stands still meanwhile
        assert upstream.connections == 3
        # So no connection is kept: the next request could be on its way when the upstream closes.
        assert await fetch(transport, upstream.port) == (200, b"fine")
        assert isinstance(transport, HTTPTransport)
        (pool,) = transport._pools.values()
        assert not pool._idle
        pool._keep_again()  # after a while
        await fetch(transport, upstream.port)
        assert pool._idle


def stale_at_the_second_request(read_body: int = 0) -> tuple[Script, list[bytes]]:
    """An upstream whose first connection ends when the second request arrives."""
    received: list[bytes] = []

    async def script(peer: Peer) -> None:
        if peer.number == 1:
            await peer.head()
            await peer.send(FINE)
            received.append(await peer.head())
            received.append(await peer.body(read_body))
            return
        while True:
            head = await peer.head()
            received.append(head)
            if b"Content-Length: 2" in head:
                received.append(await peer.body(2))
            await peer.send(FINE)

    return script, received


@native_only
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_request_without_a_body_is_sent_again_when_the_connection_was_stale(
    transport: httpx.AsyncBaseTransport, method: str
) -> None:
    script, received = stale_at_the_second_request()
    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port)
        assert await fetch(transport, upstream.port, method=method) == (200, b"fine")
        assert upstream.connections == 2
    assert received[0] == received[2]


@native_only
async def test_a_request_whose_body_has_not_begun_is_sent_again_when_the_connection_was_stale(
    transport: httpx.AsyncBaseTransport,
) -> None:
    script, received = stale_at_the_second_request()
    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port)
        body = Body(lambda: asyncio.sleep(0.02), b"hi")
        assert await fetch(transport, upstream.port, method="POST", headers=[length(2)], body=body) == (200, b"fine")
        assert upstream.connections == 2
    assert received[0] == received[2]
    assert received[3] == b"hi"


async def test_a_body_is_never_sent_twice(transport: httpx.AsyncBaseTransport) -> None:
    script, received = stale_at_the_second_request(2)
    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await fetch(transport, upstream.port, method="POST", headers=[length(2)], body=Body(b"hi"))
        assert upstream.connections == 1
    assert received[1] == b"hi"


@native_only
async def test_a_stale_connection_is_replaced_only_once(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        if peer.number == 1:
            await peer.send(FINE)
            await peer.head()

    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port)
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(transport, upstream.port)
        assert upstream.connections == 2


async def test_a_byte_of_an_answer_forbids_a_second_try(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(FINE)
        await peer.head()
        await peer.send(b"H")

    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port)
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(transport, upstream.port)
        assert upstream.connections == 1


@native_only
async def test_a_fresh_connection_is_never_tried_twice(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()

    async with Upstream(script) as upstream:
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(transport, upstream.port)
        assert upstream.connections == 1


async def test_a_request_with_connection_close_uses_its_connection_alone(transport: httpx.AsyncBaseTransport) -> None:
    async with Upstream(always(FINE)) as upstream:
        for _ in range(2):
            await fetch(transport, upstream.port, headers=[(b"Connection", b"close")])
        assert upstream.connections == 2


async def test_origins_have_connections_of_their_own(transport: httpx.AsyncBaseTransport) -> None:
    async with (
        Upstream(always(OK + b"Content-Length: 1\r\n\r\n1")) as one,
        Upstream(always(OK + b"Content-Length: 1\r\n\r\n2")) as two,
    ):
        for _ in range(3):
            assert await fetch(transport, one.port) == (200, b"1")
            assert await fetch(transport, two.port) == (200, b"2")
        assert (one.connections, two.connections) == (1, 1)


@native_only
async def test_closing_ends_everything(stack: str) -> None:
    dropped = []

    async def script(peer: Peer) -> None:
        await peer.head()
        if peer.number == 1:
            await peer.send(CHUNKED + b"1\r\nx\r\n")
        elif peer.number == 2:
            await peer.send(FINE)
        dropped.append(await peer.closed())

    transport = make_transport(stack, max_connections=3)
    async with Upstream(script) as upstream:
        streaming = await transport.handle_async_request(make_request(upstream.port))
        await fetch(transport, upstream.port)
        reused = asyncio.create_task(fetch(transport, upstream.port))
        fresh = asyncio.create_task(fetch(transport, upstream.port))
        await until(lambda: upstream.connections == 3)
        waiting = asyncio.create_task(fetch(transport, upstream.port))
        await asyncio.sleep(0.005)
        await asyncio.gather(transport.aclose(), transport.aclose())
        for task in (reused, fresh, waiting):
            with pytest.raises(httpx.TransportError):
                await task
        with pytest.raises(httpx.TransportError):
            await collect(streaming)
        with pytest.raises(httpx.ConnectError):
            await fetch(transport, upstream.port)
        await until(lambda: len(dropped) == 3)


@native_only
async def test_a_connection_that_is_made_after_closing_is_dropped(
    transport: httpx.AsyncBaseTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()

    async def resolve(host: str, port: int) -> list[dialing.AddressInfo]:
        await go.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async def script(peer: Peer) -> None:
        await peer.head()

    monkeypatch.setattr(dialing, "resolve", resolve)
    async with Upstream(script) as upstream:
        late = asyncio.create_task(fetch(transport, upstream.port))
        await asyncio.sleep(0.001)
        await transport.aclose()
        go.set()
        with pytest.raises(httpx.ConnectError):
            await late
        await until(lambda: upstream.finished)
