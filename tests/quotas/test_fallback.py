"""Any other storage of limits, by check, count and give back: its own memory always, Memcached where there is one."""

import asyncio
import contextlib
import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from limits.aio.storage import MemoryStorage

from aisbreaker_mw.quotas import Bucket, QuotaLimiter
from aisbreaker_mw.quotas.fallback import StrategyQuotaStorage
from aisbreaker_mw.quotas.model import QuotaStorage

from ..ports import free_port
from .model import bucket, fresh
from .servers import wait_until


@pytest.fixture(scope="module")
def memcached() -> Iterator[str]:
    if shutil.which("memcached") is None or importlib.util.find_spec("memcachio") is None:
        pytest.skip("needs memcached, and the package memcachio")
    port = free_port()
    command = ["memcached", "-l", "127.0.0.1", "-p", str(port), "-u", "nobody"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: socket.create_connection(("127.0.0.1", port)).close() is None)
        yield f"memcached://127.0.0.1:{port}"
        process.kill()


@pytest.fixture(params=["memory of limits", "memcached"])
async def storage(request: pytest.FixtureRequest) -> AsyncIterator[QuotaStorage]:
    if request.param == "memcached":
        storage = QuotaLimiter(request.getfixturevalue("memcached"))._shared
        assert storage is not None
        yield storage
    else:
        memory = MemoryStorage()
        storage = StrategyQuotaStorage(memory)
        yield storage
        if memory.timer is not None:
            memory.timer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await memory.timer
    await storage.aclose()


@pytest.fixture(autouse=True)
def _in_one_hour() -> None:
    """These windows begin at the full minute and hour: wait for the next where one is about to end."""
    left = 60 - time.time() % 60
    if left < 3:
        time.sleep(left)


async def passes(storage: QuotaStorage, *buckets: Bucket, cost: int = 1) -> bool:
    decision = await storage.consume(buckets, cost)
    assert decision is not None
    return decision.admitted


async def test_a_limit_holds(storage: QuotaStorage) -> None:
    token = bucket(fresh(), hour=5)
    assert [await passes(storage, token) for _ in range(7)] == [True] * 5 + [False] * 2


async def test_no_windows_no_decision(storage: QuotaStorage) -> None:
    assert await storage.consume([bucket("token")]) is None


async def test_the_deciding_window_is_told(storage: QuotaStorage) -> None:
    name = fresh()
    token, client = bucket(name, minute=9, hour=8), bucket(f"{name}:c", hour=8, day=8)
    decision = await storage.consume([token, client], 2)
    assert decision is not None
    assert decision[:5] == (True, "token-client", 8, 86_400, 6)
    assert 0 < decision.reset_after <= 86_400
    refusal = await storage.consume([token, client], 7)
    assert refusal is not None
    assert refusal[:5] == (False, "token-client", 8, 86_400, 6)
    assert 0 < refusal.reset_after <= 2 * 86_400


async def test_what_can_never_pass_waits_for_its_window(storage: QuotaStorage) -> None:
    decision = await storage.consume([bucket(fresh(), hour=3)], 4)
    assert decision is not None
    assert not decision.admitted
    assert decision.reset_after == pytest.approx(3600, abs=0.01)


async def test_a_full_window_leaves_the_others_where_they_were(storage: QuotaStorage) -> None:
    name = fresh()
    token, client = bucket(name, hour=100), bucket(f"{name}:c", hour=3)
    assert sum([await passes(storage, token, client) for _ in range(20)]) == 3
    decision = await storage.consume([token])
    assert decision is not None
    assert decision.remaining == 96


async def test_together_no_more_than_the_limit_pass(storage: QuotaStorage) -> None:
    name = fresh()
    token, client = bucket(name, hour=50), bucket(f"{name}:c", hour=1_000)
    assert 0 < sum(await asyncio.gather(*[passes(storage, token, client) for _ in range(150)])) <= 50


async def test_what_was_counted_before_a_lost_race_is_given_back(
    storage: QuotaStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked while there was room for one."""
    name = fresh()
    token, client = bucket(name, hour=100), bucket(f"{name}:c", hour=1)
    look = StrategyQuotaStorage._look

    async def look_long_ago(self: StrategyQuotaStorage, bucket: Bucket, item: object, cost: int) -> object:
        decision = await look(self, bucket, item, cost)  # type: ignore[arg-type]
        return decision._replace(admitted=True)

    with monkeypatch.context() as patch:
        patch.setattr(StrategyQuotaStorage, "_look", look_long_ago)
        assert await passes(storage, token, client)
        for _ in range(5):
            assert not await passes(storage, token, client)
    if await passes(storage, token):
        decision = await storage.consume([token])
        assert decision is not None
        assert decision.remaining == 97
