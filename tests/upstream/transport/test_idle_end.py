"""An idle connection is closed at its age, and one that has ended is handed to nobody who waits."""

import asyncio
import select
import socket

from aisbreaker_mw.upstream.transport import HTTPTransport
from aisbreaker_mw.upstream.transport.slots import NOBODY

from ...support import Recorded, RecordingUpstream
from ...upstreams import WAIT, Peer, Upstream
from .support import FINE, asyncio_only, fetch, make_transport, native_only


@native_only
async def test_an_idle_connection_is_closed_when_it_is_too_old(stack: str) -> None:
    ended = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(FINE)
        await peer.closed()
        ended.set()

    async with Upstream(script) as upstream, asyncio.timeout(WAIT):
        transport = make_transport(stack, keepalive_expiry=1000.0, max_connection_age=0.2)
        await fetch(transport, upstream.port)
        await ended.wait()
        await transport.aclose()


@asyncio_only
async def test_who_waits_is_handed_no_connection_that_the_upstream_has_closed(stack: str) -> None:
    def script(request: Recorded, connection: socket.socket) -> None:
        connection.sendall(FINE)
        raise RecordingUpstream.Hangup

    with RecordingUpstream(script) as upstream:
        async with asyncio.timeout(WAIT):
            transport = HTTPTransport(max_connections=1)
            pool = transport._open_pool(("http", "127.0.0.1", upstream.port))
            held = await pool.acquire(NOBODY, {})
            waiting = asyncio.create_task(pool.acquire(NOBODY, {}))
            await asyncio.sleep(0)
            assert not waiting.done()
            # The upstream closes while the loop stands still, so the loop has not seen it.
            held._transport.write(b"GET / HTTP/1.1\r\n\r\n")
            end = held._transport.get_extra_info("socket")
            assert select.select([end.fileno()], [], [], WAIT)[0]
            pool.release(held)
            given = await waiting
            assert given is not held
            assert not given.closed
            given.abort()
            pool.slots.free(given)
            assert await fetch(transport, upstream.port) == (200, b"fine")
            await transport.aclose()
