"""Quotas of one process, counted in its memory."""

import time
from collections.abc import Callable
from typing import Any

from limits import RateLimitItemPerSecond
from limits.aio.storage import SlidingWindowCounterSupport, Storage

from .model import MAX_AMOUNT, Bucket, Buckets, Decision
from .records import BLANK, EXPIRY_SHIFT, FADING, HEAD, INSPECTION, LEADER, NO_TIME, POLICY, UNTIL_SHIFT, WINDOW, RecordTable
from .sliding import wait

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
        self._clock = clock
        self._table = RecordTable(max_clients)

    def __len__(self) -> int:
        """Count the records, those that ran out and are not dropped yet included."""
        return len(self._table)

    async def consume(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """Count one request; see `QuotaStorage`. None where there are no windows."""
        return self.consume_now(buckets, cost)

    async def aclose(self) -> None:
        """Do nothing: there are no connections."""

    def consume_now(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """Count one request without waiting for anything; see `QuotaStorage`. None where there are no windows."""
        now = self._clock() // 1_000_000
        if cost > MAX_AMOUNT and any(bucket.windows for bucket in buckets):
            return self._refuse(buckets, cost, now)  # of no use to try, and what is counted at once has to fit into the array
        mark = now << UNTIL_SHIFT | NO_TIME
        table = self._table
        data = table.data
        find = table.records.get
        looked: list[tuple[Bucket, int]] = []
        least = _ENDLESS
        nearest: Bucket | None = None
        length = 0
        for bucket in buckets:
            record = find(bucket.key, BLANK)
            state = data[record + 1]
            if state > mark and data[record + 2] == bucket.plan:
                # Counted at once, and given back should a bucket refuse: less work than to count in a loop of its own.
                room = data[record] - cost
                data[record] = room
                if state & FADING and room <= least:
                    # At least so much is left; now that it may be the nearest, exactly how much.
                    window = state & LEADER
                    limit, duration = bucket.windows[window]
                    i = record + HEAD + WINDOW * window
                    room += limit - data[i + 2] - data[i + 1] * (data[i] - now) // duration
            elif bucket.windows:
                record, state, room = self._look(bucket, record, now)
                room -= cost
                looked.append((bucket, record))
            else:
                continue
            if room <= least and (room < least or bucket.windows[state & LEADER][1] > length):
                least = room
                nearest = bucket
                amount, length = bucket.windows[state & LEADER]
                end = data[record + HEAD + WINDOW * (state & LEADER)]
                if room < 0:
                    self._give_back(buckets, bucket, looked, cost)
                    return self._refuse(buckets, cost, now)
        if nearest is None:
            return None

        table.due += 1
        if looked:
            # Twice as many as were made, so that the inspection overtakes any growth.
            table.due += 2 * self._count_looked(looked, cost, now)
        if table.due >= INSPECTION:
            table.inspect(now)
        left = end - now if end else length
        # What Decision(...) does, without the Python function that a named tuple has for it.
        return tuple.__new__(Decision, (True, nearest.policy, amount, length // 1000, least, left / 1000))

    def _look(self, bucket: Bucket, record: int, now: int) -> tuple[int, int, int]:
        """
        Look at all windows of a bucket for the leader: the one nearest its limit, of two equally near the longer one.

        Args:
            bucket: has windows.
            record: of the bucket's key; blank where that has none.
            now: milliseconds.

        Returns:
            The record that counts the bucket, its leader as in the head of a record, and what the leader has left.
        """
        data = self._table.data
        if not record:
            record = self._table.find_overflow(bucket)
        room = data[record]
        fresh = False
        least = rival = _ENDLESS
        longest = leader = 0
        i = record + HEAD
        for amount, length in bucket.windows:
            left = data[i] - now
            current = data[i + 2] - room
            if left <= 0:
                # The window in progress ended. Of a request that is refused in the end nothing remains of this step: the
                # counts are the same whether it is taken now or at the next request.
                if left > -length and current:
                    data[i] += length
                    data[i + 1] = current
                    left += length
                else:
                    data[i] = data[i + 1] = 0
                    left = length
                data[i + 2] = room
                current = 0
            if not current:
                fresh = True
            remaining = amount - current
            previous = data[i + 1]
            if previous:
                remaining -= previous * left // length
            if remaining <= least and (remaining < least or length > longest):
                rival = least
                least = remaining
                longest = length
                leader = i
            elif remaining < rival:
                rival = remaining
            i += WINDOW

        state = (leader - record - HEAD) // WINDOW
        if fresh:
            # Some window begins with the request, if that is counted. The leader is noted at the next request: many clients
            # come so seldom that a window ends before.
            if record:
                data[record + 1] = 0
            return record, state, least

        until = min(data[record + HEAD : i : WINDOW])
        previous = data[leader + 1]
        if previous:
            # The leader leads for sure as long as it has less left than its rival now, whose previous count fades too. That is
            # as long as previous * left // longest >= enough.
            state |= FADING
            end = data[leader]
            enough = previous * (end - now) // longest + least - rival + 1
            if enough > 0:
                overtaken = end + enough * longest // -previous + 1
                if overtaken < until:
                    until = overtaken
        state |= until << UNTIL_SHIFT
        data[record + 1] = state
        data[record + 2] = bucket.plan
        shift = least - room
        if shift:
            data[record] = least
            for k in range(record + HEAD + 2, i, WINDOW):
                data[k] += shift
        return record, state, least

    def _count_looked(self, looked: list[tuple[Bucket, int]], cost: int, now: int) -> int:
        """Count a request in the buckets that were looked at, and say how many records were made for that."""
        data = self._table.data
        created = 0
        for bucket, record in looked:
            if not record:
                created += 1
                record = self._table.create_for(bucket)
                if data[record + 3] > POLICY:
                    # It was there before: another bucket of the request made it, or filled the last place.
                    self._look(bucket, record, now)
            data[record] -= cost
            if data[record + 1]:
                continue  # all its windows began before
            expiry = 0
            i = record + HEAD
            for _, length in bucket.windows:
                end = data[i]
                if not end:
                    data[i] = end = now + length
                if expiry < end + length:
                    expiry = end + length
                i += WINDOW
            data[record + 3] = expiry << EXPIRY_SHIFT | data[record + 3] & POLICY
        return created

    def _give_back(self, buckets: Buckets, last: Bucket, looked: list[tuple[Bucket, int]], cost: int) -> None:
        """Take a request out of what it was counted in at once: the buckets up to `last` without those that were looked at."""
        uncounted = [bucket.key for bucket, _ in looked]
        for bucket in buckets:
            if bucket.windows and bucket.key not in uncounted:
                self._table.data[self._table.records[bucket.key]] += cost
            if bucket is last:
                break

    def _refuse(self, buckets: Buckets, cost: int, now: int) -> Decision:
        """Find the window that takes longest to admit the request."""
        data = self._table.data
        longest = (-1, 0)
        decision = None
        for bucket in buckets:
            record = self._table.records.get(bucket.key) or self._table.find_overflow(bucket)
            room = data[record]
            i = record + HEAD
            for amount, length in bucket.windows:
                end, previous, base = data[i : i + WINDOW]
                current = base - room
                i += WINDOW
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
        self._table.due += 1
        if self._table.due >= INSPECTION:
            self._table.inspect(now)
        if decision is None:
            raise RuntimeError("no window refuses the request")
        return decision

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
        record = self._table.records.get(_sliding_key(key, expiry), BLANK)
        end, previous, base = self._table.data[record + HEAD : record + HEAD + WINDOW]
        current = base - self._table.data[record]
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
        """Give the count of a fixed window."""
        data = self._table.data
        record = self._table.records.get(key, BLANK)
        gone = data[record + 3] >> EXPIRY_SHIFT <= self._clock() // 1_000_000
        return 0 if gone else data[record + HEAD + 2] - data[record]

    async def get_expiry(self, key: str) -> float:
        """Give the end of a fixed window, seconds since the epoch."""
        end = self._table.data[self._table.records.get(key, BLANK) + 3] >> EXPIRY_SHIFT
        return time.time() + max(0.0, end / 1000 - self._clock() / 1_000_000_000)

    async def check(self) -> bool:
        """Say that memory is there."""
        return True

    async def reset(self) -> int | None:
        """Forget all counts, and say how many keys there were."""
        count = len(self)
        self._table = RecordTable(self._max_clients)
        return count

    async def clear(self, key: str) -> None:
        """Forget the count of a key."""
        if record := self._table.records.get(key):
            # One window, of which nothing is left: the record goes with the next inspections.
            data = self._table.data
            data[record + HEAD] = data[record + HEAD + 1] = 0
            data[record + HEAD + 2] = data[record]
            data[record + 1] = 0
            data[record + 3] &= POLICY


def _sliding_key(key: str, expiry: int) -> str:
    return f"{key}/{expiry}"
