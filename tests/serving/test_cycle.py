"""How responses begin, are framed, and end."""

import pytest

from ..support import wait_until
from .support import GET_CLOSE, Server, assert_refused, parse


def test_answer_has_a_date_and_no_server(server: Server) -> None:
    (answer,) = parse(server.talk(GET_CLOSE))
    assert len(answer.values(b"date")) == 1
    assert answer.values(b"server") == []


def test_date_and_server_of_the_app_come_once(server: Server) -> None:
    (answer,) = parse(server.talk(b"GET /named HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
    assert answer.headers == [
        (b"content-length", b"5"),
        (b"date", b"upstream's"),
        (b"server", b"nginx"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
        (b"connection", b"close"),
    ]


def test_chunked_answer(server: Server) -> None:
    raw = server.talk(b"GET /chunked HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert raw.endswith(b"\r\n\r\n4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n")
    assert parse(raw)[0].body == b"one two three"


def test_answer_to_http_1_0_is_not_chunked(server: Server) -> None:
    raw = server.talk(b"GET /chunked HTTP/1.0\r\n\r\n")
    assert raw.endswith(b"\r\n\r\none two three")
    assert parse(raw)[0].values(b"transfer-encoding") == []
    assert parse(raw)[0].values(b"connection") == [b"close"]


@pytest.mark.parametrize(
    ("method", "path", "status", "length"),
    [
        pytest.param("HEAD", "/", 200, [b"7"], id="HEAD"),
        pytest.param("HEAD", "/chunked", 200, [], id="HEAD without a length"),
        pytest.param("GET", "/no-content", 204, [], id="204"),
        pytest.param("GET", "/not-modified", 304, [b"17"], id="304 with the length of the 200"),
    ],
)
def test_answer_without_a_body(server: Server, method: str, path: str, status: int, length: list[bytes]) -> None:
    line = f"{method} {path} HTTP/1.1\r\nHost: a\r\n".encode()
    raw = server.talk(line + b"\r\n" + line + b"Connection: close\r\n\r\n")
    first, second = parse(raw, method, method)
    assert (first.status, second.status) == (status, status)
    assert first.values(b"content-length") == length
    assert first.values(b"transfer-encoding") == []
    assert raw.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        pytest.param("/interrupted", False, id="interrupted"),
        pytest.param("/interrupted-in-group", False, id="interrupted in a task group"),
        pytest.param("/interrupted-with-length", False, id="interrupted with a length"),
        pytest.param("/crash-after-begin", True, id="crash"),
    ],
)
def test_cut_answer_looks_cut(server: Server, caplog: pytest.LogCaptureFixture, path: str, logged: bool) -> None:
    raw = server.talk(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    (answer,) = parse(raw)
    assert (answer.status, answer.body, answer.complete) == (200, b"half", False)
    wait_until(lambda: ("Exception in ASGI application" in caplog.text) is logged)


@pytest.mark.parametrize("path", ["/interrupted", "/crash-after-begin"])
def test_cut_answer_without_framing_is_reset(server: Server, path: str) -> None:
    with pytest.raises(ConnectionResetError):
        server.talk(f"GET {path} HTTP/1.0\r\n\r\n".encode())


@pytest.mark.parametrize("path", ["/crash", "/interrupted-before", "/splits", "/bad-name"])
def test_failure_before_the_answer_is_a_500(server: Server, caplog: pytest.LogCaptureFixture, path: str) -> None:
    assert_refused(server.talk(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()), 500)
    wait_until(lambda: "Exception in ASGI application" in caplog.text)


@pytest.mark.parametrize("path", ["/forgets", "/too-long", "/too-short"])
def test_answer_that_the_app_leaves_unfinished_looks_cut(server: Server, path: str) -> None:
    (answer,) = parse(server.talk(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()))
    assert (answer.status, answer.complete) == (200, False)


def test_an_app_may_answer_in_other_types(server: Server) -> None:
    (answer,) = parse(server.talk(b"GET /loose HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
    assert (answer.status, answer.body, answer.complete) == (201, b"loose", True)
    assert answer.values(b"x-a") == [b"a"]


def test_crash_after_the_answer_leaves_the_connection_alone(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    raw = server.talk(b"GET /crash-after-end HTTP/1.1\r\nHost: a\r\n\r\n", GET_CLOSE, pause=0.05)
    assert [answer.body for answer in parse(raw)] == [b"whole", b"0 bytes"]
    assert "Exception in ASGI application" in caplog.text
