"""Cancelling an exchange wherever it waits: nothing of it remains, and nothing is half used."""

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any

import httpx
import pytest

from aisbreaker_mw.upstream.transport import HTTPTransport
from aisbreaker_mw.upstream.transport.stream import ResponseStream

from ...upstreams import CHUNKED, OK, WAIT, Peer, Script, Upstream, until
from .support import CHUNKED_HEADER, FINE, Body, Taker, collect, fetch, length, make_request, native_only


class Stepped:
    """
    Runs a coroutine and cancels its task at chosen waits.

    Args:
        coroutine: to run.
        at: numbers of the waits, from 0.
        late: cancel when what is waited for has happened but the task has not gone on, instead of before it happens.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, None], at: set[int], late: bool) -> None:
        self._coroutine = coroutine
        self._at = at
        self._late = late
        self.waits = 0

    def __await__(self) -> Generator[Any, None, None]:
        resume: Callable[[], Any] = lambda: self._coroutine.send(None)  # noqa: E731
        while True:
            try:
                waited_for = resume()
            except StopIteration:
                return
            task = asyncio.current_task()
            assert task is not None
            if self.waits in self._at:
                if self._late and waited_for is not None:
                    waited_for.add_done_callback(lambda _, task=task: task.cancel())
                else:
                    task.cancel()
            self.waits += 1
            try:
                yield waited_for
            except BaseException as error:
                resume = lambda error=error: self._coroutine.throw(error)  # noqa: E731
            else:
                resume = lambda: self._coroutine.send(None)  # noqa: E731


async def run(stepped: Stepped) -> None:
    await stepped


class Scenario:
    """What is cancelled: requests on a transport, and the upstream that they go to."""

    connections = 2

    def script(self) -> Script:
        raise NotImplementedError

    async def prepare(self, transport: HTTPTransport, port: int) -> list[asyncio.Task[Any]]:
        """Bring the transport into the state that the exchange meets; return what is to be awaited afterwards."""
        return []

    async def exchange(self, transport: HTTPTransport, port: int) -> None:
        raise NotImplementedError


class Simple(Scenario):
    """Connect, send a head, read a body in pieces."""

    def script(self) -> Script:
        async def script(peer: Peer) -> None:
            while True:
                head = await peer.head()
                if b"/fine" in head:
                    await peer.send(FINE)
                else:
                    await peer.send(CHUNKED[:20])
                    await asyncio.sleep(0)
                    await peer.send(CHUNKED[20:], b"2\r\nhi\r\n", b"2\r\nho\r\n", b"0\r\n\r\n")

        return script

    async def exchange(self, transport: HTTPTransport, port: int) -> None:
        response = await transport.handle_async_request(make_request(port))
        assert await collect(response) == b"hiho"


class Reused(Simple):
    """The same on a connection that is there."""

    async def prepare(self, transport: HTTPTransport, port: int) -> list[asyncio.Task[Any]]:
        await fetch(transport, port, target=b"/fine")
        return []


class TakenAtOnce(Simple):
    """Pieces that are taken without a step of the task, and pieces that are not."""

    async def exchange(self, transport: HTTPTransport, port: int) -> None:
        taker = Taker(True, False)
        assert await taker.read(await transport.handle_async_request(make_request(port))) == b"hiho"


class Uploading(Scenario):
    """A body that waits for its own pieces, and for the upstream to read."""

    headers = (CHUNKED_HEADER,)

    def script(self) -> Script:
        async def script(peer: Peer) -> None:
            head = await peer.head()
            if b"/fine" not in head:
                await asyncio.sleep(0.01)
                await peer.chunked_body()
            await peer.send(FINE)

        return script

    async def exchange(self, transport: HTTPTransport, port: int) -> None:
        body = Body(b"x", lambda: asyncio.sleep(0), *[b"x" * 65_536] * 120, lambda: asyncio.sleep(0.001), b"x")
        request = make_request(port, "POST", headers=[CHUNKED_HEADER], body=body)
        try:
            assert await collect(await transport.handle_async_request(request)) == b"fine"
        finally:
            assert body.closed or not body.given


class AnsweredEarly(Scenario):
    """An answer that ends the body."""

    def script(self) -> Script:
        async def script(peer: Peer) -> None:
            head = await peer.head()
            if b"/fine" in head:
                await peer.send(FINE)
            else:
                await peer.send(b"HTTP/1.1 413 No\r\nContent-Length: 4\r\n\r\n", b"no", b"no")
                await peer.closed()

        return script

    async def exchange(self, transport: HTTPTransport, port: int) -> None:
        body = Body(b"x", asyncio.Event().wait)
        response = await transport.handle_async_request(make_request(port, "POST", headers=[length(5)], body=body))
        assert await collect(response) == b"nono"
        assert body.closed


class Waiting(Simple):
    """Waiting for a connection, which is handed over or makes room."""

    connections = 1
    closing = False

    def script(self) -> Script:
        async def script(peer: Peer) -> None:
            while True:
                await peer.head()
                await asyncio.sleep(0.001)
                if self.closing:
                    await peer.send(OK + b"Connection: close\r\nContent-Length: 4\r\n\r\nfine")
                    return
                await peer.send(FINE)

        return script

    async def prepare(self, transport: HTTPTransport, port: int) -> list[asyncio.Task[Any]]:
        holders = [asyncio.create_task(fetch(transport, port, target=b"/fine"))]
        await asyncio.sleep(0)
        return holders

    async def exchange(self, transport: HTTPTransport, port: int) -> None:
        assert await collect(await transport.handle_async_request(make_request(port))) == b"fine"


class WaitingForRoom(Waiting):
    """The connection that is waited for is closed."""

    closing = True


class Stale(Scenario):
    """The idle connection is closed when the request arrives, and replaced."""

    def script(self) -> Script:
        async def script(peer: Peer) -> None:
            await peer.head()
            await peer.send(FINE)
            await peer.head()
            while peer.number != 1:
                await peer.send(FINE)
                await peer.head()

        return script

    async def prepare(self, transport: HTTPTransport, port: int) -> list[asyncio.Task[Any]]:
        await fetch(transport, port)
        return []

    async def exchange(self, transport: HTTPTransport, port: int) -> None:
        assert await collect(await transport.handle_async_request(make_request(port))) == b"fine"


async def attempt(scenario: Scenario, at: set[int], late: bool) -> int:
    """Run a scenario, cancelled at some waits; check what it leaves; return how many waits there were."""
    async with Upstream(scenario.script()) as upstream, asyncio.timeout(WAIT):
        transport = HTTPTransport(max_connections=scenario.connections)
        others = await scenario.prepare(transport, upstream.port)
        stepped = Stepped(scenario.exchange(transport, upstream.port), at, late)
        task = asyncio.create_task(run(stepped))
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        # A descriptor that is closed twice would be this one's the second time.
        with socket.socket() as canary:
            gc.collect(0)
            os.fstat(canary.fileno())
        cancelled = any(wait < stepped.waits for wait in at)
        assert isinstance(outcome, asyncio.CancelledError) if cancelled else outcome is None, outcome
        await asyncio.gather(*others)
        # Every connection is idle or closed; nobody waits.
        (pool,) = transport._pools.values()
        await until(lambda: not pool.slots.taken and len(pool._idle) == len(pool.connections), "the slots' return")
        assert not pool.slots.waited_for
        for connection in pool.connections:
            assert connection._stream is None
            assert not connection.closed
            assert connection._flush_handle is None
        # What is left can be used, for as many requests as there may be connections.
        answers = await asyncio.gather(*(fetch(transport, upstream.port, target=b"/fine") for _ in range(2)))
        assert answers == [(200, b"fine")] * 2
        await transport.aclose()
        assert not pool.connections
        return stepped.waits


SCENARIOS = [Simple, Reused, TakenAtOnce, Uploading, AnsweredEarly, Waiting, WaitingForRoom, Stale]


@native_only
@pytest.mark.parametrize("late", [False, True], ids=["pending", "done"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_cancelled_at_every_wait_once_and_twice(scenario: type[Scenario], late: bool) -> None:
    tasks = len(asyncio.all_tasks())
    total = await attempt(scenario(), set(), late)
    assert total > 0
    for first in range(total):
        await attempt(scenario(), {first}, late)
        await attempt(scenario(), {first, first + 1}, late)
    await until(lambda: len(asyncio.all_tasks()) == tasks, "the end of every task")


@native_only
async def test_a_cancelled_request_does_not_hold_up_who_waits(stack: str) -> None:
    async def script(peer: Peer) -> None:
        head = await peer.head()
        if b"/never" in head:
            await peer.closed()
        await peer.send(FINE)

    async with Upstream(script) as upstream, asyncio.timeout(WAIT):
        transport = HTTPTransport(max_connections=1)
        never = asyncio.create_task(fetch(transport, upstream.port, target=b"/never"))
        await until(lambda: upstream.connections)
        waiting = asyncio.create_task(fetch(transport, upstream.port))
        await asyncio.sleep(0)
        never.cancel()
        assert await waiting == (200, b"fine")
        await transport.aclose()


@native_only
async def test_a_cancellation_from_outside_wins_over_an_early_answer(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both cancel the same task, in the same step of the loop."""
    advance = ResponseStream.advance

    def advance_and_cancel(exchange: ResponseStream) -> None:
        advance(exchange)
        task.cancel()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
        await peer.closed()

    monkeypatch.setattr(ResponseStream, "advance", advance_and_cancel)
    async with Upstream(script) as upstream, asyncio.timeout(WAIT):
        transport = HTTPTransport()
        body = Body(b"x", asyncio.Event().wait)
        task = asyncio.create_task(fetch(transport, upstream.port, method="POST", headers=[length(5)], body=body))
        with pytest.raises(asyncio.CancelledError):
            await task
        (pool,) = transport._pools.values()
        await until(lambda: not pool.connections)
        assert not pool.slots.taken
        assert not pool._idle
        await transport.aclose()


