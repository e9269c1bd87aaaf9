"""Rotation: several secrets for one service take turns, and one that the service rejects is paused."""

from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

from ..http1.fields import RawHeaders, get
from ..memo import Memo

LONGEST_PAUSE = 3600.0
"""Longest pause of a secret in seconds, whatever the service says."""
PAUSE_AFTER_429 = 10.0
"""Seconds, unless the service says when to retry."""
PAUSE_AFTER_401 = 300.0
"""Seconds. A rejected secret may work later: some services need a while until all of their servers know a new one."""


class Rotation:
    """
    Remembers the next secret, for each token and serviceId pattern, in this process.

    Args:
        clock: returns seconds since the epoch.
        max_entries: most pairs of token and pattern remembered.
    """

    def __init__(self, clock: Callable[[], float], *, max_entries: int = 10_000) -> None:
        self._clock = clock
        self._states: Memo[tuple[str, str], _State] = Memo(max_entries)

    def begin(self, jti: str, pattern: str, count: int) -> "Turn":
        """
        Return the turn of one request.

        Args:
            jti: the token's identifier.
            pattern: serviceId pattern that the secrets belong to.
            count: number of secrets.
        """
        if count == 1:
            return Turn(_State(1), self._clock)
        key = (jti, pattern)
        state = self._states[key]
        if state is None:
            state = _State(count)
            self._states.remember(key, state)
        return Turn(state, self._clock)


class _State:
    """The next secret, and until when each is paused. Secrets are indexes here."""

    __slots__ = ("next", "paused_until")

    def __init__(self, count: int) -> None:
        self.next = 0
        self.paused_until = [0.0] * count


class Turn:
    """The secrets, as indexes, that one request tries one after the other."""

    __slots__ = ("_clock", "_current", "_state", "_tried")

    def __init__(self, state: _State, clock: Callable[[], float]) -> None:
        self._state = state
        self._clock = clock
        self._tried: set[int] = set()
        self._current = 0

    def take(self) -> int | None:
        """
        Return the next secret that is neither paused nor tried by this request, or None.

        The first call always returns a secret. When all are paused, it is the one whose pause ends first: the service's own
        response tells the client more than ours could.
        """
        state, now = self._state, self._clock()
        count = len(state.paused_until)
        index: int
        for index in (*range(state.next, count), *range(state.next)):
            if index not in self._tried and state.paused_until[index] <= now:
                break
        else:
            if self._tried:
                return None
            index = state.paused_until.index(min(state.paused_until))
        state.next = (index + 1) % count
        self._tried.add(index)
        self._current = index
        return index

    def pause(self, status: int, headers: RawHeaders) -> None:
        """
        Pause the secret that was taken last.

        Args:
            status: status of the service's response, 401 or 429.
            headers: headers of that response, names in lower case.
        """
        now = self._clock()
        seconds = retry_after(headers, now)
        if seconds is None:
            seconds = PAUSE_AFTER_429 if status == 429 else PAUSE_AFTER_401
        self._state.paused_until[self._current] = now + min(seconds, LONGEST_PAUSE)


def retry_after(headers: RawHeaders, now: float) -> float | None:
    """
    Return the seconds until a service wants to be asked again, or None if it doesn't say.

    `retry-after-ms` (OpenAI, Azure) goes before `retry-after` (RFC 9110, 10.2.3), which holds seconds or a date.

    Args:
        headers: headers of the service's response, names in lower case.
        now: current time, seconds since the epoch.
    """
    milliseconds = get(headers, b"retry-after-ms")
    if milliseconds is not None and (seconds := _number(milliseconds)) is not None:
        return seconds / 1000
    value = get(headers, b"retry-after")
    if value is None:
        return None
    seconds = _number(value)
    if seconds is not None:
        return seconds
    try:
        date = parsedate_to_datetime(value.decode("latin-1"))
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _number(text: bytes) -> float | None:
    text = text.strip()
    # Some services send fractions of a second.
    return float(text) if len(text) <= 20 and text.replace(b".", b"", 1).isdigit() else None
