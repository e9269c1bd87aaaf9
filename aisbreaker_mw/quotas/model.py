"""What quotas are made of: windows in buckets, and the decision about one request."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeAlias

from limits import RateLimitItem

MAX_WINDOWS = 16
"""Windows that one bucket may hold."""

MAX_AMOUNT = 2**53 - 1
"""Requests per window that are told apart from no limit: the integers that a Lua number holds."""

Window: TypeAlias = tuple[int, int]
"""Requests per window, and its length in milliseconds."""


PLAN_STEP = 32
"""A bucket's plan is a multiple of this, and its number of windows."""

_plans = itertools.count(1)


@lru_cache(maxsize=4096)
def _plan(windows: tuple[Window, ...]) -> int:
    """Number the windows: never two different ones alike, and equal ones alike unless they were forgotten in between."""
    return PLAN_STEP * next(_plans) + len(windows)


@dataclass(frozen=True, slots=True)
class Bucket:
    """
    The windows that are counted under one key.

    Args:
        key: whom the counters belong to, unique: no two clients, tokens or scopes ever share one. At most 200 characters of
            printable ASCII. A key always comes with windows of the same lengths.
        slot: what shares a slot of a Redis Cluster: all buckets of one token, or all buckets of the server. Not empty.
        policy: what the bucket is called in the `RateLimit-Policy` header: `token`, `token-client`, `server`,
            `server-client`.
        limits: requests per window, at most one per window length and 16 in all, shortest window first.

    Raises:
        ValueError: there are more than 16 windows.
    """

    key: str
    slot: str
    policy: str
    limits: tuple[RateLimitItem, ...]
    windows: tuple[Window, ...] = field(init=False, repr=False, compare=False)
    """The limits as the storages count them."""
    plan: int = field(init=False, repr=False, compare=False)
    """A number that only buckets with the same windows have, so that a storage can tell that they are the same."""

    def __post_init__(self) -> None:
        if len(self.limits) > MAX_WINDOWS:
            raise ValueError(f"a bucket holds at most {MAX_WINDOWS} windows")
        windows = tuple([(min(item.amount, MAX_AMOUNT), item.get_expiry() * 1000) for item in self.limits])
        object.__setattr__(self, "windows", windows)
        object.__setattr__(self, "plan", _plan(windows))

    def with_key(self, key: str) -> "Bucket":
        """Give the same windows to another key: four times as fast as a new bucket, and the windows are shared."""
        bucket = object.__new__(Bucket)
        assign = object.__setattr__
        assign(bucket, "key", key)
        assign(bucket, "slot", self.slot)
        assign(bucket, "policy", self.policy)
        assign(bucket, "limits", self.limits)
        assign(bucket, "windows", self.windows)
        assign(bucket, "plan", self.plan)
        return bucket


class Decision(NamedTuple):
    """
    The answer about one request, told by the window that decides.

    When admitted that is the window nearest its limit, counted after the request (of two equally near the longer one); when
    refused it is the one of the refusing windows that takes longest to admit the request.
    """

    admitted: bool
    policy: str
    """Name of the window's bucket."""
    limit: int
    """Requests per window."""
    window: int
    """Length of the window, seconds."""
    remaining: int
    """Requests left in the window now."""
    reset_after: float
    """Seconds: when refused, until the same request would be admitted if nobody else came (of a request that costs more than
    the whole window admits, which never passes, it is the window's length); when admitted, until the window in progress
    ends."""


Buckets: TypeAlias = Sequence[Bucket]


class QuotaStorage(Protocol):
    """Counts all windows of a request in one step, or none."""

    async def consume(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """
        Count one request.

        Args:
            buckets: everything that the request is counted in, at least one window in all, no key twice.
            cost: what the request takes out of every window, at least 1.

        Returns:
            The decision. A refused request has changed nothing.

        Raises:
            Exception: the storage did not answer; whatever its client library raises.
        """

    async def aclose(self) -> None:
        """Close the connections."""
