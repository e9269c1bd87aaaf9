"""WebSockets share the connections to a service with its requests."""

import asyncio

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from ...support import WAIT, bearer, mint
from .support import SECRET, gateway, hold, opening, refused, service


async def test_a_websocket_takes_a_slot_until_it_ends() -> None:
    limits = {"max_connections": 1, "pool_timeout": "100ms"}
    async with service(hold), httpx.AsyncClient(timeout=WAIT) as client:
        with gateway(upstream=limits) as base:
            token = mint(base, ("", SECRET))

            async def ask() -> httpx.Response:
                return await client.get(f"{base}/openai/v1/models", headers=bearer(token))

            async with opening(base, token=token):
                assert (await refused(base, token=token)).status_code == 503
                assert (await ask()).status_code == 503
            assert (await ask()).status_code == 426  # the service's own response
            async with opening(base, token=token):  # the connection that is idle makes place
                assert (await ask()).status_code == 503


async def test_a_refused_websocket_leaves_its_slot() -> None:
    limits = {"max_connections": 1, "pool_timeout": "100ms"}
    with gateway(upstream=limits) as base:
        token = mint(base, ("", SECRET))
        for _ in range(2):
            assert (await refused(base, token=token)).status_code == 502  # there is no service


async def fill(client: ClientConnection) -> None:
    while True:
        await client.send(b"x" * 100_000)


async def test_a_service_that_reads_nothing_does_not_keep_the_slot() -> None:
    limits = {"max_connections": 1, "pool_timeout": "10s", "idle_timeout": "300ms"}
    ended = asyncio.Event()

    async def read_nothing(socket: ServerConnection) -> None:
        socket.transport.pause_reading()  # type: ignore[attr-defined]
        await ended.wait()

    async with service(read_nothing, ping_interval=None):
        with gateway(upstream=limits) as base:
            token = mint(base, ("", SECRET))
            async with asyncio.timeout(WAIT), opening(base, token=token, ping_interval=None) as client:
                with pytest.raises(ConnectionClosed):
                    await fill(client)
                ended.set()
                async with opening(base, token=token):
                    pass
