"""The cases of Go's `httputil.ReverseProxy` tests that apply to this proxy, over sockets."""

import socket
from collections.abc import Iterator

import pytest

from ..support import Recorded, RecordingUpstream, connect, mint, ok, proxy, raw_exchange, wait_until

PATH = "/openai/v1/models"
Front = tuple[RecordingUpstream, str, str]


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    """An upstream, the base URL of a server of ours before it, and a token."""
    with RecordingUpstream() as upstream, proxy(upstream) as base:
        yield upstream, base, mint(base, ("", "sk-x"))


def ask(front: Front, *headers: str, method: str = "GET", target: str = PATH, body: bytes = b"") -> bytes:
    """Return the whole response to a request that closes the connection."""
    _, base, token = front
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {token}", *headers]
    if not any(header.startswith("Connection:") for header in headers):
        lines.append("Connection: close")
    return raw_exchange(base, "\r\n".join([*lines, "", ""]).encode() + body)


@pytest.mark.parametrize(
    ("sent", "gone", "kept"),
    [
        pytest.param(["Connection: close, X-Named", "X-Named: 1", "X-Kept: 2"], ["x-named"], ["x-kept"], id="named"),
        pytest.param(["Connection: close", "Connection: x-named", "X-Named: 1"], ["x-named"], [], id="named in a second"),
        pytest.param(["Connection: close,, ,x-named", "X-Named: 1"], ["x-named"], [], id="named among empty options"),
        pytest.param(["Keep-Alive: timeout=5", "Proxy-Connection: keep-alive"], ["keep-alive", "proxy-connection"], [], id="x"),
        pytest.param(["Te: trailers"], ["te"], [], id="Te: trailers, as trailers are dropped"),
        pytest.param(["Te: gzip, trailers"], ["te"], [], id="Te with more"),
        pytest.param(["Proxy-Authorization: Basic eDp5"], ["proxy-authorization"], [], id="Proxy-Authorization"),
        pytest.param(["Trailer: X-Sum"], ["trailer"], [], id="Trailer"),
        pytest.param(["Connection: close, Upgrade", "Upgrade: h2c"], ["upgrade"], [], id="an unknown upgrade"),
        pytest.param(["X-Forwarded-For: 1.2.3.4"], ["x-forwarded-for"], [], id="X-Forwarded-For"),
        pytest.param(["Forwarded: for=1.2.3.4", "Via: 1.1 x"], ["forwarded", "via"], [], id="Forwarded and Via"),
        pytest.param([], ["user-agent", "accept-encoding", "accept"], [], id="nothing is made up"),
        pytest.param(["User-Agent: "], [], ["user-agent"], id="an empty User-Agent"),
        pytest.param(["X-Twice: a", "X-Twice: b"], [], ["x-twice", "x-twice"], id="a header twice"),
    ],
)
def test_request_headers(front: Front, sent: list[str], gone: list[str], kept: list[str]) -> None:
    assert ask(front, *sent).startswith(b"HTTP/1.1 200")
    names = [name.decode() for name, _ in front[0].last.headers]
    assert not set(gone) & set(names)
    assert [name for name in names if name in kept] == kept


@pytest.mark.parametrize(
    "query",
    ["a=1;b=2", "a=%zz", "a=b&&c", "x=y+z%20%2B", "?", "a=%3B;%26", "=", "a=\\{}|^`"],
)
def test_a_query_passes_unchanged(front: Front, query: str) -> None:
    assert ask(front, target=f"{PATH}?{query}").startswith(b"HTTP/1.1 200")
    assert front[0].last.target == f"/v1/models?{query}".encode()


def test_a_path_passes_unchanged(front: Front) -> None:
    assert ask(front, target="/openai/v1/models/a%2Fb%20c;d=e").startswith(b"HTTP/1.1 200")
    assert front[0].last.target == b"/v1/models/a%2Fb%20c;d=e"


@pytest.mark.parametrize(
    ("head", "gone", "kept"),
    [
        pytest.param(["Connection: X-Named", "X-Named: 1"], b"x-named", b"content-type", id="named by Connection"),
        pytest.param(["Keep-Alive: timeout=5"], b"keep-alive", b"content-type", id="hop-by-hop"),
        pytest.param(["Proxy-Authenticate: Basic"], b"proxy-authenticate", b"content-type", id="Proxy-Authenticate"),
        pytest.param(["Trailer: X-Sum"], b"trailer:", b"content-type", id="Trailer"),
        pytest.param(["X-Empty:"], b"upgrade", b"x-empty", id="an empty value"),
    ],
)
def test_response_headers(front: Front, head: list[str], gone: bytes, kept: bytes) -> None:
    front[0].script = ok(b"{}", *(line.encode() for line in head))
    received = ask(front).partition(b"\r\n\r\n")[0].lower()
    assert b"\r\n" + gone not in received
    assert b"\r\n" + kept in received


RESPONSES = {
    "interim responses": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + ok(b"hi"),
        200,
        b"hi",
    ),
    "trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n",
        200,
        b"2\r\nhi\r\n0\r\n\r\n",
    ),
    "an upgrade that nobody asked for": (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 502, None),
    "a bad status": (b"HTTP/1.1 2000 OK\r\n\r\n", 502, None),
    "no body for 304": (b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n', 304, b""),
    "no body for 204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "a status of one's own": (ok(b"hi", status=b"299 Odd"), 299, b"hi"),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_responses(front: Front, name: str) -> None:
    front[0].script, status, body = RESPONSES[name]
    head, _, received = ask(front).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert body is None or received == body
    assert b"x-sum" not in head.lower()


def test_each_piece_is_flushed(front: Front) -> None:
    """The upstream sends its second piece when the client has the first."""
    arrived: list[bytes] = []

    def stream(_: Recorded, upstream: socket.socket) -> None:
        upstream.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b"3\r\none\r\n", b"3\r\ntwo\r\n"):
            upstream.sendall(piece)
            wait_until(lambda sent=piece: sent in b"".join(arrived))
        upstream.sendall(b"0\r\n\r\n")

    upstream, base, token = front
    upstream.script = stream
    with connect(base) as client:
        client.sendall(f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        while not b"".join(arrived).endswith(b"0\r\n\r\n"):
            arrived.append(client.recv(65536))
            assert arrived[-1], "the connection was closed"
    assert b"".join(arrived).endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", id="length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", id="chunks"),
    ],
)
def test_a_body_that_breaks_off_looks_broken(front: Front, begun: bytes) -> None:
    def script(_: Recorded, upstream: socket.socket) -> None:
        upstream.sendall(begun)
        raise RecordingUpstream.Hangup

    front[0].script = script
    received = ask(front)
    assert b"half" in received
    assert not received.endswith(b"0\r\n\r\n")


def test_a_body_of_no_bytes_has_no_framing(front: Front) -> None:
    front[0].script = ok()
    assert ask(front).startswith(b"HTTP/1.1 200")
    assert not front[0].last.all(b"transfer-encoding")
    assert not front[0].last.all(b"content-length")


def test_head_has_no_body(front: Front) -> None:
    front[0].script = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    head, _, body = ask(front, method="HEAD").partition(b"\r\n\r\n")
    assert b"content-length: 5" in head.lower()
    assert body == b""
