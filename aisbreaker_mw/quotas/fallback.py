"""Quotas in the other storages of the limits library, through its own strategy: Memcached, MongoDB."""

import asyncio
import contextlib
import inspect
import time
from typing import Any, cast

from limits import RateLimitItem
from limits.aio.storage import SlidingWindowCounterSupport, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.storage.base import TimestampedSlidingWindow

from .model import Bucket, Buckets, Decision
from .sliding import wait


class StrategyQuotaStorage:
    """
    Counters in a storage without a script of ours. All windows are read first, then each one is counted.

    This is weaker than the other storages:
    - A request takes two or more round trips per window.
    - In between, others see it counted in a part of its windows. That part is given back if a later window refuses.
    - Windows begin at multiples of their length on the clock of each machine, so a fresh key does not begin a fresh window.

    Args:
        storage: asyncio storage of limits that has sliding windows.

    Raises:
        NotImplementedError: the storage has no sliding windows.
    """

    def __init__(self, storage: Storage) -> None:
        self._strategy = SlidingWindowCounterRateLimiter(storage)
        self._storage = storage

    async def consume(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """Count one request; see `QuotaStorage.consume`."""
        windows = [(bucket, item) for bucket in buckets for item in bucket.limits]
        if not windows:
            return None
        decisions = await asyncio.gather(*[self._look(bucket, item, cost) for bucket, item in windows])
        refusals = [decision for decision in decisions if not decision.admitted]
        if refusals:
            return max(refusals, key=lambda decision: (decision.reset_after, decision.window))
        counted: list[tuple[Bucket, RateLimitItem]] = []
        for bucket, item in windows:
            if not await self._strategy.hit(item, bucket.key, cost=cost):
                # Another request came in between, or the storage rounds in another way.
                for earlier, earlier_item in counted:
                    await self._give_back(earlier_item, earlier.key, cost)
                refusal = await self._look(bucket, item, cost)
                if refusal.admitted:
                    refusal = refusal._replace(admitted=False, remaining=0, reset_after=0.001)
                return refusal
            counted.append((bucket, item))
        return min(decisions, key=lambda decision: (decision.remaining, -decision.window))

    async def aclose(self) -> None:
        """Close the connections, if the client library can."""
        # There is no common way to close: MongoDB's client has one method, Memcached's pool another, and limits none.
        memcached = cast(Any, getattr(self._storage, "bridge", None))
        client = getattr(self._storage, "storage", None)
        if memcached is not None:
            client = getattr(memcached._storage, "connection_pool", None)
            memcached._storage = None
        close = getattr(client, "close", None)
        if callable(close):
            closing = close()
            if inspect.isawaitable(closing):
                await closing

    async def _look(self, bucket: Bucket, item: RateLimitItem, cost: int) -> Decision:
        """Decide by one window, without counting."""
        length = item.get_expiry() * 1000
        sliding = cast(SlidingWindowCounterSupport, self._storage)
        previous, _, current, current_ends = await sliding.get_sliding_window(item.key_for(bucket.key), length // 1000)
        # The storages keep a window for twice its length. They return 0 for a window that they do not have.
        left = min(max(int(current_ends * 1000) - length, 1), length) if current_ends else length
        remaining = item.amount - current - previous * left // length
        if remaining >= cost:
            return Decision(True, bucket.policy, item.amount, length // 1000, remaining - cost, left / 1000)
        patience = wait(item.amount - cost, previous, current, left, length)
        # One millisecond more, because limits counts in fractions of one.
        return Decision(False, bucket.policy, item.amount, length // 1000, max(0, remaining), (patience + 1) / 1000)

    async def _give_back(self, item: RateLimitItem, key: str, cost: int) -> None:
        with contextlib.suppress(Exception):
            bridge = getattr(self._storage, "bridge", None)
            if bridge is None:
                await self._strategy.hit(item, key, cost=-cost)
                return
            # Memcached can't add a negative number.
            keys = cast(TimestampedSlidingWindow, self._storage)
            _, current = keys.sliding_window_keys(item.key_for(key), item.get_expiry(), time.time())
            await cast(Any, bridge).decr(current, cost, noreply=True)
