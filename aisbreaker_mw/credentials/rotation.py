"""Several secrets for one service: used in turn, and one that the service refuses rests."""

from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

from ..http1.fields import RawHeaders, get

LONGEST_REST = 3600.0
"""Seconds that a secret rests at most, whatever the service says."""
REST_AFTER_429 = 10.0
"""Seconds, where the service doesn't say after how many to try again."""
REST_AFTER_401 = 300.0
"""Seconds. A rejected secret may be good again: some services take a while until all of their servers know a new one."""


class Rotation:
    """
    Remembers whose turn it is, for each token and serviceId pattern, in this process.

    Args:
        clock: returns seconds since the epoch.
        max_entries: tokens and patterns that are remembered; the least recently used goes first.
    """

    def __init__(self, clock: Callable[[], float], *, max_entries: int = 10_000) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._states: OrderedDict[tuple[str, str], _State] = OrderedDict()

    def begin(self, jti: str, pattern: str, count: int) -> "Turn":
        """
        Return the turn of one request.

        Args:
            jti: the token's.
            pattern: of serviceIds, whose secrets these are.
            count: of secrets.
        """
        if count == 1:
            return Turn(_State(1), self._clock)
        key = (jti, pattern)
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = _State(count)
            if len(self._states) > self._max_entries:
                self._states.popitem(last=False)
        else:
            self._states.move_to_end(key)
        return Turn(state, self._clock)


class _State:
    """Of which secret it is the turn, and until when each one rests. Secrets are told by their index alone."""

    __slots__ = ("next", "resting_until")

    def __init__(self, count: int) -> None:
        self.next = 0
        self.resting_until = [0.0] * count


class Turn:
    """The secrets that one request tries, one after the other, as indexes."""

    __slots__ = ("_clock", "_current", "_state", "_tried")

    def __init__(self, state: _State, clock: Callable[[], float]) -> None:
        self._state = state
        self._clock = clock
        self._tried: set[int] = set()
        self._current = 0

    def take(self) -> int | None:
        """
        Return the next secret that neither rests nor was tried by this request; None when there is none.

        The first call always returns one: when all rest, the one that has rested soonest. The service's own answer tells the
        client more than one of ours could.
        """
        state, now = self._state, self._clock()
        count = len(state.resting_until)
        index: int
        for index in (*range(state.next, count), *range(state.next)):
            if index not in self._tried and state.resting_until[index] <= now:
                break
        else:
            if self._tried:
                return None
            index = state.resting_until.index(min(state.resting_until))
        state.next = (index + 1) % count
        self._tried.add(index)
        self._current = index
        return index

    def rest(self, status: int, headers: RawHeaders) -> None:
        """
        Let the secret that was taken last rest.

        Args:
            status: 401 or 429, of the service's answer.
            headers: of that answer, names in lower case.
        """
        now = self._clock()
        seconds = retry_after(headers, now)
        if seconds is None:
            seconds = REST_AFTER_429 if status == 429 else REST_AFTER_401
        self._state.resting_until[self._current] = now + min(seconds, LONGEST_REST)


def retry_after(headers: RawHeaders, now: float) -> float | None:
    """
    Return the seconds after which a service wants to be asked again, or None where it doesn't say.

    Args:
        headers: of its answer, names in lower case: `retry-after-ms` (OpenAI, Azure), else `retry-after` (RFC 9110, 10.2.3),
            in seconds or as a date.
        now: seconds since the epoch.
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
