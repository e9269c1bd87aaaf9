"""The wait for room in a sliding window, at the edge between its two cases."""

import pytest

from aisbreaker_mw.quotas.sliding import wait


def first_pass(room: int, previous: int, current: int, left: int, length: int) -> int:
    """Milliseconds until the request passes, found by trying each."""
    for passed in range(2 * length + 1):
        if passed < left:
            weighed = previous * (left - passed) // length + current
        else:
            weighed = current * max(0, left + length - passed) // length
        if weighed <= room:
            return passed
    raise AssertionError("it never passes")


@pytest.mark.parametrize("room", range(12))
@pytest.mark.parametrize("current", range(12))
def test_the_wait_is_the_first_time_at_which_the_request_passes(room: int, current: int) -> None:
    for left in (1, 7, 50, 60):
        if first_pass(room, 10, current, left, 60) > 0:
            assert wait(room, 10, current, left, 60) == first_pass(room, 10, current, left, 60)
