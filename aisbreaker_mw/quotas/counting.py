"""
Counting in memory, written for speed.

The plain version is the rule of `sliding.py` over all windows of a request: see how much is left in each one; if every one has
room, add the cost to each. For twelve windows that takes 959 interpreted instructions and 7.8 microseconds. The version here
takes 359 and 2.2, because it reads and writes one number per bucket, however many windows that has (`records.py`).
"""

from collections.abc import Callable

from .model import MAX_AMOUNT, Bucket, Buckets, Decision, new_decision
from .records import BLANK, EXPIRY_SHIFT, FADING, HEAD, INSPECTION, LEADER, NO_TIME, POLICY, UNTIL_SHIFT, WINDOW, RecordTable
from .sliding import wait

_ENDLESS = 1 << 80
"""Longer than any wait. Stands for a request that can never pass."""


class WindowCounter:
    """
    Counts requests in the windows of their buckets.

    Args:
        max_clients: most keys, per policy, with a record of their own.
        clock: returns nanoseconds that never go back.
    """

    def __init__(self, max_clients: int, clock: Callable[[], int]) -> None:
        self._table = RecordTable(max_clients)
        self._clock = clock

    def consume_now(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """
        Count one request in all windows of its buckets, or in none; see `QuotaStorage.consume`.

        Nothing is awaited. A bucket whose leader is known takes the fast way: its room is read and lowered. Any other bucket
        has all of its windows looked at.

        Returns:
            The decision, or None where there are no windows.
        """
        now = self._clock() // 1_000_000
        if cost > MAX_AMOUNT and any(bucket.windows for bucket in buckets):
            return self._refuse(buckets, cost, now)  # it can't pass, and its cost would not fit into the array
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
                # The request is counted here, and given back if a bucket refuses. That saves a second loop.
                room = data[record] - cost
                data[record] = room
                if state & FADING and room <= least:
                    # The room is a lower bound here. This window may be the nearest, so compute the exact number.
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
            # Twice as many as were made, so that the inspection is faster than any growth.
            table.due += 2 * self._count_looked(looked, cost, now)
        if table.due >= INSPECTION:
            table.inspect(now)
        left = end - now if end else length
        return new_decision((True, nearest.policy, amount, length // 1000, least, left / 1000))

    def _look(self, bucket: Bucket, record: int, now: int) -> tuple[int, int, int]:
        """
        Find the leader of a bucket: the window nearest its limit, or the longer one of two equally near.

        The plain version is a minimum over `amount - current - previous * left // length`. Here the same loop steps to the
        windows in progress, and notes until when the leader is known, so that most requests need no loop.

        Args:
            bucket: a bucket with windows.
            record: record of the bucket's key, or blank.
            now: current time, milliseconds.

        Returns:
            The record that counts the bucket, its leader as in the head of a record, and the requests left in the leader.
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
                # The window in progress has ended: step to the next one. A request that is refused may take this step too. It
                # changes no count: the next request would take the same step.
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
            # A window begins with this request, if it is counted. The leader is noted at the next request, because many clients
            # come so seldom that a window ends before their next one.
            if record:
                data[record + 1] = 0
            return record, state, least

        until = min(data[record + HEAD : i : WINDOW])
        previous = data[leader + 1]
        if previous:
            # The leader surely leads while it has less left than its rival has now (the rival can only gain, as its previous
            # count fades too). That is while previous * left // longest >= enough.
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
        """Count a request in the buckets that were looked at. Returns the number of records made."""
        data = self._table.data
        created = 0
        for bucket, record in looked:
            if not record:
                created += 1
                record = self._table.create_for(bucket)
                if data[record + 3] > POLICY:
                    # It existed: another bucket of this request made it, or took the last place.
                    self._look(bucket, record, now)
            data[record] -= cost
            if data[record + 1]:
                continue  # all of its windows have begun
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
        """Take a request back from the buckets up to `last` that were not looked at, where it is already counted."""
        uncounted = [bucket.key for bucket, _ in looked]
        for bucket in buckets:
            if bucket.windows and bucket.key not in uncounted:
                self._table.data[self._table.records[bucket.key]] += cost
            if bucket is last:
                break

    def _refuse(self, buckets: Buckets, cost: int, now: int) -> Decision:
        """Return the decision of the window that takes longest to admit the request."""
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
