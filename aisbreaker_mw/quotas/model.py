"""Buckets of windows, the decision about one request, and the protocol of a storage."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple, Protocol, TypeAlias

from limits import RateLimitItem

MAX_WINDOWS = 16
"""Most windows in one bucket."""

MAX_AMOUNT = 2**53 - 1
"""Highest limit that is counted exactly, in requests per window: the largest exact integer of a Lua number."""

Window: TypeAlias = tuple[int, int]
"""Requests per window, and the length of the window in milliseconds."""

PLAN_STEP = 32
"""A plan is a multiple of this plus the number of windows."""

_plans = itertools.count(1)


@lru_cache(maxsize=4096)
def _plan(windows: tuple[Window, ...]) -> int:
    """Return a number for windows: never the same for different ones, the same for equal ones until the cache forgets."""
    return PLAN_STEP * next(_plans) + len(windows)


@dataclass(frozen=True, slots=True)
class Bucket:
    """
    The windows that are counted under one key.

    Args:
        key: owner of the counters, at most 200 characters of printable ASCII. No two clients, tokens or scopes share a key. A
            key always has windows of the same lengths.
        slot: slot of a Redis Cluster; not empty. All buckets of a token share one, and all buckets of the server.
        policy: name of the bucket in the `RateLimit-Policy` header: `token`, `token-client`, `server`, `server-client`.
        limits: requests per window, shortest window first. At most one per window length, and 16 in all.

    Raises:
        ValueError: there are more than 16 windows.
    """

    key: str
    slot: str
    policy: str
    limits: tuple[RateLimitItem, ...]
    windows: tuple[Window, ...] = field(init=False, repr=False, compare=False)
    """The limits in the form that the storages count."""
    plan: int = field(init=False, repr=False, compare=False)
    """Number that only buckets with the same windows share. A storage compares it instead of the windows."""

    def __post_init__(self) -> None:
        if len(self.limits) > MAX_WINDOWS:
            raise ValueError(f"a bucket holds at most {MAX_WINDOWS} windows")
        windows = tuple([(min(item.amount, MAX_AMOUNT), item.get_expiry() * 1000) for item in self.limits])
        object.__setattr__(self, "windows", windows)
        object.__setattr__(self, "plan", _plan(windows))


class Decision(NamedTuple):
    """
    The decision about one request, and the window that decides.

    For an admitted request that is the window nearest its limit after the request, or the longer one of two equally near. For a
    refused request it is the refusing window that takes longest to admit it.
    """

    admitted: bool
    policy: str
    """Name of the window's bucket."""
    limit: int
    """Requests per window."""
    window: int
    """Length of the window, seconds."""
    remaining: int
    """Requests left in the window."""
    reset_after: float
    """
    Seconds. When admitted: until the window in progress ends. When refused: until the same request would be admitted if no
    other came. A request that costs more than the whole window never passes; for it this is the window's length.
    """


new_decision: Callable[[tuple[bool, str, int, int, int, float]], Decision] = partial(tuple.__new__, Decision)
"""
`Decision(*fields)` without the Python function that a named tuple has for that: 5 interpreted instructions instead of 22, once
per request.
"""


Buckets: TypeAlias = Sequence[Bucket]


class QuotaStorage(Protocol):
    """Counts all windows of a request in one step, or none."""

    async def consume(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """
        Count one request.

        Args:
            buckets: buckets that the request is counted in, no key twice.
            cost: requests that it takes from every window, at least 1.

        Returns:
            The decision, or None where there are no windows. A refused request changes no count.

        Raises:
            Exception: the storage did not reply. The kind depends on its client library.
        """

    async def aclose(self) -> None:
        """Close the connections."""
