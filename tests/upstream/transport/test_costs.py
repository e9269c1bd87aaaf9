"""What a request costs: no task and no timer for each piece, and nothing left for the garbage collector."""

import asyncio
import contextlib
import gc
from collections.abc import Callable
from types import TracebackType
from typing import Any

import httpx
import pytest

from ...upstreams import CHUNKED, OK, WAIT, Peer, Upstream
from .support import Body, asyncio_only, fetch, length, make_request, native_only


@asyncio_only
async def test_no_task_and_no_timer_for_each_piece(
    transport: httpx.AsyncBaseTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    made: list[str] = []
    call_at, create_task = loop.call_at, loop.create_task

    def counting_call_at(when: float, callback: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        made.append(callback.__qualname__)
        return call_at(when, callback, *args, **kwargs)

    def counting_create_task(coroutine: Any, **kwargs: Any) -> Any:
        made.append(coroutine.__qualname__)
        return create_task(coroutine, **kwargs)

    taken = asyncio.Semaphore(0)

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.body(200)
        await peer.send(CHUNKED)
        for _ in range(200):
            await peer.send(b"1\r\nx\r\n")
            await taken.acquire()
        await peer.send(b"0\r\n\r\n")

    async with Upstream(script) as upstream, asyncio.timeout(WAIT):
        monkeypatch.setattr(loop, "call_at", counting_call_at)
        monkeypatch.setattr(loop, "create_task", counting_create_task)
        body = Body(*[b"x", lambda: asyncio.sleep(0)] * 200)
        request = make_request(upstream.port, method="POST", headers=[length(200)], body=body)
        response = await transport.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        async for _ in response.stream:
            taken.release()
        monkeypatch.undo()
    assert made.count("DeadlineTimer._on_timer") in (1, 2)
    assert len(made) < 10  # the others connect, and serve


# Memory


@native_only
@pytest.mark.parametrize(
    "answer",
    [CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", CHUNKED + b"2\r\nhi\r\n", CHUNKED + b"x", b"nonsense\r\n\r\n", OK, b""],
    ids=["whole", "broken-off", "malformed-body", "malformed", "half-a-head", "none"],
)
async def test_nothing_is_left_for_the_garbage_collector(transport: httpx.AsyncBaseTransport, answer: bytes) -> None:
    """Cycles would be found only now and then, with the bodies that they hold."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(answer)

    async def ask() -> None:
        with contextlib.suppress(httpx.RemoteProtocolError):
            await fetch(transport, upstream.port)
            assert answer.endswith(b"\r\n0\r\n\r\n")

    async with Upstream(script) as upstream:
        await ask()
        gc.collect()
        gc.disable()
        try:
            gc.set_debug(gc.DEBUG_SAVEALL)
            for _ in range(10):
                await ask()
            gc.collect()
            ours = [item for item in gc.garbage if "aisbreaker_mw" in type(item).__module__ or isinstance(item, TracebackType)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert ours == []
