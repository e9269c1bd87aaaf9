"""
Our reader of requests beside h11's and llhttp's (httptools): whatever we accept, they read alike.

`STRICTER` lists what we refuse and they accept. Responses have their second opinion in `upstream/transport/test_fuzz.py`.
"""

import contextlib
import os
from typing import Any

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aisbreaker_mw.exceptions import RequestError
from aisbreaker_mw.serving.request_head import ChunkedDecoder, Limits, RequestHead

from .support import CHUNKED, post, request
from .test_fuzz import PIECES, SEEDS

FUZZ_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))

Read = tuple[Any, ...]


def ours(data: bytes) -> Read | None:
    """Return the first request, read by us; None if it is refused or not whole."""
    head, end, rest = data.partition(b"\r\n\r\n")
    try:
        read = RequestHead(head + end, Limits()) if end else None
        if read is None:
            return None
        if read.body_length is not None:
            body = rest[: read.body_length]
            if len(body) < read.body_length:
                return None
        else:
            decoder = ChunkedDecoder(Limits())
            body = decoder.feed(rest)
            if not decoder.done:
                return None
    except RequestError:
        return None
    return read.method, read.target, read.headers, body


def h11s(data: bytes) -> Read | None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data.removeprefix(b"\r\n"))
    try:
        head = connection.next_event()
        if not isinstance(head, h11.Request):
            return None
        body = b""
        while isinstance(event := connection.next_event(), h11.Data):
            body += bytes(event.data)
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.EndOfMessage):
        return None
    return head.method.decode(), head.target, list(head.headers), body


class Callbacks:
    """Keeps the first message that httptools reads."""

    def __init__(self) -> None:
        self.target = self.body = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.heads = 0
        self.done = False

    def on_url(self, url: bytes) -> None:
        if not self.done:
            self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.heads:  # else it is a trailer
            self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.heads += 1

    def on_body(self, body: bytes) -> None:
        if not self.done:
            self.body += body

    def on_message_complete(self) -> None:
        self.done = True


def llhttps(data: bytes) -> Read | None:
    seen = Callbacks()
    parser = httptools.HttpRequestParser(seen)
    method = ""
    # HttpParserError: in what follows the first message, if that is done. HttpParserUpgrade: the rest is another protocol's.
    with contextlib.suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
        for position in range(len(data)):
            parser.feed_data(data[position : position + 1])
            method = method or (parser.get_method().decode() if seen.heads else "")
            if seen.done:
                break
    return (method, seen.target, seen.headers, seen.body) if seen.done else None


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """One message with some damage."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 0, 1, 2, 10])))
        data = data[:start] + draw(st.one_of(st.sampled_from(PIECES), st.just(b""), st.binary(max_size=3))) + data[end:]
    return data


@settings(max_examples=FUZZ_EXAMPLES, deadline=None)
@given(damaged([seed for seed in SEEDS if b"Upgrade" not in seed]))
def test_requests(data: bytes) -> None:
    read = ours(data)
    if read is None:
        return
    # h11 knows no URL of this Host as a target, and no reader but ours cares for the registry of methods.
    for name, other in (("h11", h11s(data)), ("llhttp", llhttps(data))):
        if other is not None or name == "h11":
            assert other == read, name


STRICTER = {
    "a bare LF ends a line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "an empty chunk extension": post(*CHUNKED, body=b"1;\r\nx\r\n0\r\n\r\n"),
    "a space after the semicolon": post(*CHUNKED, body=b"1; a\r\nx\r\n0\r\n\r\n"),
    "framing as a trailer": post(*CHUNKED, body=b"0\r\nContent-Length: 1\r\n\r\n"),
    "two transfer codings": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "Content-Length twice, equal": post(b"Content-Length: 1", b"Content-Length: 1", body=b"x"),
    "Content-Length as a list": post(b"Content-Length: 1, 1", body=b"x"),
    "a Host with a path": request(host=b"Host: a/b"),
    "a fragment in the target": request(b"GET /a#b HTTP/1.1"),
    "an unregistered method": request(b"STEAL / HTTP/1.1"),
    "a later version": request(b"GET / HTTP/1.2"),
    "chunks in HTTP/1.0": post(*CHUNKED, body=b"0\r\n\r\n", version=b"1.0"),
}


@pytest.mark.parametrize("name", STRICTER)
def test_stricter_than_at_least_one_of_them(name: str) -> None:
    assert ours(STRICTER[name]) is None
    assert h11s(STRICTER[name]) is not None or llhttps(STRICTER[name]) is not None
