"""HTTP/1.1 messages without I/O: every answer, in whatever pieces it comes."""

import contextlib

import httpx
import pytest

from aisbreaker_mw.upstream.transport.request import OutgoingRequest
from aisbreaker_mw.upstream.transport.response import COMPLETE, ResponseReader

from ...upstreams import BROKEN, LEFTOVER, MALFORMED, OK, WHOLE, Answer

READ = 32_768
"""Bytes that a connection reads at most at a time."""


def read(answer: Answer, pieces: list[bytes]) -> ResponseReader:
    reader = ResponseReader(answer.method != "HEAD")
    for piece in pieces:
        if piece:
            reader.receive(piece)
    if answer.closes:
        reader.receive_eof()
    return reader


def splits(raw: bytes) -> list[list[bytes]]:
    """The whole, every byte alone, and every way to cut it in two; long ones less thoroughly, and in what is read at a time."""
    if len(raw) > READ:
        return [[raw[index : index + size] for index in range(0, len(raw), size)] for size in (READ, 1000, 7)]
    bytewise = [raw[index : index + 1] for index in range(len(raw))]
    return [[raw], bytewise] + [[raw[:index], raw[index:]] for index in range(1, len(raw))]


@pytest.mark.parametrize("answer", (WHOLE | LEFTOVER).values(), ids=(WHOLE | LEFTOVER).keys())
def test_a_whole_answer_is_read_in_whatever_pieces_it_comes(answer: Answer) -> None:
    for pieces in splits(answer.raw):
        reader = read(answer, pieces)
        assert reader.state == COMPLETE, pieces
        assert (reader.status, b"".join(reader.pieces)) == (answer.status, answer.body), pieces
        assert answer.closes or reader.reusable == answer.reusable, pieces


@pytest.mark.parametrize("answer", (BROKEN | MALFORMED).values(), ids=(BROKEN | MALFORMED).keys())
def test_any_other_answer_is_an_error_in_whatever_pieces_it_comes(answer: Answer) -> None:
    for pieces in splits(answer.raw):
        with pytest.raises(httpx.RemoteProtocolError):
            read(answer, pieces)


