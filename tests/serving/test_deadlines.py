"""The time that a client has for a head, for a body, and between requests."""

import time
from collections.abc import Callable

import pytest

from ..support import wait_until
from .support import CHUNKED, GET, LAZY, App, Server, Wire, assert_refused, post


@pytest.mark.parametrize("data", [b"", b"\r\n", b"GET", b"GET / HTTP/1.1\r\nHost: a\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r"])
def test_slow_first_head(server: Server, data: bytes) -> None:
    start = time.monotonic()
    assert_refused(server.talk(data), 408)
    assert 0.25 < time.monotonic() - start < 8


def test_dripping_head(server: Server) -> None:
    start = time.monotonic()
    assert_refused(server.talk(*[b"G", b"E", b"T", b" ", *[b"/"] * 60], pause=0.02), 408)
    assert time.monotonic() - start < 8


def test_stalled_body(server: Server) -> None:
    assert_refused(server.talk(post(b"Content-Length: 5", body=b"he")), 408)
    wait_until(lambda: server.app.disconnects >= 1)


def test_head_has_ten_seconds_from_its_first_byte(connect: Callable[..., Wire]) -> None:
    wire = connect().after(9).send(GET).after(4)
    assert not wire.ended
    wire.send(b"G").after(5).send(b"E").after(4.9)
    assert not wire.ended
    wire.after(0.2)
    assert wire.statuses() == [200, 408]
    assert wire.ended


def test_pipelined_head_has_its_time_when_it_is_its_turn(connect: Callable[..., Wire], app: App) -> None:
    LAZY.clear()
    wire = connect().send(b"GET /lazy HTTP/1.1\r\nHost: a\r\n\r\nGET / HT").after(60)
    assert not wire.ended
    LAZY.set()
    wire.after(9)
    assert not wire.ended
    wire.after(2)
    assert wire.statuses() == [200, 408]


def test_idle_connection_is_closed_without_a_word(connect: Callable[..., Wire]) -> None:
    wire = connect().send(GET).after(4)
    wire.send(GET).after(4.9)
    assert not wire.ended
    wire.after(0.2)
    assert wire.ended
    assert wire.statuses() == [200, 200]


def test_long_answer_has_no_deadline(connect: Callable[..., Wire], app: App) -> None:
    LAZY.clear()
    wire = connect().send(b"GET /lazy HTTP/1.1\r\nHost: a\r\n\r\n").after(1000)
    assert not wire.ended
    LAZY.set()
    assert wire.settle().statuses() == [200]


def test_body_stalls(connect: Callable[..., Wire], app: App) -> None:
    wire = connect().send(post(b"Content-Length: 10", body=b"hello")).after(29.9)
    assert not wire.ended
    wire.after(0.2)
    assert_refused(wire.transport.written, 408)
    assert app.disconnects == 1


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(("rate", "refused"), [(1100, False), (1000, True)])
def test_rate_of_a_body(connect: Callable[..., Wire], app: App, rate: int, refused: bool, chunked: bool) -> None:
    wire = connect().send(post(*CHUNKED) if chunked else post(b"Content-Length: %d" % (rate * 300)))
    for _ in range(300):
        if not wire.ended:
            wire.after(1).send(b"%x\r\n%b\r\n" % (rate, b"x" * rate) if chunked else b"x" * rate)
    if chunked and not wire.ended:
        wire.send(b"0\r\n\r\n")
    assert wire.statuses() == [408 if refused else 200]


def test_speed_of_the_past_buys_no_stall(connect: Callable[..., Wire]) -> None:
    wire = connect().send(post(b"Content-Length: 100000000", body=b"x" * 10_000_000)).after(61)
    assert_refused(wire.transport.written, 408)


def test_framing_counts_as_nothing(connect: Callable[..., Wire]) -> None:
    wire = connect().send(post(*CHUNKED))
    for _ in range(31):
        wire.after(1).send(b"1;" + b"x" * 1000 + b"\r\nx\r\n")
    assert wire.statuses() == [408]


def test_time_in_which_the_app_takes_nothing_is_not_the_clients(connect: Callable[..., Wire], app: App) -> None:
    LAZY.clear()
    wire = connect().after(1).send(post(b"Content-Length: 200000", path=b"/lazy")).after(20).send(b"x" * 100_000)
    assert wire.transport.paused
    wire.after(1000)
    assert not wire.ended
    LAZY.set()
    wire.settle()
    assert not wire.transport.paused
    wire.after(9).send(b"x" * 90_000).after(29)  # 29 seconds of reading, then a new window
    assert not wire.ended
    wire.send(b"x" * 10_000)
    assert wire.statuses() == [200]


def test_time_before_100_continue_is_not_the_clients(connect: Callable[..., Wire], app: App) -> None:
    LAZY.clear()
    wire = connect().send(post(b"Content-Length: 5", b"Expect: 100-continue", path=b"/lazy")).after(1000)
    assert not wire.ended
    LAZY.set()
    assert wire.settle().statuses() == [100]
    wire.after(29)
    assert not wire.ended
    wire.after(2)
    assert wire.statuses() == [100, 408]


def test_slow_body_under_an_answer_that_has_begun_just_ends(connect: Callable[..., Wire], app: App) -> None:
    wire = connect().send(post(b"Content-Length: 10", path=b"/begun", body=b"hello")).after(31)
    assert wire.ended
    assert wire.transport.written.endswith(b"5\r\nbegun\r\n")
    assert app.disconnects == 1


def test_slow_body_after_its_answer_just_ends(connect: Callable[..., Wire]) -> None:
    wire = connect().send(post(b"Content-Length: 10", path=b"/early", body=b"hello")).after(31)
    assert wire.ended
    assert wire.statuses() == [401]


def test_refused_client_is_waited_for_two_seconds(connect: Callable[..., Wire]) -> None:
    wire = connect().send(b"\0").after(1)
    assert wire.transport.eof
    assert not wire.transport.closed
    wire.send(GET * 100_000).after(1.1)
    assert wire.transport.closed
    assert wire.statuses() == [400]


def test_no_timer_per_segment(connect: Callable[..., Wire]) -> None:
    wire = connect()
    armed = []
    call_at = wire.loop.call_at
    wire.loop.call_at = lambda *args, **kwargs: armed.append(args) or call_at(*args, **kwargs)  # type: ignore[assignment]
    try:
        wire.send(post(b"Content-Length: 100000"))
        for _ in range(1000):
            wire.send(b"x" * 100)
        wire.send(GET * 100)
        for _ in range(100):
            wire.settle()
    finally:
        del wire.loop.call_at  # type: ignore[method-assign]
    assert len(wire.statuses()) == 101
    assert len(armed) <= 2
