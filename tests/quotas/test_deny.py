"""The policy `deny` refuses what would be counted, and nothing else."""

import asyncio

import pytest

from aisbreaker_mw.exceptions import QuotaStorageUnavailable
from aisbreaker_mw.quotas import Bucket, QuotaLimiter

from .model import bucket
from .test_limiter import Broken, Slow


@pytest.mark.parametrize("buckets", [[], [bucket("token")]], ids=["no bucket", "no window"])
async def test_a_request_without_windows_passes_while_the_storage_is_down(buckets: list[Bucket]) -> None:
    limiter = QuotaLimiter("redis://127.0.0.1:1", on_storage_error="deny")
    await limiter.aclose()
    limiter._shared = Broken()
    with pytest.raises(QuotaStorageUnavailable):
        await limiter.consume([bucket("token", minute=1)])
    assert await limiter.consume(buckets) is None


async def test_a_request_without_windows_passes_while_another_one_tries_the_storage() -> None:
    limiter = QuotaLimiter("redis://127.0.0.1:1", on_storage_error="deny", timeout=10)
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