@pytest.mark.parametrize("name", [name for name in WHOLE if not WHOLE[name].closes])
def test_a_prefix_is_never_complete(name: str) -> None:
    answer = WHOLE[name]
    step = max(1, len(answer.raw) // 500)
    for end in range(1, len(answer.raw), step):
        reader = read(answer, [answer.raw[:end]])
        assert reader.state != COMPLETE or len(answer.raw) - end < step
        with pytest.raises(httpx.RemoteProtocolError):
            reader.receive_eof()


def test_an_answer_that_tls_cut_off_is_no_end() -> None:
    reader = read(Answer(b""), [b"HTTP/1.1 200 OK\r\n\r\nhello"])
    with pytest.raises(httpx.RemoteProtocolError):
        reader.receive_eof(clean=False)


def test_headers_keep_their_order_case_and_bytes() -> None:
    raw = OK + b"X-b: 1\r\nx-A:  2 \t\r\nX-B: \xff\x80,\t\xc3\xa4\r\nSet-Cookie: a\r\nEmpty:\r\nSet-Cookie: b\r\n\r\n"
    for pieces in splits(raw):
        assert read(Answer(b""), pieces).headers == [
            (b"X-b", b"1"),
            (b"x-A", b"2"),
            (b"X-B", b"\xff\x80,\t\xc3\xa4"),
            (b"Set-Cookie", b"a"),
            (b"Empty", b""),
            (b"Set-Cookie", b"b"),
        ]


def test_headers_of_interim_answers_and_trailers_are_not_the_answers() -> None:
    reader = read(Answer(b""), [WHOLE["several interim answers"].raw])
    assert reader.headers == [(b"Transfer-Encoding", b"chunked")]
    assert reader.reason == b"OK"
    reader = read(Answer(b""), [WHOLE["trailers"].raw])
    assert reader.headers == [(b"Transfer-Encoding", b"chunked")]


def outgoing(*headers: tuple[bytes, bytes], method: str = "POST", target: bytes = b"/") -> OutgoingRequest:
    return OutgoingRequest(method, target, list(headers), httpx.ByteStream(b""))


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        pytest.param("POST", b"/", [(b"A", b"b\r\nC: d")], id="CRLF in a value"),
        pytest.param("POST", b"/", [(b"A", b"b\nC: d")], id="LF in a value"),
        pytest.param("POST", b"/", [(b"A", b"b\rC: d")], id="CR in a value"),
        pytest.param("POST", b"/", [(b"A", b"b\0")], id="NUL in a value"),
        pytest.param("POST", b"/", [(b"A: b\r\nC", b"d")], id="CRLF in a name"),
        pytest.param("POST", b"/", [(b"A:", b"d")], id="colon in a name"),
        pytest.param("POST", b"/", [(b"A ", b"d")], id="space in a name"),
        pytest.param("POST", b"/", [(b"\xc3\xa4", b"d")], id="name beyond ASCII"),
        pytest.param("POST", b"/", [(b"", b"d")], id="no name"),
        pytest.param("POST", b"", [], id="no target"),
        pytest.param("POST", b"/a b", [], id="space in the target"),
        pytest.param("POST", b"/ HTTP/1.1\r\nA: b", [], id="CRLF in the target"),
        pytest.param("POST", b"/\x7f", [], id="DEL in the target"),
        pytest.param("PO ST", b"/", [], id="space in the method"),
        pytest.param("P\u00d6ST", b"/", [], id="method beyond ASCII"),
        pytest.param("", b"/", [], id="no method"),
        pytest.param("CONNECT", b"a:443", [], id="CONNECT"),
        pytest.param("POST", b"/", [(b"Content-Length", b"1"), (b"content-length", b"1")], id="two lengths"),
        pytest.param("POST", b"/", [(b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")], id="length and chunked"),
        pytest.param("POST", b"/", [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"1")], id="chunked and length"),
        pytest.param("POST", b"/", [(b"Content-Length", b"+1")], id="length with a sign"),
        pytest.param("POST", b"/", [(b"Content-Length", b"")], id="empty length"),
        pytest.param("POST", b"/", [(b"Transfer-Encoding", b"gzip, chunked")], id="another transfer coding"),
    ],
)
def test_a_request_that_could_be_read_otherwise_is_refused(
    method: str, target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        outgoing(*headers, method=method, target=target)


def test_a_request_is_written_as_given() -> None:
    request = outgoing((b"hOsT", b"x"), (b"X-Odd", b" \xff\x80 "), (b"A", b""), target=b"//a/../%zz?;=[]|^\xff")
    assert request.take() == [b"POST //a/../%zz?;=[]|^\xff HTTP/1.1\r\nhOsT: x\r\nX-Odd:  \xff\x80 \r\nA: \r\n\r\n"]


@pytest.mark.parametrize(("interim", "taken"), [(16, True), (17, False)])
def test_at_most_sixteen_interim_responses_come_first(interim: int, taken: bool) -> None:
    reader = ResponseReader()
    data = b"HTTP/1.1 103 Early Hints\r\n\r\n" * interim + b"HTTP/1.1 204 No Content\r\n\r\n"
    with contextlib.nullcontext() if taken else pytest.raises(httpx.RemoteProtocolError):
        reader.receive(data)
    assert (reader.status == 204) is taken


def test_a_long_stream_may_carry_any_number_of_small_chunks() -> None:
    """Only what comes between two bytes of the body is bounded."""
    reader = ResponseReader()
    reader.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(15_000):
        reader.receive(b"1\r\n")
        reader.receive(b"x")
        reader.receive(b"\r\n")
    reader.receive(b"0\r\n\r\n")
    assert reader.take() == b"x" * 15_000
