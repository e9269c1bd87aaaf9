"""Bodies, chunks and trailers, in whatever segments they come."""

import os
import socket
from collections.abc import Callable

import pytest

from aisbreaker_mw.exceptions import RequestError
from aisbreaker_mw.serving.request_head import ChunkedDecoder, Limits

from ..support import wait_until
from .support import CHUNKED, GET, GET_CLOSE, WITH_TRAILERS, App, Server, Wire, assert_refused, parse, post, request

BAD_CHUNKS = {
    "no size": b"\r\nhello\r\n",
    "size in letters": b"xyz\r\nhello\r\n",
    "0x size": b"0x5\r\nhello\r\n",
    "signed size": b"+5\r\nhello\r\n",
    "negative size": b"-5\r\nhello\r\n",
    "size of 17 digits": b"00000000000000005\r\nhello\r\n",
    "underscore in the size": b"1_0\r\nhello\r\n",
    "space before the size": b" 5\r\nhello\r\n",
    "space after the size": b"5 \r\nhello\r\n",
    "space before an extension": b"5 ;a\r\nhello\r\n",
    "space after the semicolon": b"5; a\r\nhello\r\n",
    "extension without a name": b"5;\r\nhello\r\n",
    "extension without a value": b"5;a=\r\nhello\r\n",
    "extension with a space in it": b"5;a b\r\nhello\r\n",
    "extension with an open quote": b'5;a="b\r\nhello\r\n',
    "extension after a quote": b'5;a="b"c\r\nhello\r\n',
    "bare LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "bare CR after the size": b"5\rhello\r\n0\r\n\r\n",
    "bare LF in an extension": b"5;a\nb\r\nhello\r\n",
    "NUL in an extension": b"5;a\0b\r\nhello\r\n",
    "extension of 2 KB": b"5;" + b"x" * 2048 + b"\r\nhello\r\n",
    "extension of 2 KB without end": b"5;" + b"x" * 2048,
    "data longer than its size": b"4\r\nhello\r\n0\r\n\r\n",
    "data shorter than its size": b"6\r\nhello\r\n0\r\n\r\n",
    "bare LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "no line end after the data": b"5\r\nhello0\r\n\r\n",
    "bare CR after the data": b"5\r\nhello\rx",
    "trailer without a colon": b"0\r\ns3cr3t\r\n\r\n",
    "trailer folded": b"0\r\nX: a\r\n b\r\n\r\n",
    "trailer with a space before the colon": b"0\r\nX : a\r\n\r\n",
    "trailer with NUL": b"0\r\nX: \0\r\n\r\n",
    "trailer with a bare CR": b"0\r\nX: a\rb\r\n\r\n",
    "trailer with a bare LF": b"0\r\nX: a\nb\r\n\r\n",
    "Content-Length for a trailer": b"0\r\ncontent-length: 3\r\n\r\n",
    "Transfer-Encoding for a trailer": b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a request for a trailer": b"0\r\nGET /s3cr3t HTTP/1.1\r\n\r\n",
}


LARGE_TRAILERS = {
    "101 trailers": b"0\r\n" + b"X: a\r\n" * 101 + b"\r\n",
    "trailer of 64 KiB": b"0\r\nX: " + b"x" * 65_536 + b"\r\n\r\n",
    "trailer without end": b"0\r\nX: " + b"x" * 65_536,
}


BODY_REFUSALS = [
    *(pytest.param(data, 400, id=name) for name, data in BAD_CHUNKS.items()),
    *(pytest.param(data, 431, id=name) for name, data in LARGE_TRAILERS.items()),
]


@pytest.mark.parametrize(("body", "status"), BODY_REFUSALS)
@pytest.mark.parametrize("segments", ["one segment", "head and body"])
def test_refused_chunks(server: Server, body: bytes, status: int, segments: str) -> None:
    head = post(*CHUNKED)
    assert_refused(server.talk(head + body) if segments == "one segment" else server.talk(head, body, pause=0.01), status)
    assert server.app.seen == []


def test_refused_request_does_not_reach_the_app(connect: Callable[..., Wire], app: App) -> None:
    wire = connect().send(post(*CHUNKED, body=b"5\r\nhello\r\nx\r\n"))
    assert wire.statuses() == [400]
    assert app.started == 0


