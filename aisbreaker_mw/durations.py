"""Spans of time as people write them: an integer and a unit, such as `2h`."""

import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_SPAN = re.compile(r"([0-9]{1,10})([smhdwy])", re.ASCII)


def parse_span(text: str) -> int:
    """
    Return a span in seconds.

    Args:
        text: span such as `90s`, `15m`, `2h`, `365d`, `4w` or `1y` (365 days).

    Raises:
        ValueError: with a fixed text: anything else, zero included.
    """
    match = _SPAN.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not seconds:
        raise ValueError("must be a positive integer and one of s m h d w y, like 2h")
    return seconds


def format_span(seconds: int) -> str:
    """Return a span as `parse_span` takes it, in the largest unit that leaves no rest."""
    for unit in ("y", "w", "d", "h", "m"):
        if seconds % _SECONDS[unit] == 0:
            return f"{seconds // _SECONDS[unit]}{unit}"
    return f"{seconds}s"


def parse_timeout(text: str) -> float:
    """
    Return a span in seconds.

    Args:
        text: span as for `parse_span`, or in milliseconds, such as `250ms`.

    Raises:
        ValueError: with a fixed text: anything else, zero included.
    """
    if text.endswith("ms"):
        digits = text[:-2]
        if digits.isascii() and digits.isdigit() and 0 < len(digits) <= 10 and int(digits):
            return int(digits) / 1000
        raise ValueError("must be a positive integer and one of ms s m h d w y, like 5s")
    return float(parse_span(text))
