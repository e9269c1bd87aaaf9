"""Spans of time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisbreaker_mw.durations import format_span, parse_span, parse_timeout

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}

MALFORMED = [
    "",
    "0s",
    "000d",
    "-1d",
    "+1d",
    "1",
    "d",
    "1.5h",
    "1e3s",
    "1 d",
    " 1d",
    "1d ",
    "1d\n",
    "1D",
    "1mo",
    "1h30m",
    "12345678901s",
    "\u0661d",
    "²d",
    "1_0d",
    "0x1d",
    "infd",
    "nan",
]


@pytest.mark.parametrize("unit", SECONDS)
@given(count=st.integers(1, 9_999_999_999))
def test_a_span_is_a_count_of_a_unit(unit: str, count: int) -> None:
    assert parse_span(f"{count}{unit}") == count * SECONDS[unit]
    assert parse_timeout(f"{count}{unit}") == count * SECONDS[unit]
    assert parse_span(format_span(count * SECONDS[unit])) == count * SECONDS[unit]


def test_leading_zeros_count_for_nothing() -> None:
    assert parse_span("007d") == 7 * 86_400


@pytest.mark.parametrize("text", [*MALFORMED, "5ms"], ids=ascii)
def test_a_malformed_span_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be a positive integer and one of s m h d w y, like 2h$"):
        parse_span(text)


@pytest.mark.parametrize(("text", "seconds"), [("1ms", 0.001), ("250ms", 0.25), ("60000ms", 60.0)])
def test_a_timeout_may_be_in_milliseconds(text: str, seconds: float) -> None:
    assert parse_timeout(text) == seconds


@pytest.mark.parametrize(
    "text", [*MALFORMED, "0ms", "ms", "-5ms", "1.5ms", " 5ms", "5 ms", "\u0665ms", "12345678901ms"], ids=ascii
)
def test_a_malformed_timeout_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be a positive integer and one of (ms )?s m h d w y, like "):
        parse_timeout(text)