@pytest.mark.parametrize(("body", "status"), BODY_REFUSALS)
def test_decoder_refuses_at_every_split(body: bytes, status: int) -> None:
    for cut in range(0, len(body), max(1, len(body) // 50)):
        decoder = ChunkedDecoder(Limits())
        refused = None
        try:
            decoder.feed(body[:cut])
            decoder.feed(body[cut:])
        except RequestError as error:
            refused = error.status
        assert refused == status


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"0\r\n\r\n", id="empty"),
        pytest.param(b"0;x\r\n\r\n", id="extension on the last"),
        pytest.param(b"5\r\nhello\r\n0\r\n\r\n", id="one"),
        pytest.param(b"0005\r\nhello\r\n000\r\n\r\n", id="leading zeros"),
        pytest.param(b'a;x=1;y="\xff"\r\n0123456789\r\nA;z\r\n0123456789\r\n0\r\n\r\n', id="extensions"),
        pytest.param(b'1;a="\\"; \t";b\r\nx\r\n0\r\n\r\n', id="a quoted pair"),
        pytest.param(b"2\r\n\r\n\r\n0\r\n\r\n", id="line ends as data"),
        pytest.param(b"1\r\nx\r\n0\r\nA: b\r\nC:\r\n\r\n", id="trailers"),
    ],
)
def test_decoder_at_every_split(body: bytes) -> None:
    expected: bytes | None = None
    for first in range(len(body) + 1):
        for second in range(first, len(body) + 1):
            decoder = ChunkedDecoder(Limits())
            pieces = [decoder.feed(piece) for piece in (body[:first], body[first:second], body[second:] + b"next") if piece]
            assert decoder.done
            assert decoder.rest == b"next"
            expected = b"".join(pieces) if expected is None else expected
            assert b"".join(pieces) == expected


def test_decoder_reads_a_bounded_number_of_lines_at_a_time() -> None:
    decoder = ChunkedDecoder(Limits())
    pieces = [decoder.feed(b"1\r\nx\r\n" * 3000 + b"0\r\n\r\nnext")]
    while decoder.more:
        pieces.append(decoder.feed(b""))
    assert [len(piece) for piece in pieces] == [512, 512, 512, 512, 512, 440]
    assert (decoder.done, decoder.rest) == (True, b"next")


@pytest.mark.parametrize("path", [b"echo", b"early", b"begun"])
def test_a_body_in_chunks_of_a_byte(server: Server, path: bytes) -> None:
    """They take many turns of the event loop. The request after them is read like any other."""
    body = b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n"
    data = post(*CHUNKED, body=body, path=b"/" + path)
    answered = server.talk(data + request(b"GET / HTTP/1.1", b"Connection: close"))
    assert answered.count(b"HTTP/1.1 200") + answered.count(b"HTTP/1.1 401") == 2
    assert answered.endswith(b"0 bytes")
    assert path == b"early" or len(server.app.seen[0].body) == 100_000


def test_trailers_never_become_headers_in_one_segment(server: Server) -> None:
    answers = parse(server.talk(WITH_TRAILERS + GET_CLOSE), "POST", "GET")
    assert [answer.status for answer in answers] == [200, 200]
    first, second = server.app.seen
    assert (first.body, first.names()) == (b"hello world", [b"host", b"transfer-encoding"])
    assert second.names() == [b"host", b"connection"]


def test_trailers_never_become_headers_byte_by_byte(server: Server) -> None:
    data = WITH_TRAILERS + GET_CLOSE
    answers = parse(server.talk(*(data[n : n + 1] for n in range(len(data)))), "POST", "GET")
    assert [answer.status for answer in answers] == [200, 200]
    assert server.app.seen[0].names() == [b"host", b"transfer-encoding"]


def test_trailers_never_become_headers_at_any_split(connect: Callable[..., Wire], app: App) -> None:
    for cut in range(len(WITH_TRAILERS) + 1):
        wire = connect()
        for piece in (WITH_TRAILERS[:cut], WITH_TRAILERS[cut:] + GET):
            wire.send(piece)
        assert wire.statuses() == [200, 200]
    assert {seen.body for seen in app.seen} == {b"hello world", b""}
    assert {name for seen in app.seen for name in seen.names()} == {b"host", b"transfer-encoding"}


@pytest.mark.parametrize(
    ("data", "body"),
    [
        pytest.param(post(b"Content-Length: 5", body=b"hello"), b"hello", id="length"),
        pytest.param(post(b"Content-Length: 0"), b"", id="length 0"),
        pytest.param(post(), b"", id="none"),
        pytest.param(post(*CHUNKED, body=b"5\r\nhello\r\n0\r\n\r\n"), b"hello", id="chunked"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", b"hello", id="of a GET"),
    ],
)
def test_body_at_any_split(connect: Callable[..., Wire], app: App, data: bytes, body: bytes) -> None:
    for cut in range(len(data) + 1):
        app.seen.clear()
        wire = connect().send(data[:cut]).send(data[cut:] + GET)
        assert wire.statuses() == [200, 200]
        assert [seen.body for seen in app.seen] == [body, b""]


def test_large_bodies(server: Server) -> None:
    body = os.urandom(3_000_000)
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(part), part) for part in (body[n : n + 40_000] for n in range(0, len(body), 40_000))
    )
    requests = post(b"Content-Length: 3000000", body=body) + post(*CHUNKED, b"Connection: close", body=chunks + b"0\r\n\r\n")
    assert [answer.body for answer in parse(server.talk(requests), "POST", "POST")] == [b"3000000 bytes"] * 2
    assert [seen.body == body for seen in server.app.seen] == [True, True]


def test_app_learns_that_the_client_went_away_in_a_body(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(post(b"Content-Length: 5", body=b"he"))
    wait_until(lambda: server.app.disconnects >= 1)
    assert server.app.seen == []
