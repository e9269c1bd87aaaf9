"""
The sliding-window counter, as the `limits` library defines it, in whole milliseconds.

A window of length w knows how many requests came while it has been in progress (current) and how many in the one before
(previous). A request is admitted if

    floor(previous * left / w) + current + cost <= limit

where left is the time until the window in progress ends, so that the previous window fades out. The first request of a key
starts its window; w later the window in progress becomes the previous one, and 2w later nothing is left of it.

The memory storage (`memory.py`) and the Redis storage (`consume.lua`) write this arithmetic out, each where its hot path
needs it, with the same integers; the tests hold both to one reference.
"""


def wait(room: int, previous: int, current: int, left: int, length: int) -> int:
    """
    Say when a refused request would pass, if nobody else came.

    The usage of a window that nobody uses only falls, so there is one earliest moment.

    Args:
        room: requests that may be in the window for the request to pass: its limit less the request's cost.
        previous: requests in the window before the one in progress.
        current: requests in the window in progress.
        left: milliseconds until the window in progress ends, 1 to `length`.
        length: milliseconds.

    Returns:
        Milliseconds until the request passes; the window's length where it never does.
    """
    if room < 0:
        return length
    if current <= room:
        # 1. The previous window fades until it leaves enough room: the longest rest r with floor(previous * r / length) <=
        #    room - current.
        return left - ((room - current + 1) * length - 1) // previous
    # 2. The window in progress has to end, and then to fade itself.
    return left + length - ((room + 1) * length - 1) // current
