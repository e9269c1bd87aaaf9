"""A storage at a distance: connecting takes many round trips and goes on by itself, a request takes one."""

import asyncio
import contextlib
import logging
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme

from aisbreaker_mw.exceptions import QuotaStorageUnavailable
from aisbreaker_mw.quotas import Bucket, QuotaLimiter

from .model import bucket, fresh
from .servers import Address, Valkey, cluster, limiting, passes


class Distance:
    """A relay that delivers all bytes half a round trip later, and the first ones after TCP's own round trip."""

    def __init__(self, target: int, round_trip: float) -> None:
        self.target = target
        self.round_trip = round_trip
        self.port = 0
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["Distance"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            await asyncio.gather(self._carry(reader, there_writer, 1.5 * self.round_trip), self._carry(there_reader, writer, 0))
        finally:
            writer.close()
            there_writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, before: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + before
        while data := await reader.read(65536):
            due = max(due, loop.time() + self.round_trip / 2)
            loop.call_at(due, self._deliver, writer, data)
        loop.call_at(max(due, loop.time() + self.round_trip / 2), writer.close)

    @staticmethod
    def _deliver(writer: asyncio.StreamWriter, data: bytes) -> None:
        if not writer.is_closing():
            writer.write(data)


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey("--requirepass", "se-cret") as server:
        yield server


@contextlib.asynccontextmanager
async def terminated(target: int, directory: Path) -> AsyncIterator[tuple[int, Path]]:
    """A port that speaks TLS in front of a server, and the file of its authority."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    file = directory / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    address = Address(target)
    async with address.listening(context):
        yield address.port, file


async def until_up(limiter: QuotaLimiter, token: Bucket) -> int:
    """Ask until a request passes. Returns how many were refused."""
    for refused in range(200):
        with contextlib.suppress(QuotaStorageUnavailable):
            assert await passes(limiter, token)
            return refused
        await asyncio.sleep(0.02)
    raise AssertionError("the storage did not come up")


@pytest.mark.parametrize("round_trip", [0.02, 0.1, 0.2])
@pytest.mark.parametrize("tls", [False, True], ids=["password", "password and TLS"])
async def test_it_comes_up_with_the_first_connection_and_then_takes_one_round_trip(
    valkey: Valkey, tmp_path: Path, round_trip: float, tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aisbreaker_mw.quotas")
    async with contextlib.AsyncExitStack() as stack:
        port, scheme, query = valkey.port, "redis", ""
        if tls:
            port, file = await stack.enter_async_context(terminated(port, tmp_path))
            scheme, query = "rediss", f"?ssl_ca_certs={file}"
        distance = await stack.enter_async_context(Distance(port, round_trip).listening())
        uri = f"{scheme}://:se-cret@127.0.0.1:{distance.port}/{query}"
        # The default time of a request.
        limiter = await stack.enter_async_context(limiting(uri, timeout=0.25))
        token = bucket(fresh(), minute=1_000)
        refused = await until_up(limiter, token)
        assert distance.connections == 1, "no connection was thrown away"
        if round_trip > 0.05:
            assert refused, "the first requests did not wait for connecting"
            steps = r"quota storage connected: connect \d+ ms, log in \d+ ms, load the script \d+ ms"
            assert re.search(steps, caplog.text)
            assert "se-cret" not in caplog.text

        async def later(seconds: float) -> bool:
            await asyncio.sleep(seconds)
            return await passes(limiter, token)

        # None waits for the reply to another: the wait of two would be longer than 250 ms.
        assert all(await asyncio.gather(*[later(i * round_trip / 10) for i in range(10)]))
        assert distance.connections == 1


async def test_a_cluster_at_a_distance_comes_up(tmp_path: Path) -> None:
    with cluster(1) as (node,):
        async with Distance(node.port, 0.1).listening() as distance:
            # The node tells this address to its clients.
            node.client.config_set("cluster-announce-port", distance.port)
            async with limiting(f"redis+cluster://127.0.0.1:{distance.port}", timeout=0.25) as limiter:
                token = bucket(fresh(), minute=1_000)
                assert await until_up(limiter, token)
                assert [await passes(limiter, token) for _ in range(3)] == [True] * 3


async def test_a_server_that_never_responds_is_given_up_and_the_log_says_what_took_how_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connections: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: connections.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with limiting(f"redis://:se-cret@127.0.0.1:{port}", timeout=0.05, connect_timeout=0.3) as limiter:
        for _ in range(4):
            with pytest.raises(QuotaStorageUnavailable):
                await limiter.consume([bucket("token", minute=1)])
        assert len(connections) == 1, "connecting went on"
        for _ in range(200):
            with pytest.raises(QuotaStorageUnavailable):
                await limiter.consume([bucket("token", minute=1)])
            if len(connections) > 1:
                break
        assert len(connections) == 2
    server.close()
    for connection in connections:
        connection.close()
    assert "requests are refused: TimeoutError: not ready or no reply within 0.05 s" in caplog.text
    assert re.search(r"quota storage not connected within 0.3 s: connect \d+ ms, no reply for \d+ ms", caplog.text)


async def test_a_late_reply_fails_its_request_alone(valkey: Valkey) -> None:
    async with (
        Distance(valkey.port, 0).listening() as distance,
        limiting(f"redis://:se-cret@127.0.0.1:{distance.port}", timeout=0.2) as limiter,
    ):
        token = bucket(fresh(), minute=5)
        await until_up(limiter, token)
        distance.round_trip = 0.5
        with pytest.raises(QuotaStorageUnavailable):
            await limiter.consume([token])
        distance.round_trip = 0
        await asyncio.sleep(0.35)  # the late reply has come
        decision = await limiter.consume([token])
        assert distance.connections == 1
        # The late one was counted.
        assert decision is not None
        assert decision.remaining == 2