@native_only
async def test_an_early_answer_within_a_timeout_of_the_caller(stack: str) -> None:
    """The wait that is ended from inside is not mistaken for the caller's own."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
        await peer.closed()

    async def exchange(transport: HTTPTransport, port: int) -> tuple[int, bytes]:
        body = Body(b"x", asyncio.Event().wait)
        async with asyncio.timeout(WAIT):
            return await fetch(transport, port, method="POST", headers=[length(5)], body=body)

    async with Upstream(script) as upstream:
        transport = HTTPTransport()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(exchange(transport, upstream.port)) for _ in range(5)]
        assert [task.result() for task in tasks] == [(413, b"no")] * 5
        assert [task.cancelling() for task in tasks] == [0] * 5
        await transport.aclose()


Awaiting = Callable[[], Awaitable[Any]]


@native_only
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in pieces"])
@pytest.mark.parametrize("pieces", [[], [b"more", b"still more"]], ids=["ends", "goes on"])
async def test_a_body_that_swallows_the_cancellation_is_stopped_all_the_same(
    stack: str, pieces: list[bytes], whole: bool
) -> None:
    rest: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\n" + (b"no" if whole else b""))
        await asyncio.sleep(0.005)
        if not whole:
            await peer.send(b"no")
        rest.append(await peer.closed())

    async def swallow() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    async with Upstream(script) as upstream:
        transport = HTTPTransport()
        body = Body(swallow, *pieces)
        task = asyncio.current_task()
        assert task is not None
        assert await fetch(transport, upstream.port, method="POST", headers=[CHUNKED_HEADER], body=body) == (413, b"no")
        assert task.cancelling() == 0
        assert body.closed
        await until(lambda: rest)
        await transport.aclose()
    assert rest == [b""]


class Stubborn(httpx.AsyncByteStream):
    """A body that takes its time to clean up, and raises something of its own."""

    def __init__(self, raises: bool) -> None:
        self._raises = raises
        self.cleaned = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"x"
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.001)
            self.cleaned = True
            if self._raises:
                raise LookupError("mine")


@native_only
@pytest.mark.parametrize("raises", [False, True])
async def test_a_body_may_clean_up_when_an_early_answer_ends_it(stack: str, raises: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
        await peer.closed()

    async with Upstream(script) as upstream:
        transport = HTTPTransport()
        body = Stubborn(raises)
        task = asyncio.current_task()
        assert task is not None
        if raises:
            with pytest.raises(LookupError):
                await fetch(transport, upstream.port, method="POST", headers=[length(5)], body=body)
        else:
            assert await fetch(transport, upstream.port, method="POST", headers=[length(5)], body=body) == (413, b"no")
        assert body.cleaned
        assert task.cancelling() == 0
        await until(lambda: upstream.finished)
        await transport.aclose()
