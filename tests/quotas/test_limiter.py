"""The limiter refuses what it can't use, in one line, and never says a password."""

import asyncio
import importlib.util

import pytest

from aisbreaker_mw.exceptions import ConfigurationError, QuotaStorageUnavailable
from aisbreaker_mw.quotas import Bucket, Buckets, Decision, QuotaLimiter
from aisbreaker_mw.quotas.memory import MemoryQuotaStorage
from aisbreaker_mw.quotas.redis import RedisClusterQuotaStorage, RedisQuotaStorage, RedisSentinelQuotaStorage

from .model import bucket, limits


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "redis",
        "localhost:6379",
        "nosuch://:hidden@127.0.0.1:1",
        "redis://:hidden@127.0.0.1",
        "redis://:hidden@127.0.0.1:port",
        "redis://:hidden@127.0.0.1:99999999",
        "redis+sentinel://:hidden@127.0.0.1:1",
        "redis+cluster://:hidden@",
        "redis://:hidden@127.0.0.1:1?socket_timeout=soon",
        "redis+nosuch://:hidden@127.0.0.1:1",
        "memcached://:hidden@127.0.0.1",
        "embedded://hidden",
        "async+nosuch://hidden",
    ],
)
def test_an_unusable_uri_is_refused_in_one_line(uri: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        QuotaLimiter(uri)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("quotas.storage ")
    assert "hidden" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("uri", "library"),
    [
        ("redis://127.0.0.1:1", "redis"),
        ("valkeys://127.0.0.1:1", "redis"),
        ("valkey+cluster://127.0.0.1:1", "redis"),
        ("memcached://127.0.0.1:1", "memcachio"),
        ("mongodb+srv://127.0.0.1:1", "motor"),
    ],
)
def test_a_missing_library_is_named(uri: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=f"needs the Python package {library}"):
        QuotaLimiter(uri)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="deny, local or allow"):
        QuotaLimiter(on_storage_error="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("uri", "storage"),
    [
        ("redis://127.0.0.1:1", RedisQuotaStorage),
        ("rediss://127.0.0.1:1", RedisQuotaStorage),
        ("redis+unix:///nowhere", RedisQuotaStorage),
        ("valkey://127.0.0.1:1", RedisQuotaStorage),
        ("valkeys://127.0.0.1:1", RedisQuotaStorage),
        ("valkey+unix:///nowhere", RedisQuotaStorage),
        ("redis+sentinel://127.0.0.1:1,127.0.0.1:2/name", RedisSentinelQuotaStorage),
        ("valkey+sentinel://127.0.0.1:1/name", RedisSentinelQuotaStorage),
        ("redis+cluster://127.0.0.1:1,127.0.0.1:2", RedisClusterQuotaStorage),
        ("valkey+cluster://127.0.0.1:1", RedisClusterQuotaStorage),
    ],
)
async def test_every_uri_opens_its_storage_without_connecting(uri: str, storage: type) -> None:
    limiter = QuotaLimiter(uri)
    assert type(limiter._shared) is storage
    await limiter.aclose()


@pytest.mark.parametrize("uri", ["memory://", "async+memory://"])
def test_memory_is_ours(uri: str) -> None:
    limiter = QuotaLimiter(uri)
    assert limiter._shared is None
    assert isinstance(limiter._memory, MemoryQuotaStorage)


def test_a_bucket_has_sixteen_windows_at_most() -> None:
    with pytest.raises(ValueError, match="16"):
        Bucket("key", "slot", "token", limits(1, 2, 3) * 6)


class Broken:
    """A storage whose errors quote its URI."""

    async def consume(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        raise OSError("can't reach\nredis://user:hid%20den@127.0.0.1:1, password 'hid den'")

    async def aclose(self) -> None:
        pass


async def test_an_error_is_logged_once_in_one_line_and_without_the_password(caplog: pytest.LogCaptureFixture) -> None:
    limiter = QuotaLimiter("redis://user:hid%20den@127.0.0.1:1")
    await limiter.aclose()
    limiter._shared = Broken()
    for _ in range(3):
        with pytest.raises(QuotaStorageUnavailable) as caught:
            await limiter.consume([bucket("token", minute=1)])
        assert "redis" not in caught.value.message
    (record,) = caplog.records
    assert record.getMessage() == (
        "quota storage unavailable, requests are refused: OSError: can't reach redis://user:***@127.0.0.1:1, password '***'"
    )


class Uncounted(Broken):
    """A storage that is down, and is asked about requests without windows."""

    async def consume(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        return await super().consume(buckets, cost) if buckets else None


async def test_a_request_without_windows_does_not_bring_a_storage_back() -> None:
    limiter = QuotaLimiter("redis://127.0.0.1:1")
    await limiter.aclose()
    limiter._shared = Uncounted()
    with pytest.raises(QuotaStorageUnavailable):
        await limiter.consume([bucket("token", minute=1)])
    assert await limiter.consume([]) is None
    assert limiter.health == "unavailable"


class Slow(Broken):
    """A storage that is down, and takes its time to say so."""

    def __init__(self) -> None:
        self.asked = 0
        self.down = asyncio.Event()

    async def consume(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        self.asked += 1
        await self.down.wait()
        return await super().consume(buckets, cost)


async def test_one_request_at_a_time_tries_a_storage_that_is_down() -> None:
    limiter = QuotaLimiter("redis://127.0.0.1:1", on_storage_error="allow", timeout=10)
    await limiter.aclose()
    limiter._shared = storage = Slow()
    storage.down.set()
    assert await limiter.consume([bucket("token", minute=1)]) is None
    storage.down.clear()
    trying = asyncio.create_task(limiter.consume([bucket("token", minute=1)]))
    await asyncio.sleep(0)
    assert await limiter.consume([bucket("token", minute=1)]) is None
    assert storage.asked == 2
    storage.down.set()
    assert await trying is None
    assert await limiter.consume([bucket("token", minute=1)]) is None
    assert storage.asked == 3


async def test_a_request_without_windows_passes_while_the_storage_is_down_and_tried() -> None:
    """A token without quotas needs no storage."""
    limiter = QuotaLimiter("redis://127.0.0.1:1", timeout=10)
    await limiter.aclose()
    limiter._shared = storage = Slow()
    storage.down.set()
    with pytest.raises(QuotaStorageUnavailable):
        await limiter.consume([bucket("token", minute=1)])
    storage.down.clear()
    trying = asyncio.create_task(limiter.consume([bucket("token", minute=1)]))
    await asyncio.sleep(0)
    assert await limiter.consume([]) is None
    storage.down.set()
    with pytest.raises(QuotaStorageUnavailable):
        await trying
