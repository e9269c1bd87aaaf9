"""Bounded memos: remember results, and forget those that are not used."""

from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

SWEEP_INTERVAL = 60.0
"""Seconds after which a `WeighedMemo` looks for expired values again."""


class Memo(dict[K, V | None]):
    """
    A bounded mapping. `memo[key]` returns a remembered value, or None.

    Values are kept in two generations. When the younger one is full, it becomes the older one, and the older one is forgotten.
    A value that is read in the older generation moves to the younger one. So the last `size // 2` keys that were used are
    always known, and values in use are not forgotten.

    A least-recently-used cache would have to reorder its entries on each hit. Here a hit in the younger generation is one
    dictionary look-up in C, because the memo is that generation itself. Only a miss runs Python code (`__missing__`). The other
    methods of dict see the younger generation alone.

    Args:
        size: most values remembered, at least 2.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._half = size // 2
        self._older: dict[K, V | None] = {}

    def __missing__(self, key: K) -> V | None:
        value = self._older.pop(key, None)
        if value is not None:
            self.remember(key, value)
        return value

    def remember(self, key: K, value: V) -> None:
        """Remember a value that is not None."""
        if len(self) >= self._half:
            self._older = dict(self)
            self.clear()
        self[key] = value

    def forget(self, key: K) -> None:
        """Forget a value, if it is remembered."""
        self.pop(key, None)
        self._older.pop(key, None)


class WeighedMemo(Memo[K, V]):
    """
    A memo that is bounded by weight, and whose values expire.

    A hit costs what it costs in `Memo`. Remembering weighs the value, and once a minute looks for values that have expired.

    Args:
        budget: most weight remembered, in the unit of `weigh`, such as bytes.
        weigh: returns the weight of a key and its value. What weighs more than half of the budget is not remembered.
        expiry: returns when a value expires, in the time of `clock`; None for never.
        clock: returns the time in seconds.
    """

    def __init__(
        self, budget: int, weigh: Callable[[K, V], int], expiry: Callable[[V], float | None], clock: Callable[[], float]
    ) -> None:
        super().__init__(budget)
        self._weigh = weigh
        self._expiry = expiry
        self._clock = clock
        self._weight = 0  # of the younger generation, or more where values were replaced or forgotten
        self._next_sweep = clock() + SWEEP_INTERVAL

    def remember(self, key: K, value: V) -> None:
        """Remember a value that is not None."""
        now = self._clock()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_INTERVAL
            self._sweep(now)
        weight = self._weigh(key, value)
        if weight > self._half:
            self.forget(key)
            return
        if self._weight + weight > self._half:
            self._older = dict(self)
            self.clear()
            self._weight = 0
        self[key] = value
        self._weight += weight

    def _sweep(self, now: float) -> None:
        for generation in (self, self._older):
            for key, value in list(generation.items()):
                expiry = None if value is None else self._expiry(value)
                if expiry is not None and expiry <= now:
                    del generation[key]
        self._weight = sum(self._weigh(key, value) for key, value in self.items() if value is not None)
