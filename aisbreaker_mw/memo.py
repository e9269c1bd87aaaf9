"""A bounded memo: remembers results, and forgets those that are not used."""

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


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
        if len(self) >= self._half and key not in self:
            self._older = dict(self)
            self.clear()
        self[key] = value

    def forget(self, key: K) -> None:
        """Forget a value, if it is remembered."""
        self.pop(key, None)
        self._older.pop(key, None)
