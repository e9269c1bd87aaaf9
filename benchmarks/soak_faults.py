"""The faults of the soak. Each takes a few seconds, and names the failures of a well-behaved client that it explains."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import redis
from processes import free_port  # type: ignore[import-not-found]
from soak_upstream import Upstream  # type: ignore[import-not-found]

from aisbreaker_mw.quotas.embedded import find_server

BROKEN = "broken connection"
UPSTREAM_ERROR = "502 upstream_error"
STORAGE_DOWN = "503 quota_storage_unavailable"

TRUSTED_PROXY = "127.0.0.9"
"""The address whose X-Forwarded-For the server believes."""
LASTS = 6.0
"""Seconds of a fault that goes on for a while."""


class Storage:
    """A Valkey server on loopback that can be killed."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.uri = f"redis://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._directory = directory

    def start(self) -> None:
        command = [find_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self._directory]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    async def replies(self) -> None:
        """Wait until it replies, 10 seconds at most."""
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    def clients(self) -> int:
        """Return the number of its connections but this one."""
        with redis.Redis(port=self.port) as client:
            return int(client.info("clients")["connected_clients"]) - 1

    def signal(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class Target:
    """
    The server under test, as the faults need it.

    Args:
        port: the server's port.
        token: access token of the badly behaved clients.
        narrow_token: another of theirs, with windows per client that each client fills.
        upstream: the AI service.
        storage: the quota storage.
        newest_worker: gives the process that has run for the shortest time.
        crowd: connections of a fault that holds connections.
        chance: source of all that is random.
    """

    port: int
    token: str
    narrow_token: str
    upstream: Upstream
    storage: Storage
    newest_worker: Callable[[], int]
    crowd: int
    chance: random.Random

    def head(self, kind: str, length: int, token: str = "", *fields: str) -> bytes:
        lines = [f"POST /openai/v1/chat/completions?{kind} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"Authorization: Bearer {token or self.token}", "Content-Type: application/json"]
        return "\r\n".join([*lines, f"Content-Length: {length}", *fields, "", ""]).encode()

    def address(self) -> str:
        """Return an address of loopback that neither the steady client nor the proxy has."""
        return f"127.0.{self.chance.randrange(1, 250)}.{self.chance.randrange(1, 250)}"

    async def connect(self, address: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address or self.address(), 0), limit=4096)


@dataclass(frozen=True)
class Fault:
    """
    One kind of fault.

    Args:
        name: what happens.
        explains: the failures of the steady client that it explains.
        recovery: seconds after its end in which it still explains them.
        happen: makes it happen, and returns at its end.
    """

    name: str
    explains: frozenset[str]
    recovery: float
    happen: Callable[[Target], Awaitable[None]]


async def reset_upstream(target: Target) -> None:
    target.upstream.resetting = 0.3
    try:
        for _ in range(3):
            target.upstream.reset_all()
            await asyncio.sleep(LASTS / 3)
    finally:
        target.upstream.resetting = 0.0


async def kill_storage(target: Target) -> None:
    target.storage.kill()
    try:
        await asyncio.sleep(target.chance.choice((0.0, 1.0, 4.0)))
    finally:
        target.storage.start()
    await target.storage.replies()


async def pause_storage(target: Target) -> None:
    target.storage.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(2.0)
    finally:
        target.storage.signal(signal.SIGCONT)


async def kill_worker(target: Target) -> None:
    os.kill(target.newest_worker(), signal.SIGKILL)
    await asyncio.sleep(0.5)


async def vanish(target: Target) -> None:
    """Clients that leave in mid upload, before the response, in mid stream, or within a large response."""

    async def one() -> None:
        reader, writer = await target.connect()
        try:
            kind = target.chance.choice(("upload", "slow", "stream", "big"))
            if kind == "upload":
                writer.write(target.head("normal", 1_000_000) + bytes(target.chance.randrange(200_000)))
            else:
                writer.write(target.head(kind, 2) + b"{}")
            await asyncio.sleep(target.chance.random() * 1.5)
            if kind in ("stream", "big"):
                await reader.read(target.chance.randrange(1, 4000))
            if target.chance.random() < 0.5:  # with a reset
                client: socket.socket = writer.get_extra_info("socket")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            writer.transport.abort()

    for _ in range(4):
        await _all(one() for _ in range(target.crowd))


async def never_read(target: Target) -> None:
    """Clients that ask for a large response and read none of it."""
    writers = []
    try:
        for _ in range(target.crowd):
            _, writer = await target.connect()
            writers.append(writer)
            writer.transport.pause_reading()  # type: ignore[attr-defined] # it reads, so it has that
            writer.write(target.head("big", 2) + b"{}")
        await asyncio.sleep(LASTS)
    finally:
        for writer in writers:
            writer.transport.abort()


async def slow_uploads(target: Target) -> None:
    """One client whose uploads come in small pieces, and are never whole."""
    address = target.address()

    async def one() -> None:
        _, writer = await target.connect(address)
        try:
            writer.write(target.head("normal", 1_000_000))
            for _ in range(int(LASTS / 0.1)):
                writer.write(bytes(100))
                await writer.drain()
                await asyncio.sleep(0.1)
        finally:
            writer.transport.abort()

    await _all(one() for _ in range(target.crowd))


async def slow_requests(target: Target) -> None:
    """One client with many requests at once, whose responses take seconds."""
    address = target.address()

    async def one() -> None:
        reader, writer = await target.connect(address)
        try:
            for _ in range(2):
                writer.write(target.head("slow", 2) + b"{}")
                await reader.read(4096)
        finally:
            writer.transport.abort()

    await _all(one() for _ in range(target.crowd))


async def flood_connections(target: Target) -> None:
    """New connections from many addresses: silent ones, half heads, wrong tokens, and requests."""
    writers: list[asyncio.StreamWriter] = []

    async def one() -> None:
        reader, writer = await target.connect()
        writers.append(writer)
        kind = target.chance.randrange(4)
        if kind == 1:
            writer.write(target.head("normal", 2)[:40])
        elif kind == 2:
            writer.write(target.head("normal", 2, "aisbreaker_eyJ2ZXIiOiJub25lIn0.AAAA") + b"{}")
        elif kind == 3:
            writer.write(target.head("normal", 2, target.narrow_token) + b"{}")
        if kind >= 2:
            await reader.read(4096)
            writer.transport.abort()

    try:
        for _ in range(int(LASTS / 0.1)):
            await _all(one() for _ in range(10))
            await asyncio.sleep(0.1)
    finally:
        for writer in writers:
            writer.transport.abort()


async def flood_addresses(target: Target) -> None:
    """A trusted proxy's connections, with another client's address in each request."""

    async def one() -> None:
        reader, writer = await target.connect(TRUSTED_PROXY)
        try:
            for _ in range(int(LASTS * 20)):
                client = (
                    f"X-Forwarded-For: 2001:db8:{target.chance.randrange(1 << 16):x}:{target.chance.randrange(1 << 16):x}::1"
                )
                writer.write(target.head("normal", 2, target.narrow_token, client) + b"{}")
                await reader.read(4096)
                await asyncio.sleep(0.05)
        finally:
            writer.transport.abort()

    await _all(one() for _ in range(8))


async def _all(clients: Iterable[Awaitable[None]]) -> None:
    """Run clients at once. That the server closes a bad client's connection is no error."""

    async def one(client: Awaitable[None]) -> None:
        with contextlib.suppress(ConnectionError):
            await client

    await asyncio.gather(*(one(client) for client in clients))


NOTHING: frozenset[str] = frozenset()
FAULTS = (
    Fault("upstream resets connections", frozenset({UPSTREAM_ERROR, BROKEN}), 1.0, reset_upstream),
    Fault("storage killed and restarted", frozenset({STORAGE_DOWN}), 3.0, kill_storage),
    Fault("storage paused", frozenset({STORAGE_DOWN}), 3.0, pause_storage),
    Fault("worker killed", frozenset({BROKEN}), 1.0, kill_worker),
    Fault("clients vanish", NOTHING, 0.0, vanish),
    Fault("clients never read", NOTHING, 0.0, never_read),
    Fault("slow uploads of one client", NOTHING, 0.0, slow_uploads),
    Fault("slow requests of one client", NOTHING, 0.0, slow_requests),
    Fault("flood of connections", NOTHING, 0.0, flood_connections),
    Fault("flood of addresses", NOTHING, 0.0, flood_addresses),
)
