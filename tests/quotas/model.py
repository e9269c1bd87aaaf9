"""What the tests of the quotas share: buckets, a clock, and the rule once more, as short as it can be said."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerHour, RateLimitItemPerMinute

from aisbreaker_mw.quotas import Bucket, Buckets, Decision

_numbers = itertools.count()


def limits(minute: int | None = None, hour: int | None = None, day: int | None = None) -> tuple[RateLimitItem, ...]:
    items = (
        (RateLimitItemPerMinute, minute),
        (RateLimitItemPerHour, hour),
        (RateLimitItemPerDay, day),
    )
    return tuple(item(amount) for item, amount in items if amount is not None)


def bucket(key: str, minute: int | None = None, hour: int | None = None, day: int | None = None) -> Bucket:
    """A bucket of the token `key`: of the client `c` where the key is `token:c`."""
    token, _, client = key.partition(":")
    return Bucket(key, token, "token-client" if client else "token", limits(minute, hour, day))


def fresh(name: str = "token") -> str:
    """A key that no test has used."""
    return f"{name}{next(_numbers)}"


class Clock:
    """Nanoseconds that pass when told to."""

    def __init__(self, milliseconds: int = 1_700_000_000_000) -> None:
        self.milliseconds = milliseconds

    def __call__(self) -> int:
        # A rest below the millisecond, which nobody may count.
        return self.milliseconds * 1_000_000 + 999_999

    def pass_seconds(self, seconds: float) -> None:
        self.milliseconds += round(seconds * 1000)


@dataclass
class Reference:
    """The sliding-window counter: per key and window, when it began, the count before, the count now."""

    state: dict[tuple[str, int], tuple[int, int, int]] = field(default_factory=dict)

    def admits(self, buckets: Buckets, cost: int, now: int, *, count: bool = True) -> bool:
        after = {}
        for key, amount, length in windows(buckets):
            start, previous, current = self.progress(key, length, now)
            if usage(start, previous, current, length, now) + cost > amount:
                return False
            after[key, length] = (start, previous, current + cost)
        if count:
            self.state.update(after)
        return True

    def admitted(self, buckets: Buckets, cost: int, now: int) -> Decision:
        """What is said of a request that is admitted: of all windows the nearest its limit, of those the longest."""
        decisions = []
        for each in buckets:
            for _, amount, length in windows([each]):
                start, previous, current = self.progress(each.key, length, now)
                remaining = amount - usage(start, previous, current, length, now) - cost
                left = (start + length - now) / 1000
                decisions.append(Decision(True, each.policy, amount, length // 1000, remaining, left))
        return min(decisions, key=lambda decision: (decision.remaining, -decision.window))

    def progress(self, key: str, length: int, now: int) -> tuple[int, int, int]:
        """The window in progress: when it began, the count before, the count now."""
        start, previous, current = self.state.get((key, length), (now, 0, 0))
        if now >= start + 2 * length:
            return now, 0, 0
        if now >= start + length:
            return start + length, current, 0
        return start, previous, current


def usage(start: int, previous: int, current: int, length: int, now: int) -> int:
    return floor(previous * (1 - Fraction(now - start, length)) + current)


def windows(buckets: Buckets) -> Iterable[tuple[str, int, int]]:
    """Key, requests and milliseconds of every window."""
    for each in buckets:
        for item in each.limits:
            yield each.key, item.amount, item.get_expiry() * 1000
