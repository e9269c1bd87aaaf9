"""Keep-alive, pipelining, upgrades, expectations, and responses that come before the body's end."""

import socket
from collections.abc import Callable

import pytest

from .support import CHUNKED, GET, GET_CLOSE, App, Server, Wire, parse, post, read_all, read_one


def test_keep_alive(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        for n in range(3):
            client.sendall(post(b"Content-Length: %d" % n, body=b"x" * n))
            assert read_one(client).body == b"%d bytes" % n
        client.sendall(GET_CLOSE)
        assert parse(read_all(client))[0].values(b"connection") == [b"close"]


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    requests = post(b"Content-Length: 3", body=b"abc") + GET + post(*CHUNKED, body=b"2\r\nde\r\n0\r\n\r\n") + GET_CLOSE + GET
    answers = parse(server.talk(requests), "POST", "GET", "POST", "GET")
    assert [answer.body for answer in answers] == [b"3 bytes", b"0 bytes", b"2 bytes", b"0 bytes"]
    assert [seen.body for seen in server.app.seen] == [b"abc", b"", b"de", b""]


def test_thousand_pipelined_requests(server: Server) -> None:
    answers = parse(server.talk(GET * 1000 + GET_CLOSE))
    assert [answer.body for answer in answers] == [b"0 bytes"] * 1001


def test_one_request_at_a_time_is_read(connect: Callable[..., Wire], app: App) -> None:
    wire = connect().send(b"GET /waits HTTP/1.1\r\nHost: a\r\n\r\n").send(GET * 4000)
    assert wire.transport.paused
    assert len(app.seen) == 1
    wire.protocol.connection_lost(None)
    wire.settle()
    assert app.disconnects == 1  # the app in flight learns of the end, whatever is queued behind it


def test_pipelined_request_does_not_inherit_context(server: Server) -> None:
    request = b"GET /context HTTP/1.1\r\nHost: a\r\n"
    raw = server.talk((request + b"\r\n") * 3 + request + b"Connection: close\r\n\r\n")
    assert [answer.body for answer in parse(raw)] == [b"clean"] * 4


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.3", b"foo, h2c"])
@pytest.mark.parametrize("pause", [0.0, 0.02], ids=["one segment", "body later"])
def test_upgrade_is_ignored(server: Server, upgrade: bytes, pause: float) -> None:
    """RFC 9110, 7.8: "A server MAY ignore a received Upgrade header field"."""
    body = b"GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n"
    settings = b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"
    options = b"Connection: Upgrade, HTTP2-Settings"
    head = post(options, b"Upgrade: " + upgrade, settings, b"Content-Length: %d" % len(body))
    raw = server.talk(head, body + GET_CLOSE, pause=pause) if pause else server.talk(head + body + GET_CLOSE)
    assert [answer.status for answer in parse(raw, "POST", "GET")] == [200, 200]
    assert [seen.body for seen in server.app.seen] == [body, b""]


def test_expect_100_continue(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(post(b"Content-Length: 5", b"Expect: 100-continue"))
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello" + GET_CLOSE)
        assert [answer.body for answer in parse(read_all(client), "POST", "GET")] == [b"5 bytes", b"0 bytes"]


@pytest.mark.parametrize(
    ("headers", "version", "body", "statuses"),
    [
        pytest.param((b"Expect: 100-continue",), b"1.0", b"hello", [200], id="ignored in HTTP/1.0"),
        pytest.param((b"Expect: 100-Continue",), b"1.1", b"hello", [200], id="not sent when the body is there"),
        pytest.param((b"Expect: a-pony",), b"1.1", b"hello", [200], id="unknown expectation"),
    ],
)
def test_no_100_continue(
    connect: Callable[..., Wire], headers: tuple[bytes, ...], version: bytes, body: bytes, statuses: list[int]
) -> None:
    wire = connect().send(post(*headers, b"Content-Length: 5", version=version, body=body))
    assert wire.statuses() == statuses


def test_answer_without_100_continue_closes(connect: Callable[..., Wire], app: App) -> None:
    """Nobody knows whether what comes next is the body."""
    wire = connect().send(post(b"Content-Length: 5", b"Expect: 100-continue", path=b"/early"))
    (answer,) = parse(wire.transport.written)
    assert (answer.status, answer.values(b"connection")) == (401, [b"close"])
    assert wire.ended
    wire.send(GET)
    assert wire.statuses() == [401]


def test_early_answer_lets_the_client_finish_and_go_on(connect: Callable[..., Wire], app: App) -> None:
    wire = connect().send(post(b"Content-Length: 10", path=b"/early", body=b"hello"))
    assert wire.statuses() == [401]
    wire.send(b"worldGET / HTTP/1.1\r\n").send(b"Host: a\r\n\r\n")
    assert wire.statuses() == [401, 200]
    assert [seen.body for seen in app.seen] == [b""]


def test_early_answer_that_closes_is_not_lost(server: Server) -> None:
    """A client that still sends would lose the answer to a reset, were the connection just closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(post(b"Content-Length: 100000000", path=b"/early-close", body=b"x" * 100_000))
        for _ in range(20):
            client.sendall(b"x" * 100_000)
        (answer,) = parse(read_all(client), "POST")
    assert (answer.status, answer.body) == (413, b"early")
