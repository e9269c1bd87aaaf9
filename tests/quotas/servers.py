"""Real Valkey servers for tests: alone, as a Cluster, behind a Sentinel, and behind an address that can move."""

import asyncio
import contextlib
import functools
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from aisbreaker_mw.quotas import Bucket, QuotaLimiter
from aisbreaker_mw.quotas.embedded import find_server

from ..ports import free_port
from ..support import wait_until as wait_for_it

wait_until = functools.partial(wait_for_it, not_yet=(redis.RedisError, OSError))
"""Polls until a condition holds; an error of the client means that it does not hold yet."""


class Valkey:
    """A server on a port of the loopback interface, in a directory of its own."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="valkey-test-"))
        self.socket = self.directory / "valkey.sock"
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    @property
    def uri(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.directory)]
        options += ["--unixsocket", str(self.socket), "--repl-diskless-sync-delay", "0", *self.options]
        return [str(find_server()), *options]

    def start(self) -> None:
        self.process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self.answers)

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.AuthenticationError:
            return True

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave it listening, and answering nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def calls(self, command: str) -> int:
        """How often the server ran a command, by its own count."""
        statistics: dict[str, Any] = self.client.info("commandstats")
        return int(statistics.get(f"cmdstat_{command}", {}).get("calls", 0))

    def __enter__(self) -> "Valkey":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.client.close()
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def cluster(nodes: int = 3) -> Iterator[list[Valkey]]:
    """Nodes that share all slots, ready to serve."""
    with contextlib.ExitStack() as stack:
        servers = []
        for _ in range(nodes):
            bus = str(free_port())
            options = ("--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-announce-ip", "127.0.0.1")
            servers.append((stack.enter_context(Valkey(*options, "--cluster-node-timeout", "2000")), bus))
        each = 16384 // nodes
        for i, (server, _) in enumerate(servers):
            last = 16383 if i == nodes - 1 else (i + 1) * each - 1
            server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", i * each, last)
            server.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        first = servers[0][0]
        for server, bus in servers[1:]:
            first.client.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        for server, _ in servers:
            wait_until(lambda server=server: _is_whole(server, nodes))  # type: ignore[misc]
        yield [server for server, _ in servers]


def _is_whole(server: Valkey, nodes: int) -> bool:
    info: dict[str, str] = server.client.execute_command("CLUSTER INFO")
    return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == nodes


@contextlib.contextmanager
def sentinel(primary: Valkey, name: str) -> Iterator[int]:
    """A Sentinel that watches over a primary. Gives its port."""
    port = free_port()
    directory = Path(tempfile.mkdtemp(prefix="sentinel-test-"))
    configuration = directory / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {directory}\n"
        f"sentinel monitor {name} 127.0.0.1 {primary.port} 1\n"
        f"sentinel down-after-milliseconds {name} 300\nsentinel failover-timeout {name} 5000\n"
    )
    command = [str(find_server()), str(configuration), "--sentinel"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = redis.Redis(port=port, socket_timeout=5, retry=Retry(NoBackoff(), 0))
    try:
        wait_until(lambda: client.sentinel_master(name)["num-slaves"] > 0, seconds=20)
        yield port
    finally:
        client.close()
        process.kill()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


class Address:
    """A port that leads to whichever server it is told to, as a virtual IP or a DNS name does: old connections stay."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._connections: list[asyncio.Task[Any]] = []

    @contextlib.asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["Address"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self
        await asyncio.wait_for(asyncio.gather(*self._connections), 10)  # each ends with its client

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.append(task)
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def limiting(uri: str, **options: object) -> AsyncIterator[QuotaLimiter]:
    limiter = QuotaLimiter(uri, **{"timeout": 5, **options})  # type: ignore[arg-type]
    try:
        yield limiter
    finally:
        await limiter.aclose()


async def passes(limiter: QuotaLimiter, *buckets: Bucket, cost: int = 1) -> bool:
    decision = await limiter.consume(buckets, cost)
    assert decision is not None
    return decision.admitted


async def hammer(uri: str, processes: int, requests: int) -> tuple[int, int]:
    """Ask from several processes at once. Returns the requests that were admitted, and refused."""
    command = [sys.executable, "-m", "tests.quotas.worker", uri, str(requests // processes)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, **pipes) for _ in range(processes)]  # type: ignore[call-overload]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("\n")
            worker.stdin.flush()
        answers = [[int(number) for number in worker.communicate(timeout=30)[0].split()] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stdin.close()
            worker.stdout.close()
    return sum(passed for passed, _ in answers), sum(refused for _, refused in answers)
