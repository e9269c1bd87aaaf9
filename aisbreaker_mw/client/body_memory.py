"""The memory for request bodies that are held, shared fairly between clients and between tokens."""

import asyncio
from collections import Counter

from .exchange import Asker

__all__ = ["BodyMemory", "HeldBytes", "ReadAhead"]


class BodyMemory:
    """
    The memory of this process for request bodies that are held: read ahead, read for their engine, signed, or kept for a retry.

    A client may hold more while it holds at most `fair_share` times what is left, and so may a token.

    Args:
        limit: most bytes of all of them.
        fair_share: most bytes held for each byte that is left, by one client or token.
    """

    __slots__ = ("_fair_share", "_held", "_reserve", "left")

    def __init__(self, limit: int, fair_share: int = 4) -> None:
        self.left = limit
        self._fair_share = fair_share
        self._reserve = limit // 2
        self._held: Counter[str] = Counter()
        """Bytes by client and by token. An address is no token's name."""

    def admits(self, asker: Asker, size: int) -> bool:
        """Return whether somebody may hold more bytes."""
        left = self.left - size
        return left >= 0 and all(self._held[name] + size <= self._fair_share * left for name in asker if name is not None)

    def admits_ahead(self, asker: Asker) -> bool:
        """Return whether somebody may read ahead. That leaves half to bodies that have to be held."""
        return self.left > self._reserve and self.admits(asker, 0)

    def count(self, asker: Asker, size: int) -> None:
        """Count bytes that somebody holds from now on, or, if negative, no longer."""
        self.left -= size
        for name in asker:
            if name is not None:
                self._held[name] += size
                if not self._held[name]:
                    del self._held[name]


class HeldBytes:
    """
    The bytes that one request holds. They are given back when the request's body is freed.

    Args:
        memory: bounds them, with those of the other requests.
        asker: who holds them.
    """

    __slots__ = ("_asker", "_memory", "_size")

    def __init__(self, memory: BodyMemory, asker: Asker) -> None:
        self._memory = memory
        self._asker = asker
        self._size = 0

    def grow(self, size: int) -> bool:
        """Hold more bytes. Return False, and hold no more, where there is no room."""
        if not self._memory.admits(self._asker, size):
            return False
        self._memory.count(self._asker, size)
        self._size += size
        return True

    def __del__(self) -> None:
        self._memory.count(self._asker, -self._size)


class ReadAhead:
    """
    The state of one body that is received before anybody takes it.

    Args:
        memory: bounds it, with the other bodies.
        asker: who holds it.
    """

    __slots__ = ("_asker", "_memory", "changed", "client_gone", "failure", "held")

    def __init__(self, memory: BodyMemory, asker: Asker) -> None:
        self._memory = memory
        self._asker = asker
        self.held = 0
        """Bytes counted in the memory."""
        self.changed = asyncio.Event()
        self.client_gone = False
        self.failure: Exception | None = None
        """Error of receiving, for whoever takes the body."""

    @property
    def has_room(self) -> bool:
        """Whether more may be read ahead."""
        return self._memory.admits_ahead(self._asker)

    def count(self, size: int) -> None:
        """Count bytes that are held from now on, or, if negative, no longer."""
        size = max(size, -self.held)  # more was collected before, or kept for a retry
        self.held += size
        self._memory.count(self._asker, size)
        self.changed.set()
