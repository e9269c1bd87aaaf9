"""Which heads are requests, and which are refused."""

import logging
from collections.abc import Callable

import pytest

from aisbreaker_mw.serving.request_head import Limits, RequestHead

from ..support import wait_until
from .support import CANARY, GET, App, Server, Wire, assert_refused, parse, request

REFUSED_HEADS = {
    # Line ends (RFC 9112, 2.2) and characters (RFC 9110, 5.5).
    "bare LF everywhere": b"GET /s3cr3t HTTP/1.1\nHost: a\n\n",
    "bare LF after the request line": b"GET /s3cr3t HTTP/1.1\nHost: a\r\n\r\n",
    "bare LF after a header": b"GET /s3cr3t HTTP/1.1\r\nHost: a\nX: s3cr3t\r\n\r\n",
    "bare LF at the end": b"GET /s3cr3t HTTP/1.1\r\nHost: a\r\n\n",
    "bare CR in a value": request(b"GET / HTTP/1.1", b"X: a\rb"),
    "bare CR for a line end": request(b"GET / HTTP/1.1", b"X: a\rY: b"),
    "CR before CRLF": request(b"GET / HTTP/1.1", b"X: a\r"),
    "CR in the request line": request(b"GET /\r HTTP/1.1"),
    "NUL in a value": request(b"GET / HTTP/1.1", b"X: a\0b"),
    "NUL in a name": request(b"GET / HTTP/1.1", b"X\0: a"),
    "control character in a value": request(b"GET / HTTP/1.1", b"X: a\x01b"),
    "vertical tab in a value": request(b"GET / HTTP/1.1", b"X: a\x0bb"),
    "DEL in a value": request(b"GET / HTTP/1.1", b"X: a\x7fb"),
    "obs-fold": request(b"GET / HTTP/1.1", b"X: a", b" s3cr3t"),
    "obs-fold by tab": request(b"GET / HTTP/1.1", b"X: a", b"\ts3cr3t"),
    "fold before the first header": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "fold of Content-Length": request(b"GET / HTTP/1.1", b"Content-Length: 1", b" 2"),
    "fold of Transfer-Encoding": request(b"GET / HTTP/1.1", b"Transfer-Encoding:", b" chunked"),
    "space before the colon": request(b"GET / HTTP/1.1", b"X : s3cr3t"),
    "tab before the colon": request(b"GET / HTTP/1.1", b"Content-Length\t: 1"),
    "no colon": request(b"GET / HTTP/1.1", b"s3cr3t"),
    "no name": request(b"GET / HTTP/1.1", b": s3cr3t"),
    "delimiter in a name": request(b"GET / HTTP/1.1", b"X(: s3cr3t"),
    "name beyond ASCII": request(b"GET / HTTP/1.1", b"X\xfc: s3cr3t"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03s3cr3t",
    # Request lines (RFC 9112, 3).
    "two spaces": request(b"GET  /s3cr3t HTTP/1.1"),
    "two spaces before the version": request(b"GET /s3cr3t  HTTP/1.1"),
    "space at the end": request(b"GET /s3cr3t HTTP/1.1 "),
    "tab for a space": request(b"GET\t/s3cr3t HTTP/1.1"),
    "space at the start": request(b" GET /s3cr3t HTTP/1.1"),
    "two empty lines before": b"\r\n\r\n" + request(),
    "bare LF before": b"\n" + request(),
    "bare CR before": b"\r" + request(),
    "HTTP/0.9": b"GET /s3cr3t\r\n\r\n",
    "HTTP/0.9 with a version": request(b"GET / HTTP/0.9"),
    "HTTP/1.10": request(b"GET / HTTP/1.10"),
    "version in lower case": request(b"GET / http/1.1"),
    "RTSP": request(b"GET / RTSP/1.0"),
    "ICE": request(b"SOURCE / ICE/1.0"),
    "absolute-form of another host": request(b"GET http://b/s3cr3t HTTP/1.1"),
    "absolute-form of another port": request(b"GET http://a:80/s3cr3t HTTP/1.1"),
    "absolute-form with user info": request(b"GET http://s3cr3t@a/ HTTP/1.1"),
    "absolute-form with a fragment": request(b"GET http://a/#s3cr3t HTTP/1.1"),
    "absolute-form without authority": request(b"GET http:///s3cr3t HTTP/1.1"),
    "absolute-form without Host": request(b"GET http://a/s3cr3t HTTP/1.0", host=b""),
    "absolute-form for the whole server": request(b"OPTIONS http://a HTTP/1.1"),
    "absolute-form with CONNECT": request(b"CONNECT http://a/ HTTP/1.1"),
    "absolute-form of another scheme": request(b"GET ftp://a/s3cr3t HTTP/1.1"),
    "authority-form": request(b"CONNECT a:443 HTTP/1.1"),
    "authority-form without CONNECT": request(b"GET a:443 HTTP/1.1"),
    "CONNECT to a path": request(b"CONNECT / HTTP/1.1"),
    "asterisk-form": request(b"OPTIONS * HTTP/1.1"),
    "relative path": request(b"GET s3cr3t HTTP/1.1"),
    "fragment": request(b"GET /a#s3cr3t HTTP/1.1"),
    "target beyond ASCII": request(b"GET /\xfc HTTP/1.1"),
    "query beyond ASCII": request(b"GET /?\xfc HTTP/1.1"),
    "tab in the target": request(b"GET /a\tb HTTP/1.1"),
    "NUL in the target": request(b"GET /a\0b HTTP/1.1"),
    # Host (RFC 9112, 3.2).
    "no Host": request(host=b""),
    "empty Host": request(host=b"Host:"),
    "blank Host": request(host=b"Host:  "),
    "two Hosts": request(b"GET / HTTP/1.1", b"Host: b"),
    "two equal Hosts": request(b"GET / HTTP/1.1", b"Host: a"),
    "two Hosts in HTTP/1.0": request(b"GET / HTTP/1.0", b"Host: b"),
    "bad Host in HTTP/1.0": request(b"GET / HTTP/1.0", host=b"Host: a/b"),
    "list of Hosts": request(host=b"Host: a, b"),
    "Host with a space": request(host=b"Host: a b"),
    "Host with a path": request(host=b"Host: a/s3cr3t"),
    "Host with user info": request(host=b"Host: s3cr3t@a"),
    "Host with a scheme": request(host=b"Host: http://a"),
    "Host with a port in letters": request(host=b"Host: a:b"),
    "Host with two ports": request(host=b"Host: a:1:2"),
    "Host of a port only": request(host=b"Host: :80"),
    "Host with a long port": request(host=b"Host: a:123456"),
    "Host with an open bracket": request(host=b"Host: [::1"),
    "Host beyond ASCII": request(host=b"Host: \xfc"),
    "Host with percent-encoding": request(host=b"Host: a%2eb"),
    # Framing (RFC 9112, 6).
    "two Content-Lengths": request(b"POST / HTTP/1.1", b"Content-Length: 1", b"Content-Length: 1", body=b"x"),
    "two differing Content-Lengths": request(b"POST / HTTP/1.1", b"Content-Length: 1", b"Content-Length: 2", body=b"x"),
    "list of Content-Lengths": request(b"POST / HTTP/1.1", b"Content-Length: 1, 1", body=b"x"),
    "Content-Length with a plus": request(b"POST / HTTP/1.1", b"Content-Length: +1", body=b"x"),
    "negative Content-Length": request(b"POST / HTTP/1.1", b"Content-Length: -1", body=b"x"),
    "hexadecimal Content-Length": request(b"POST / HTTP/1.1", b"Content-Length: 0x1", body=b"x"),
    "empty Content-Length": request(b"POST / HTTP/1.1", b"Content-Length:", body=b"x"),
    "Content-Length with a space": request(b"POST / HTTP/1.1", b"Content-Length: 1 1", body=b"x"),
    "Content-Length over 64 bits": request(b"POST / HTTP/1.1", b"Content-Length: 18446744073709551616", body=b"x"),
    "Content-Length and Transfer-Encoding": request(
        b"POST / HTTP/1.1", b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"
    ),
    "Transfer-Encoding and Content-Length": request(
        b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"
    ),
    "Transfer-Encoding in HTTP/1.0": request(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    **{
        f"Transfer-Encoding {value!r}": request(b"POST / HTTP/1.1", b"Transfer-Encoding: " + value, body=b"0\r\n\r\n")
        for value in (
            b"",
            b"identity",
            b"gzip",
            b"gzip, chunked",
            b"chunked, gzip",
            b"chunked, chunked",
            b"chunked, identity",
            b",chunked",
            b"chunked,",
            b"xchunked",
            b"chunkedx",
            b"chunked;a=b",
            b'"chunked"',
            b"\x0bchunked",
        )
    },
    **{
        f"Transfer-Encoding {first!r} and {second!r}": request(
            b"POST / HTTP/1.1", b"Transfer-Encoding: " + first, b"Transfer-Encoding: " + second, body=b"0\r\n\r\n"
        )
        for first, second in ((b"chunked", b"chunked"), (b"gzip", b"chunked"), (b"chunked", b"identity"))
    },
}


UNKNOWN_METHODS = {
    "method in lower case": request(b"get /s3cr3t HTTP/1.1"),
    "unknown method": request(b"STEAL /s3cr3t HTTP/1.1"),
    "unknown method of any characters": request(b"a!#$%&'*+-.^_`|~1 /s3cr3t HTTP/1.1"),
}


LATER_VERSIONS = {
    "HTTP/1.2": request(b"GET / HTTP/1.2"),
    "HTTP/2.0": request(b"GET / HTTP/2.0"),
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.0 with an unknown method": request(b"STEAL / HTTP/3.0"),
}


TOO_LARGE_HEADS = {
    "101 headers": request(b"GET / HTTP/1.1", *[b"X-%d: s3cr3t" % n for n in range(99)]),
    "5,000 headers": request(b"GET / HTTP/1.1", *[b"X: s3"] * 5000),
    "64 KiB and a byte": request(b"GET / HTTP/1.1", b"X: " + b"x" * (65_537 - len(request(b"GET / HTTP/1.1", b"X: ")))),
    "one value of 2 MB": request(b"GET / HTTP/1.1", b"X: " + b"x" * 2_000_000),
    "one name of 2 MB": request(b"GET / HTTP/1.1", b"x" * 2_000_000 + b": 1"),
    "a target of 2 MB": request(b"GET /" + b"x" * 2_000_000 + b" HTTP/1.1"),
    "a line without end": b"x" * 70_000,
}


REFUSALS = [
    *(pytest.param(data, 400, id=name) for name, data in REFUSED_HEADS.items()),
    *(pytest.param(data, 501, id=name) for name, data in UNKNOWN_METHODS.items()),
    *(pytest.param(data, 505, id=name) for name, data in LATER_VERSIONS.items()),
    *(pytest.param(data, 431, id=name) for name, data in TOO_LARGE_HEADS.items()),
]


GOOD_HEADS = {
    "HTTP/1.1": (request(), "1.1", True, 0),
    "one empty line before": (b"\r\n" + request(), "1.1", True, 0),
    "HTTP/1.0 without Host": (request(b"GET / HTTP/1.0", host=b""), "1.0", False, 0),
    "HTTP/1.0 with Host": (request(b"GET / HTTP/1.0"), "1.0", False, 0),
    "HTTP/1.0 that asks to keep alive": (request(b"GET / HTTP/1.0", b"Connection: keep-alive"), "1.0", False, 0),
    "Host with a port": (request(host=b"Host: example.com:8080"), "1.1", True, 0),
    "Host with an empty port": (request(host=b"Host: example.com:"), "1.1", True, 0),
    "Host in capitals": (request(host=b"HOST: EXAMPLE.com."), "1.1", True, 0),
    "Host of an IPv6 address": (request(host=b"Host: [2001:db8::1]:80"), "1.1", True, 0),
    "Host with an underscore": (request(host=b"Host: my_service"), "1.1", True, 0),
    "Connection: close": (request(b"GET / HTTP/1.1", b"Connection: close"), "1.1", False, 0),
    "close among options": (request(b"GET / HTTP/1.1", b"Connection: x, CLOSE ,y"), "1.1", False, 0),
    "close in a second line": (request(b"GET / HTTP/1.1", b"Connection: x", b"Connection: close"), "1.1", False, 0),
    "an option that contains close": (request(b"GET / HTTP/1.1", b"Connection: unclose"), "1.1", True, 0),
    "Content-Length": (request(b"POST / HTTP/1.1", b"Content-Length: 12"), "1.1", True, 12),
    "Content-Length with spaces": (request(b"POST / HTTP/1.1", b"Content-Length: \t 12 \t"), "1.1", True, 12),
    "Content-Length with zeros": (request(b"POST / HTTP/1.1", b"Content-Length: 0012"), "1.1", True, 12),
    "chunked": (request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked"), "1.1", True, None),
    "chunked in capitals, with spaces": (request(b"POST / HTTP/1.1", b"Transfer-Encoding:  CHUNKED "), "1.1", True, None),
    "100 headers": (request(b"GET / HTTP/1.1", *[b"X-%d: a" % n for n in range(98)]), "1.1", True, 0),
    "64 KiB": (request(b"GET / HTTP/1.1", b"X: " + b"x" * (65_536 - len(request(b"GET / HTTP/1.1", b"X: ")))), "1.1", True, 0),
    "bytes over 127 in a value": (request(b"GET / HTTP/1.1", b"X: \xff\x80"), "1.1", True, 0),
    "tab in a value": (request(b"GET / HTTP/1.1", b"X: a\tb"), "1.1", True, 0),
}


@pytest.mark.parametrize(("data", "status"), REFUSALS)
def test_refused_head_is_answered_in_openai_shape_and_closes(server: Server, data: bytes, status: int) -> None:
    assert_refused(server.talk(data), status)
    assert server.app.seen == []


@pytest.mark.parametrize(("data", "status"), REFUSALS)
def test_refused_head_after_a_good_request(connect: Callable[..., Wire], app: App, data: bytes, status: int) -> None:
    wire = connect().send(GET + data)
    assert wire.statuses() == [200, status]
    assert wire.ended
    assert len(app.seen) == 1


@pytest.mark.parametrize("data", REFUSED_HEADS.values(), ids=REFUSED_HEADS.keys())
def test_refused_head_byte_by_byte(connect: Callable[..., Wire], app: App, data: bytes) -> None:
    wire = connect()
    for position in range(len(data)):
        if not wire.ended:
            wire.send(data[position : position + 1])
    assert_refused(wire.transport.written, 400)
    assert wire.ended
    assert app.seen == []


@pytest.mark.parametrize(("data", "version", "keep_alive", "length"), GOOD_HEADS.values(), ids=GOOD_HEADS.keys())
def test_good_head(data: bytes, version: str, keep_alive: bool, length: int | None) -> None:
    head = RequestHead(data, Limits())
    assert (head.http_version, head.keep_alive, head.body_length) == (version, keep_alive, length)
    assert (b"x-s", CANARY) in head.headers


@pytest.mark.parametrize(
    ("url", "path", "query"),
    [
        pytest.param(b"http://a/echo?x=1", b"/echo", b"x=1", id="path and query"),
        pytest.param(b"HTTPS://A/%2e%2e//x", b"/%2e%2e//x", b"", id="in capitals, not normalized"),
        pytest.param(b"http://a", b"/", b"", id="no path"),
        pytest.param(b"http://a?x", b"/", b"x", id="no path, a query"),
    ],
)
def test_absolute_form(server: Server, url: bytes, path: bytes, query: bytes) -> None:
    """RFC 9112, 3.2.2: \"a server MUST accept the absolute-form in requests\"."""
    assert server.talk(request(b"GET " + url + b" HTTP/1.1", b"Connection: close")).startswith(b"HTTP/1.1 200")
    assert (server.app.seen[0].scope["raw_path"], server.app.seen[0].scope["query_string"]) == (path, query)


def test_head_is_told_as_sent() -> None:
    target = b'/a//b/%2e%2e;/@h/\\?q=[]|^`{}"<>&%zz;//'
    head = RequestHead(request(b"POST " + target + b" HTTP/1.1", b"X:\t a  b \t", b"X-Empty:", b"X-S: 2"), Limits())
    assert (head.method, head.target) == ("POST", target)
    assert head.headers == [(b"host", b"a"), (b"x-s", b"s3cr3t"), (b"x", b"a  b"), (b"x-empty", b""), (b"x-s", b"2")]


def test_scope_of_a_request(server: Server) -> None:
    server.talk(b"GET /a%20b/%2F//..;/?x=%zz&[] HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    (seen,) = server.app.seen
    assert seen.scope["path"] == "/a b////..;/"
    assert seen.scope["raw_path"] == b"/a%20b/%2F//..;/"
    assert seen.scope["query_string"] == b"x=%zz&[]"
    assert seen.scope["client"][0] == "127.0.0.1"
    assert seen.scope["server"] == ("127.0.0.1", server.port)


def test_refusal_is_logged_in_one_line(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aisbreaker_mw.access")
    raw = server.talk(REFUSED_HEADS["obs-fold"])
    request_id = parse(raw)[0].values(b"x-request-id")[0].decode()
    line = f"request_id={request_id} client=127.0.0.1 status=400 error=invalid_request"
    wait_until(lambda: line in caplog.messages)
