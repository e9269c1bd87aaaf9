"""Quotas in any other storage of the limits library, through its own strategy: Memcached, MongoDB."""

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
    Counters in a storage that has no script of ours: first all windows are read, then each is counted.

    Weaker than the others: a request takes two round trips and more per window; between them others see a part of it
    counted, which is given back when a later window refuses; and windows begin at multiples of their length on the clocks of
    the machines that ask, so that a fresh key does not begin a fresh window.

    Args:
        storage: one of limits' asyncio storages that has sliding windows.

    Raises:
        NotImplementedError: the storage has none.
    """

    def __init__(self, storage: Storage) -> None:
        self._strategy = SlidingWindowCounterRateLimiter(storage)
        self._storage = storage

    async def consume(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """Count one request; see `QuotaStorage`."""
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
                # Another request came in between, or the storage rounds otherwise.
                for earlier, earlier_item in counted:
                    await self._give_back(earlier_item, earlier.key, cost)
                refusal = await self._look(bucket, item, cost)
                if refusal.admitted:
                    refusal = refusal._replace(admitted=False, remaining=0, reset_after=0.001)
                return refusal
            counted.append((bucket, item))
        return min(decisions, key=lambda decision: (decision.remaining, -decision.window))

    async def aclose(self) -> None:
        """Close the connections, where the client library has a way to."""
        # Neither limits nor the clients have one way to close: MongoDB's client has its own, Memcached's pool another.
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
        """Decide by one window alone, counting nothing."""
        length = item.get_expiry() * 1000
        sliding = cast(SlidingWindowCounterSupport, self._storage)
        previous, _, current, current_ends = await sliding.get_sliding_window(item.key_for(bucket.key), length // 1000)
        # A storage keeps a window for twice its length, and tells nothing of one that it does not have.
        left = min(max(int(current_ends * 1000) - length, 1), length) if current_ends else length
        remaining = item.amount - current - previous * left // length
        if remaining >= cost:
            return Decision(True, bucket.policy, item.amount, length // 1000, remaining - cost, left / 1000)
        patience = wait(item.amount - cost, previous, current, left, length)
        # One more: limits counts in fractions of a millisecond.
        return Decision(False, bucket.policy, item.amount, length // 1000, max(0, remaining), (patience + 1) / 1000)

    async def _give_back(self, item: RateLimitItem, key: str, cost: int) -> None:
        with contextlib.suppress(Exception):
            bridge = getattr(self._storage, "bridge", None)
            if bridge is None:
                await self._strategy.hit(item, key, cost=-cost)
                return
            # Memcached can't count by a negative number.
            keys = cast(TimestampedSlidingWindow, self._storage)
            _, current = keys.sliding_window_keys(item.key_for(key), item.get_expiry(), time.time())
            await cast(Any, bridge).decr(current, cost, noreply=True)
