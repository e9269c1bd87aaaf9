"""Quotas of one process, counted in its memory."""

import time
from array import array
from collections.abc import Callable
from typing import Any

from limits import RateLimitItemPerSecond
from limits.aio.storage import SlidingWindowCounterSupport, Storage

from .model import MAX_AMOUNT, MAX_WINDOWS, Bucket, Buckets, Decision
from .sliding import wait

# A record is a run of integers: when it may be dropped, how many windows it has and its policy's number (the upper bits), then
# per window its end (0: nothing was counted yet), the previous count and the current count. Times are milliseconds of the
# monotonic clock. All records lie in one array: the garbage collector has nothing to visit, and a client costs some 250
# bytes, most of it for its key.
_HEAD = 2
_WINDOW = 3
_POLICY_SHIFT = 8

_INSPECTION = 32
"""Records that are looked at in one go: one after the other in memory, as they were made."""

_BLANK = 0
"""The record that stands for every key without one: the first, always zero."""

_ENDLESS = 1 << 80
"""Longer than any wait: of a request that can never pass."""


class MemoryQuotaStorage(Storage, SlidingWindowCounterSupport):
    """
    Counters in this process's memory: exact within the process, and gone with it.

    A consume costs the same however many clients there are. Nothing runs in the background: for every consume a record or
    more is looked at, and dropped if its windows have all run out.

    Where a policy has `max_clients` keys, a new key is counted in an overflow record, shared by the new keys of the same
    slot (the new clients of one token, or of the server), so a flood of addresses costs no memory, and nobody who is known
    already loses a request to it. Beyond an eighth more, where a flood of tokens opens too many of those, new keys share one
    record per policy.

    Args:
        uri: not used; the storages of limits are made from one.
        wrap_exceptions: as for every storage of limits.
        max_clients: keys with a record of their own, per policy.
        clock: nanoseconds that never go back.
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
        super().__init__(uri, wrap_exceptions=wrap_exceptions)
        self._max_clients = max_clients
        self._max_records = max_clients + max_clients // 8 + 1
        self._clock = clock
        self._clear()

    def _clear(self) -> None:
        # The key that is no string makes it a dictionary whose entries hold their keys' hashes. One of strings alone looks
        # for them in the keys, which among a million are never in the processor's caches: a third slower.
        self._records: dict[str | None, int] = {None: _BLANK}
        """Where the record of a key begins."""
        self._data = array("q", bytes(8 * (_HEAD + _WINDOW * MAX_WINDOWS)))
        self._free: dict[int, list[int]] = {}
        """Dropped records for reuse, by their number of windows."""
        self._policies: dict[str, int] = {}
        """Numbers of the policies."""
        self._sizes: list[int] = []
        """Records per policy."""
        # All records in the order of inspection, where it goes on, and the key of each. (A list of the keys would do, and be
        # visited by every full garbage collection: a tenth of a second at a million.)
        self._ring = array("q")
        self._hand = 0
        self._due = 0
        self._keys: dict[int, str] = {}

    def __len__(self) -> int:
        """Count the records, those that ran out and are not dropped yet included."""
        return len(self._ring)

    async def consume(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """Count one request; see `QuotaStorage`. None where there are no windows."""
        return self.consume_now(buckets, cost)

    async def aclose(self) -> None:
        """Do nothing: there are no connections."""

    def consume_now(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """Count one request without waiting for anything; see `QuotaStorage`. None where there are no windows."""
        now = self._clock() // 1_000_000
        data = self._data
        find = self._records.get
        found = []
        fresh = False
        least = MAX_AMOUNT + 1
        nearest: tuple[str, int, int, int] | None = None
        for bucket in buckets:
            record = find(bucket.key)
            if record is None:
                record = self._find_overflow(bucket)
            found.append(record)
            i = record + 2
            for amount, length in bucket.windows:
                left = data[i] - now
                current = data[i + 2]
                if left <= 0:
                    # The window in progress ended. Of a request that is refused in the end nothing remains of this step:
                    # the counts are the same whether it is taken now or at the next request.
                    if left > -length and current:
                        data[i] += length
                        data[i + 1] = current
                        data[i + 2] = 0
                        left += length
                    else:
                        data[i] = data[i + 1] = data[i + 2] = 0
                        left = length
                    current = 0
                if not current:
                    fresh = True
                remaining = amount - current - cost
                previous = data[i + 1]
                if previous:
                    remaining -= previous * left // length
                if remaining <= least:
                    if remaining < 0:
                        return self._refuse(buckets, cost, now)
                    if remaining < least or nearest is None or length > nearest[2]:
                        least = remaining
                        nearest = (bucket.policy, amount, length, left)
                i += 3
        if nearest is None:
            return None

        created = 0
        if fresh:  # a window without a record has counted nothing either
            created = self._count_first(buckets, found, cost, now)
        else:
            for bucket, record in zip(buckets, found, strict=True):
                for i in range(record + 4, record + 4 + 3 * len(bucket.windows), 3):
                    data[i] += cost
        # Twice as many as were made, so that the inspection overtakes any growth.
        self._due += 1 + 2 * created
        if self._due >= _INSPECTION:
            self._inspect(now)
        policy, amount, length, left = nearest
        return Decision(True, policy, amount, length // 1000, least, left / 1000)

    def _count_first(self, buckets: Buckets, found: list[int], cost: int, now: int) -> int:
        """Count a request in windows of which some begin with it, and say how many records were made for that."""
        data = self._data
        created = 0
        for bucket, record in zip(buckets, found, strict=True):
            if not record:
                created += 1
                record = self._create(self._overflow_key(bucket) or bucket.key, bucket.policy, len(bucket.windows))
            i = record + 4
            for _, length in bucket.windows:
                current = data[i]
                data[i] = current + cost
                if not current:
                    end = data[i - 2]
                    if not end:
                        data[i - 2] = end = now + length
                    if data[record] < end + length:
                        data[record] = end + length
                i += 3
        return created

    def _refuse(self, buckets: Buckets, cost: int, now: int) -> Decision:
        """Find the window that takes longest to admit the request."""
        data = self._data
        longest = (-1, 0)
        decision = None
        for bucket in buckets:
            record = self._records.get(bucket.key)
            i = _HEAD + (self._find_overflow(bucket) if record is None else record)
            for amount, length in bucket.windows:
                end, previous, current = data[i : i + _WINDOW]
                i += _WINDOW
                left = end - now
                if left <= 0:
                    previous, current, left = (current, 0, left + length) if left > -length else (0, 0, length)
                remaining = amount - current - previous * left // length
                if remaining >= cost:
                    continue
                patience = wait(amount - cost, previous, current, left, length)
                rank = (patience if cost <= amount else _ENDLESS, length)
                if rank > longest:
                    longest = rank
                    decision = Decision(False, bucket.policy, amount, length // 1000, max(0, remaining), patience / 1000)
        self._due += 1
        if self._due >= _INSPECTION:
            self._inspect(now)
        if decision is None:
            raise RuntimeError("no window refuses the request")
        return decision

    def _overflow_key(self, bucket: Bucket) -> str | None:
        """Name the record that counts a new key, None where it gets one of its own."""
        policy = self._policies.get(bucket.policy)
        size = 0 if policy is None else self._sizes[policy]
        if size < self._max_clients:
            return None
        lengths = ",".join([str(length) for _, length in bucket.windows])
        key = f"overflow/{bucket.policy}/{lengths}/{bucket.slot}"
        if key in self._records or size < self._max_records:
            return key
        return f"overflow/{bucket.policy}/{lengths}"

    def _find_overflow(self, bucket: Bucket) -> int:
        """Find the record that counts a key without one of its own, blank where it is still to be made."""
        key = self._overflow_key(bucket)
        return _BLANK if key is None else self._records.get(key, _BLANK)

    def _create(self, key: str, policy: str, size: int) -> int:
        if record := self._records.get(key):
            return record
        number = self._policies.setdefault(policy, len(self._policies))
        if number == len(self._sizes):
            self._sizes.append(0)
        self._sizes[number] += 1
        free = self._free.get(size)
        if free:
            record = free.pop()
        else:
            record = len(self._data)
            self._data.frombytes(bytes(8 * (_HEAD + _WINDOW * size)))
        self._data[record + 1] = number << _POLICY_SHIFT | size
        self._records[key] = record
        self._ring.append(record)
        self._keys[record] = key
        return record

    def _inspect(self, now: int) -> None:
        """Look at the records that are due and drop those whose windows have all run out."""
        due, self._due = self._due, 0
        ring = self._ring
        data = self._data
        hand = self._hand
        for _ in range(due):
            if hand >= len(ring):
                hand = 0
                if not ring:
                    break
            record = ring[hand]
            if data[record] > now:
                hand += 1
                continue
            self._drop(record)
            # The last one takes the place of the dropped one, and is looked at next.
            last = ring.pop()
            if hand < len(ring):
                ring[hand] = last
        self._hand = hand

    def _drop(self, record: int) -> None:
        del self._records[self._keys.pop(record)]
        number, size = divmod(self._data[record + 1], 1 << _POLICY_SHIFT)
        self._sizes[number] -= 1
        for i in range(record, record + _HEAD + _WINDOW * size):
            self._data[i] = 0
        self._free.setdefault(size, []).append(record)

    # What limits' own strategies ask of a storage: a sliding window is a bucket with one window, a fixed window is one whose
    # previous count stays zero.

    @property
    def base_exceptions(self) -> type[Exception]:
        """Nothing that counting raises is an error of the storage."""
        return ValueError

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count `amount` in the sliding window of `expiry` seconds, or nothing."""
        limits = (RateLimitItemPerSecond(limit, expiry),)
        decision = self.consume_now((Bucket(_sliding_key(key, expiry), "limits", "limits", limits),), amount)
        return decision is not None and decision.admitted

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Give the previous count, the seconds until it is gone, the current count, and the seconds until that is gone."""
        record = self._records.get(_sliding_key(key, expiry), _BLANK)
        end, previous, current = self._data[record + _HEAD : record + _HEAD + _WINDOW]
        length = expiry * 1000
        left = end - self._clock() // 1_000_000
        if left <= 0:
            previous, current, left = (current, 0, left + length) if left > -length else (0, 0, 0)
        return previous, left / 1000 if previous else 0.0, current, (left + length) / 1000 if left else 0.0

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget what was counted."""
        await self.clear(_sliding_key(key, expiry))

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count `amount` in the fixed window that the first count began, `expiry` seconds long."""
        now = self._clock() // 1_000_000
        record = self._create(key, "limits", 1)
        if self._data[record] <= now:
            self._data[record] = self._data[record + _HEAD] = now + expiry * 1000
            self._data[record + _HEAD + 2] = 0
        self._data[record + _HEAD + 2] += amount
        self._due += 3
        if self._due >= _INSPECTION:
            self._inspect(now)
        return self._data[record + _HEAD + 2]

    async def get(self, key: str) -> int:
        """Give the count of a fixed window."""
        record = self._records.get(key, _BLANK)
        return self._data[record + _HEAD + 2] if self._data[record] > self._clock() // 1_000_000 else 0

    async def get_expiry(self, key: str) -> float:
        """Give the end of a fixed window, seconds since the epoch."""
        left = self._data[self._records.get(key, _BLANK)] / 1000 - self._clock() / 1_000_000_000
        return time.time() + max(0.0, left)

    async def check(self) -> bool:
        """Say that memory is there."""
        return True

    async def reset(self) -> int | None:
        """Forget all counts, and say how many keys there were."""
        count = len(self)
        self._clear()
        return count

    async def clear(self, key: str) -> None:
        """Forget the count of a key."""
        if record := self._records.get(key):
            # One window, of which nothing is left: the record goes with the next inspections.
            for i in range(record + _HEAD, record + _HEAD + _WINDOW):
                self._data[i] = 0
            self._data[record] = 0


def _sliding_key(key: str, expiry: int) -> str:
    return f"{key}/{expiry}"
