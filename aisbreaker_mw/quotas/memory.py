"""The memory storage: quotas of one process."""

import time
from collections.abc import Callable
from typing import Any

from limits import RateLimitItemPerSecond
from limits.aio.storage import SlidingWindowCounterSupport, Storage

from .counting import WindowCounter
from .model import Bucket, Buckets, Decision
from .records import BLANK, EXPIRY_SHIFT, HEAD, INSPECTION, POLICY, WINDOW, RecordTable


class MemoryQuotaStorage(WindowCounter, Storage, SlidingWindowCounterSupport):
    """
    Counters in this process's memory: exact within the process, and gone with it.

    Counting a request takes the same time however many clients there are. Nothing runs in the background: each request also
    inspects one or more records, and drops those whose windows have all ended.

    Once a policy has `max_clients` keys, new keys share an overflow record with the new keys of the same slot (the new clients
    of one token, or of the server). So a flood of addresses takes no memory, and no known client loses a request to it. A flood
    of tokens could open too many overflow records. Beyond an eighth more records, new keys share one record per policy.

    Args:
        uri: ignored; limits makes its storages from one.
        wrap_exceptions: as for every storage of limits.
        max_clients: most keys, per policy, with a record of their own.
        clock: returns nanoseconds that never go back.
    """

    STORAGE_SCHEME = ["aisbreaker+memory"]  # noqa: RUF012 - limits reads it as it is

    def __init__(
        self,
        uri: str | None = None,
        wrap_exceptions: bool = False,
        *,
        max_clients: int = 1_000_000,
        clock: Callable[[], int] = time.monotonic_ns,
        **_: Any,
    ) -> None:
        WindowCounter.__init__(self, max_clients, clock)
        Storage.__init__(self, uri, wrap_exceptions=wrap_exceptions)
        self._max_clients = max_clients

    def __len__(self) -> int:
        """Return the number of records, with those that have ended and are not dropped yet."""
        return len(self._table)

    async def consume(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """Count one request; see `QuotaStorage.consume`."""
        return self.consume_now(buckets, cost)

    async def aclose(self) -> None:
        """Do nothing: there are no connections."""

    # The methods that limits' own strategies use. A sliding window is a bucket with one window. A fixed window is a window
    # whose previous count stays zero.

    @property
    def base_exceptions(self) -> type[Exception]:
        """An error that counting never raises: memory does not fail."""
        return ValueError

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count `amount` in the sliding window of `expiry` seconds, if it has room. Returns whether it had."""
        limits = (RateLimitItemPerSecond(limit, expiry),)
        decision = self.consume_now((Bucket(_sliding_key(key, expiry), "limits", "limits", limits),), amount)
        return decision is not None and decision.admitted

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Return the previous count, the seconds until it is gone, the current count, and the seconds until that is gone."""
        record = self._table.records.get(_sliding_key(key, expiry), BLANK)
        end, previous, base = self._table.data[record + HEAD : record + HEAD + WINDOW]
        current = base - self._table.data[record]
        length = expiry * 1000
        left = end - self._clock() // 1_000_000
        if left <= 0:
            previous, current, left = (current, 0, left + length) if left > -length else (0, 0, 0)
        return previous, left / 1000 if previous else 0.0, current, (left + length) / 1000 if left else 0.0

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget the counts of a sliding window."""
        await self.clear(_sliding_key(key, expiry))

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count `amount` in a fixed window of `expiry` seconds, which begins with its first count. Returns the count."""
        now = self._clock() // 1_000_000
        data = self._table.data
        record = self._table.create(key, "limits", 1)
        if data[record + 3] >> EXPIRY_SHIFT <= now:
            data[record + HEAD] = end = now + expiry * 1000
            data[record + HEAD + 2] = data[record]
            data[record + 3] = end << EXPIRY_SHIFT | data[record + 3] & POLICY
        data[record + HEAD + 2] += amount
        data[record + 1] = 0
        self._table.due += 3
        if self._table.due >= INSPECTION:
            self._table.inspect(now)
        return data[record + HEAD + 2] - data[record]

    async def get(self, key: str) -> int:
        """Return the count of a fixed window."""
        data = self._table.data
        record = self._table.records.get(key, BLANK)
        gone = data[record + 3] >> EXPIRY_SHIFT <= self._clock() // 1_000_000
        return 0 if gone else data[record + HEAD + 2] - data[record]

    async def get_expiry(self, key: str) -> float:
        """Return the end of a fixed window, seconds since the epoch."""
        end = self._table.data[self._table.records.get(key, BLANK) + 3] >> EXPIRY_SHIFT
        return time.time() + max(0.0, end / 1000 - self._clock() / 1_000_000_000)

    async def check(self) -> bool:
        """Return True: memory is always there."""
        return True

    async def reset(self) -> int | None:
        """Forget all counts. Returns the number of records there were."""
        count = len(self)
        self._table = RecordTable(self._max_clients)
        return count

    async def clear(self, key: str) -> None:
        """Forget the count of a key."""
        if record := self._table.records.get(key):
            # The window is emptied. A coming inspection drops the record.
            data = self._table.data
            data[record + HEAD] = data[record + HEAD + 1] = 0
            data[record + HEAD + 2] = data[record]
            data[record + 1] = 0
            data[record + 3] &= POLICY


def _sliding_key(key: str, expiry: int) -> str:
    return f"{key}/{expiry}"
