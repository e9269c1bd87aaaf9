"""Slots: whoever gives up a connection makes room for one, and nobody waits for a transport that is closed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from aisbreaker_mw.upstream.transport import HTTPTransport, dialing

from ...upstreams import OK, Peer, Upstream, until
from .support import FINE, Body, always, asyncio_only, fetch, length, native_only, timeouts
from .test_pool import stale_at_the_second_request

POOL_TIMEOUT = 7.25
"""Seconds; no other timer has as many."""


@native_only
async def test_an_idle_connection_whose_time_has_passed_makes_room(stack: str) -> None:
    """Its timer has not fired yet when the next request comes."""
    async with Upstream(always(FINE)) as upstream:
        transport = HTTPTransport(max_connections=1)
        await fetch(transport, upstream.port)
        [pool] = transport._pools.values()
        [connection] = pool.connections
        connection.deadline = 0.0
        assert await fetch(transport, upstream.port, timeout=timeouts(pool=1)) == (200, b"fine")
        assert upstream.connections == 2
        await transport.aclose()


@native_only
async def test_a_known_origin_is_not_dialled_after_closing(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dialled: list[int] = []

    async def resolve(host: str, port: int) -> list[dialing.AddressInfo]:
        dialled.append(port)
        return await resolve_really(host, port)

    resolve_really = dialing.resolve
    monkeypatch.setattr(dialing, "resolve", resolve)
    async with Upstream(always(FINE)) as upstream:
        transport = HTTPTransport(max_connections=1)
        await fetch(transport, upstream.port)
        await transport.aclose()
        with pytest.raises(httpx.ConnectError, match="the transport is closed"):
            await fetch(transport, upstream.port)
        assert dialled == [upstream.port]


@native_only
async def test_a_stale_connection_hands_its_slot_to_the_one_that_replaces_it(stack: str) -> None:
    script, _ = stale_at_the_second_request()
    async with Upstream(script) as upstream:
        transport = HTTPTransport(max_connections=1)
        for _ in range(3):
            assert await fetch(transport, upstream.port, timeout=timeouts(pool=1)) == (200, b"fine")
        assert upstream.connections == 2
        await transport.aclose()


@asyncio_only
async def test_a_wait_for_a_slot_leaves_no_timer(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each one would hold its connection for `pool` seconds more."""
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def call_later(delay: float, callback: Callable[..., object], *arguments: Any) -> asyncio.TimerHandle:
        timer = call_later_really(delay, callback, *arguments)
        if delay == POOL_TIMEOUT:
            timers.append(timer)
        return timer

    call_later_really = loop.call_later
    monkeypatch.setattr(loop, "call_later", call_later)
    async with Upstream(always(FINE)) as upstream:
        transport = HTTPTransport(max_connections=1)
        await asyncio.gather(*(fetch(transport, upstream.port, timeout=timeouts(pool=POOL_TIMEOUT)) for _ in range(3)))
        assert [timer.cancelled() for timer in timers] == [True, True]
        await transport.aclose()


@native_only
async def test_a_connection_is_not_idle_beyond_its_age(stack: str) -> None:
    async with Upstream(always(FINE)) as upstream:
        transport = HTTPTransport(keepalive_expiry=100.0, max_connection_age=50.0)
        await fetch(transport, upstream.port)
        [pool] = transport._pools.values()
        [connection] = pool.connections
        assert connection.deadline == connection.expires_at
        await transport.aclose()


@native_only
async def test_who_waits_longest_is_next_where_connections_are_not_reused(stack: str) -> None:
    order: list[int] = []

    async def one(number: int) -> None:
        await fetch(transport, upstream.port, headers=[(b"Connection", b"close")])
        order.append(number)

    async with Upstream(always(FINE)) as upstream:
        transport = HTTPTransport(max_connections=1)
        await asyncio.gather(*(one(number) for number in range(10)))
        await transport.aclose()
    assert order == list(range(10))


@native_only
@pytest.mark.parametrize("given_up", ["release", "free_slot"])
async def test_who_is_cancelled_while_waiting_is_passed_over(
    stack: str, given_up: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot becomes free before the cancelled task has left the line."""
    finish = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            await finish.wait()
            await peer.send(FINE)

    async with Upstream(script) as upstream:
        transport = HTTPTransport(max_connections=1)
        headers = [(b"Connection", b"close")] if given_up == "free_slot" else []
        first = asyncio.create_task(fetch(transport, upstream.port, headers=headers))
        await until(lambda: upstream.connections)
        [pool] = transport._pools.values()
        second = asyncio.create_task(fetch(transport, upstream.port))
        third = asyncio.create_task(fetch(transport, upstream.port))
        await until(lambda: sum(map(len, pool.slots._waiting.values())) == 2)

        def give_up(*connection: Any) -> None:
            second.cancel()
            give_up_really(*connection)

        give_up_really = getattr(pool, given_up)
        monkeypatch.setattr(pool, given_up, give_up)
        finish.set()
        assert await first == await third == (200, b"fine")
        with pytest.raises(asyncio.CancelledError):
            await second
        await transport.aclose()


@native_only
async def test_closing_goes_on_when_another_who_closes_is_cancelled(stack: str) -> None:
    async with Upstream(always(FINE)) as upstream:
        transport = HTTPTransport()
        await fetch(transport, upstream.port)
        one, other = asyncio.create_task(transport.aclose()), asyncio.create_task(transport.aclose())
        await asyncio.sleep(0)
        one.cancel()
        await other
        with pytest.raises(asyncio.CancelledError):
            await one


class Stubborn(Body):
    """A body that fails when it is stopped."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1 << 20)
        finally:
            raise RuntimeError("the body cannot be stopped")


@native_only
async def test_an_early_response_whose_request_cannot_be_stopped_makes_room(stack: str) -> None:
    """Its own body has not ended, so the connection is nobody's."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(FINE if peer.number > 1 else OK + b"Content-Length: 9\r\n\r\nhalf")
        await peer.closed()

    async with Upstream(script) as upstream:
        transport = HTTPTransport(max_connections=1)
        with pytest.raises(RuntimeError, match="the body cannot be stopped"):
            await fetch(transport, upstream.port, method="POST", headers=[length(1 << 30)], body=Stubborn())
        assert await fetch(transport, upstream.port, timeout=timeouts(pool=1)) == (200, b"fine")
        await transport.aclose()


@native_only
async def test_a_connection_that_the_upstream_has_just_closed_is_not_used(stack: str) -> None:
    """The loop tells of the end before it tells that the connection is lost."""
    async with Upstream(always(FINE)) as upstream:
        transport = HTTPTransport()
        await fetch(transport, upstream.port)
        [pool] = transport._pools.values()
        [connection] = pool.connections
        connection.eof_received()
        assert await fetch(transport, upstream.port) == (200, b"fine")
        assert upstream.connections == 2
        await transport.aclose()


@native_only
async def test_a_lost_connection_leaves_no_timer(stack: str) -> None:
    async with Upstream(always(FINE)) as upstream:
        transport = HTTPTransport()
        await fetch(transport, upstream.port)
        [pool] = transport._pools.values()
        [connection] = pool.connections
        timer = connection._timer
        assert timer is not None
        await transport.aclose()
        assert timer.cancelled()
