"""Messages in both directions."""

import asyncio
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection

from ...support import WAIT, mint
from .support import SECRET, gateway, hold, opening, service


async def test_messages_keep_kind_boundaries_and_order(front: str) -> None:
    messages: list[str | bytes] = [
        "text",
        b"bytes",
        "",
        b"",
        "f\xfcr \U0001f600",
        bytes(range(256)),
        "x" * 1_000_000,
        b"y" * 3_000_000,
    ]
    messages += [f"{n}" for n in range(300)]
    async with service(max_size=None), opening(front, token=mint(front, ("", SECRET)), max_size=None) as client:

        async def send() -> None:
            for message in messages:
                await client.send(message)
            await client.send(["frag", "men", "ted"])

        sending = asyncio.create_task(send())
        assert [await client.recv() for _ in messages] == messages
        assert await client.recv() == "fragmented"
        await sending


async def test_pings_are_answered_on_both_sides() -> None:
    answered = asyncio.Event()

    async def ping(socket: ServerConnection) -> None:
        await (await socket.ping(b"are you there"))
        answered.set()
        await hold(socket)

    async with service(ping):
        with gateway(serving={"ws_ping_interval": 0.05}) as front:
            async with opening(front, token=mint(front, ("", SECRET)), ping_interval=None) as client:
                async with asyncio.timeout(WAIT):
                    await answered.wait()
                    await (await client.ping(b"and you"))


@pytest.mark.parametrize("downwards", [True, False], ids=["from the service", "from the client"])
async def test_who_does_not_read_slows_the_other_side_down(front: str, downwards: bool) -> None:
    held = asyncio.Event()
    chunk = b"x" * 262_144
    sockets: list[ServerConnection] = []

    async def handle(socket: ServerConnection) -> None:
        sockets.append(socket)
        await held.wait()

    async def fill(sender: ServerConnection | ClientConnection) -> int:
        for sent in range(1000):
            try:
                async with asyncio.timeout(0.5):
                    await sender.send(chunk)
            except TimeoutError:
                return sent + 1  # the library has taken it, and waits for its buffer to go down
        raise AssertionError("250 MB were taken")

    options: dict[str, Any] = {"max_queue": 1, "ping_interval": None}
    async with service(handle, **options), opening(front, token=mint(front, ("", SECRET)), **options) as client:
        sender, reader = (sockets[0], client) if downwards else (client, sockets[0])
        sent = await fill(sender)
        assert sent < 160  # 40 MB, of which most are in the system's buffers
        async with asyncio.timeout(WAIT):
            for _ in range(sent):
                assert await reader.recv() == chunk
        held.set()
