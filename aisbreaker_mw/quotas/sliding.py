"""
The sliding-window counter, as the `limits` library defines it, in whole milliseconds.

A window of length w knows how many requests came while it has been in progress (current) and how many in the one before
(previous). A request is admitted if

    floor(previous * left / w) + current + cost <= limit

where left is the time until the window in progress ends. So the previous window fades out. The first request of a key starts
its window. After w the window in progress becomes the previous one; after 2w nothing is left of it.

The memory storage (`counting.py`) and the Redis storage (`consume.lua`) write this arithmetic out, with the same integers,
where their hot paths need it. The tests compare both with one reference.
"""


def wait(room: int, previous: int, current: int, left: int, length: int) -> int:
    """
    Return the time until a refused request would pass if no other came.

    The usage of a window only falls while no request comes, so there is one earliest moment.

    Args:
        room: most requests in the window with which the request passes: the limit less the request's cost.
        previous: requests in the window before the one in progress.
        current: requests in the window in progress.
        left: milliseconds until the window in progress ends, 1 to `length`.
        length: length of the window, milliseconds.

    Returns:
        Milliseconds until the request passes, or the window's length if it never does.
    """
    if room < 0:
        return length
    if current <= room:
        # 1. The previous window fades until there is enough room. The largest r with floor(previous * r / length) <=
        #    room - current is the time that may be left then.
        return left - ((room - current + 1) * length - 1) // previous
    # 2. The window in progress has to end, and then to fade in turn.
    return left + length - ((room + 1) * length - 1) // current
