"""The slots of one origin, shared fairly between clients and between tokens, without I/O but the waits for one."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeAlias

import httpx

Asker: TypeAlias = tuple[str | None, str | None]
"""Who holds a slot: the client, and the token's `jti`. None stands for nobody who could hold too many."""

NOBODY: Asker = (None, None)

FAIR_SHARE = 4
RESERVE = 20
"""The last one in so many slots, at least one, is for those that hold none."""


class _Turns(dict[str | None, dict[asyncio.Future[None], Asker]]):
    """Waits by client. The client whose turn is next comes first."""

    def add(self, turn: "asyncio.Future[None]", asker: Asker) -> None:
        """Add a wait behind the others of its client."""
        self.setdefault(asker[0], {})[turn] = asker

    def remove(self, turn: "asyncio.Future[None]", asker: Asker) -> bool:
        """Take a wait out, and return whether it was here."""
        turns = self.get(asker[0], {})
        found = turns.pop(turn, None) is not None
        if found and not turns:
            del self[asker[0]]
        return found

    def take_turn(self, turn: "asyncio.Future[None]", asker: Asker) -> None:
        """Take a wait out, and put its client behind the others."""
        self.remove(turn, asker)
        if turns := self.pop(asker[0], None):
            self[asker[0]] = turns


class Slots:
    """
    The slots of one origin. A slot stands for a connection in use, or for one that is being opened.

    A client may take another slot while it holds fewer than `fair_share` times the free ones, and so may a token. The last
    twentieth of the slots is for those that hold none. Whoever may take none waits. Clients that wait have turns.

    Nobody is limited while few slots are in use (`relaxed`), because then nobody can hold too many. So nothing is counted until
    that changes. `taken` is then counted once, and each change after that.

    Args:
        limit: number of slots.
        fair_share: most slots held for each free one, at which one more can be taken.
    """

    __slots__ = (
        "_clients",
        "_fair_share",
        "_few",
        "_parked",
        "_reserve",
        "_tokens",
        "_waiting",
        "counted",
        "limit",
        "relaxed",
        "taken",
    )

    def __init__(self, limit: int, fair_share: int = FAIR_SHARE) -> None:
        self.limit = limit
        self._fair_share = fair_share
        self._reserve = max(1, limit // RESERVE)
        self._few = self.relaxed = min(limit - self._reserve, limit * fair_share // (fair_share + 1))
        """Slots in use below which nobody is limited: held <= in use < fair_share * free. 0 while the slots are counted."""
        self.taken: dict[object, Asker] = {}
        """The slots in use: what each is used for, and by whom."""
        self.counted = False
        """Whether `_clients` and `_tokens` are kept."""
        self._clients: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._waiting = _Turns()
        self._parked: dict[str, _Turns] = {}
        """Waits whose tokens hold too many, by token, so that any number of them is not looked at for each slot."""

    @property
    def waited_for(self) -> bool:
        """Whether somebody waits for a slot."""
        return bool(self._waiting or self._parked)

    def take(self, use: object, asker: Asker) -> bool:
        """
        Take a slot, and return whether the asker may.

        Args:
            use: stands for the slot until it is freed.
            asker: who holds it.
        """
        taken = self.taken
        if len(taken) >= self.relaxed:
            if not self.counted:
                self._count()
            if not self._may_take(asker, self._most()):
                return False
        taken[use] = asker
        if self.counted:
            self._add(asker)
        return True

    def pass_on(self, use: object, successor: object) -> None:
        """Keep a slot for another use by the same asker."""
        self.taken[successor] = self.taken.pop(use)

    def free(self, use: object) -> None:
        """Give back a slot."""
        asker = self.taken.pop(use)
        if self.counted:
            self._subtract(asker)

    async def wait(self, use: object, asker: Asker, seconds: float | None) -> None:
        """
        Wait for a slot, and take it.

        Args:
            use: stands for the slot until it is freed.
            asker: who holds it.
            seconds: longest wait; None for any.

        Raises:
            httpx.PoolTimeout: there was none in time.
        """
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.add(turn, asker)
        timer = None if seconds is None else loop.call_later(seconds, _expire, turn)
        try:
            await turn
        except BaseException:
            if turn in self.taken:  # the slot was given, but its new owner is cancelled
                self.free(turn)
            else:
                self._forget(turn, asker)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        self.pass_on(turn, use)

    def end_waits(self, make_error: Callable[[], Exception]) -> None:
        """End every wait with an error."""
        groups = [self._waiting, *self._parked.values()]
        self._waiting, self._parked = _Turns(), {}
        for group in groups:
            for turns in group.values():
                for turn in turns:
                    if not turn.done():
                        turn.set_exception(make_error())

    # Counts

    def _count(self) -> None:
        self._clients = Counter(client for client, _ in self.taken.values() if client is not None)
        self._tokens = Counter(token for _, token in self.taken.values() if token is not None)
        self.counted = True
        self.relaxed = 0

    def _add(self, asker: Asker) -> None:
        client, token = asker
        if client is not None:
            self._clients[client] += 1
        if token is not None:
            self._tokens[token] += 1

    def _subtract(self, asker: Asker) -> None:
        for held, name in zip((self._clients, self._tokens), asker, strict=True):
            if name is not None:
                held[name] -= 1
                if not held[name]:
                    del held[name]
        if self._waiting or self._parked:
            self._give()
        elif len(self.taken) < self._few // 2:  # far below, so that it does not begin anew at once
            self.counted = False
            self.relaxed = self._few
            self._clients, self._tokens = Counter(), Counter()

    def _most(self) -> int:
        """Return how many slots somebody holds at least who may not take one."""
        free = self.limit - len(self.taken)
        return min(1, free) if free <= self._reserve else self._fair_share * free

    def _may_take(self, asker: Asker, most: int) -> bool:
        client, token = asker
        # A Counter adds no name that is only asked for.
        return (self._clients[client] if client is not None else 0) < most and (
            self._tokens[token] if token is not None else 0
        ) < most

    # Turns

    def _give(self) -> None:
        """Give free slots to those that wait, to each client in turn."""
        while (most := self._most()) > 0 and (turn := self._next(most)) is not None:
            turn.set_result(None)

    def _next(self, most: int) -> "asyncio.Future[None] | None":
        """Take a slot for the next that may have one."""
        self._unpark(most)
        found, parked = None, []
        for turn, asker in self._in_turn(self._waiting, most):
            token = asker[1]
            if token is None or self._tokens[token] < most:
                found = turn, asker
                break
            parked.append((turn, asker, token))
        for turn, asker, token in parked:
            self._waiting.remove(turn, asker)
            self._parked.setdefault(token, _Turns()).add(turn, asker)
        if found is None:
            return None
        turn, asker = found
        self._waiting.take_turn(turn, asker)
        self.taken[turn] = asker
        self._add(asker)
        return turn

    def _unpark(self, most: int) -> None:
        """Let one wait of each token that may take a slot again wait with the others."""
        for token in [token for token in self._parked if self._tokens[token] < most]:
            turns = self._parked[token]
            for turn, asker in self._in_turn(turns, most):
                turns.take_turn(turn, asker)
                self._waiting.add(turn, asker)
                break
            if not turns:
                del self._parked[token]

    def _in_turn(self, group: _Turns, most: int) -> "Iterator[tuple[asyncio.Future[None], Asker]]":
        """Yield the waits of clients that may take a slot, in turn."""
        for client, turns in group.items():
            if client is None or self._clients[client] < most:
                for turn, asker in turns.items():
                    if not turn.done():
                        yield turn, asker

    def _forget(self, turn: "asyncio.Future[None]", asker: Asker) -> None:
        token = asker[1]
        if not self._waiting.remove(turn, asker) and token is not None and token in self._parked:
            self._parked[token].remove(turn, asker)
            if not self._parked[token]:
                del self._parked[token]


def _expire(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_exception(httpx.PoolTimeout("no connection to the upstream became free in time"))
