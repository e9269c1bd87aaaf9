"""
Faithful to the byte: the rules that Go's `httputil.ReverseProxy` tests pin, paths that try to get somewhere else, and a fuzz of
targets and headers from outside. Its oracle: either the upstream received exactly what the client sent, less and plus the
documented headers, or the client got a 4xx or 5xx.
"""

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, event, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aisbreaker_mw.http1.fields import CLIENT_ADDRESS, HOP_BY_HOP, OVERRIDES, PAGE
from aisbreaker_mw.services.key_places import COMMON_HEADERS

from ..support import Recorded, RecordingUpstream, connect, mint, ok, proxy, raw_exchange

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
CHAT = b"/openai/v1/chat/completions"
# A token that may chat, and another secret for anything else at that vendor: taking one for the other would show.
SECRETS = (("chat:openai.com", "sk-chat"), ("*:openai.com", "sk-other"))


@pytest.fixture(scope="module")
def server(upstream: RecordingUpstream) -> Iterator[str]:
    services = {"nested": {"like": "openai", "vendor": "nested.example", "base_url": f"{upstream.url}/inner/api"}}
    with proxy(upstream, "openai", "anthropic", services=services) as url:
        yield url


@pytest.fixture(scope="module")
def token(server: str) -> bytes:
    return mint(server, *SECRETS, ("*:nested.example", "sk-nested")).encode()


def ask(server: str, token: bytes, target: bytes = CHAT, *headers: bytes, method: bytes = b"GET", body: bytes = b"") -> bytes:
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: 127.0.0.1", b"Authorization: Bearer " + token, *headers]
    return raw_exchange(server, b"\r\n".join([*lines, b"Connection: close", b"", body]))


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


@pytest.mark.parametrize(
    ("sent", "absent"),
    [
        ([b"Connection: X-Some-Conn-Header, Close", b"X-Some-Conn-Header: 1"], b"x-some-conn-header"),
        ([b"Connection: a", b"Connection: b", b"A: 1", b"B: 2"], b"b"),
        ([b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", b"Connection: Upgrade, HTTP2-Settings"], b"upgrade"),
        (
            [b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", b"Connection: Upgrade, HTTP2-Settings"],
            b"http2-settings",
        ),
        ([b"TE: trailers, deflate"], b"te"),
        ([b"Trailer: X-Checksum"], b"trailer"),
        ([b"Proxy-Authorization: Basic Zm9v"], b"proxy-authorization"),
        ([b"Keep-Alive: timeout=5"], b"keep-alive"),
        ([b"X-HTTP-Method-Override: DELETE"], b"x-http-method-override"),
        ([b"Origin: https://app.example.com"], b"origin"),
        ([b"Referer: https://app.example.com/page"], b"referer"),
        ([b"Cookie: session=1"], b"cookie"),
    ],
)
def test_what_is_of_this_connection_or_origin_does_not_travel(
    server: str, token: bytes, upstream: RecordingUpstream, sent: list[bytes], absent: bytes
) -> None:
    lines = [b"GET " + CHAT + b" HTTP/1.1", b"Host: 127.0.0.1", b"Authorization: Bearer " + token, *sent]
    with connect(server) as client:
        client.sendall(b"\r\n".join([*lines, b"", b""]))
        assert status(client.recv(65536)) == 200
    assert upstream.last.all(absent) == []


def test_an_upgrade_request_keeps_its_body(server: str, token: bytes, upstream: RecordingUpstream) -> None:
    answer = ask(server, token, CHAT, b"Upgrade: h2c", b"Content-Length: 4", method=b"POST", body=b"body")
    assert status(answer) == 200
    assert upstream.last.body == b"body"


@pytest.mark.parametrize(("sent", "received"), [([b"User-Agent:"], [b""]), ([b"User-Agent: x/1 (y)"], [b"x/1 (y)"]), ([], [])])
def test_the_user_agent_is_the_clients(
    server: str, token: bytes, upstream: RecordingUpstream, sent: list[bytes], received: list[bytes]
) -> None:
    assert status(ask(server, token, CHAT, *sent)) == 200
    assert upstream.last.all(b"user-agent") == received
    assert upstream.last.all(b"accept") == upstream.last.all(b"accept-encoding") == []


def test_trailers_are_dropped_in_both_directions() -> None:
    def script(request: Recorded, connection: socket.socket) -> bytes:
        head = b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head + b"2\r\nok\r\n0\r\nX-Sum: 1\r\nX-Unannounced: 2\r\n\r\n"

    with RecordingUpstream(script) as upstream, proxy(upstream) as server:
        token = mint(server, ("", "sk")).encode()
        body = b"2\r\nhi\r\n0\r\nAuthorization: Bearer evil\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
        answer = ask(server, token, CHAT, b"Transfer-Encoding: chunked", b"Trailer: X-Sum", method=b"POST", body=body)
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"trailer" not in head.lower()
    assert rest == b"2\r\nok\r\n0\r\n\r\n"
    assert upstream.last.body == b"hi"
    assert b"evil" not in upstream.last.raw


def test_interim_answers_are_dropped_with_their_headers() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nConnection: x-secret\r\nX-Secret: 1\r\n\r\n"
    with RecordingUpstream(interim + ok(b"{}")) as upstream, proxy(upstream) as server:
        answer = ask(server, mint(server, ("", "sk")).encode())
    assert status(answer) == 200
    assert b"103" not in answer
    assert b"x-secret" not in answer.lower()


@pytest.mark.parametrize(
    "path",
    [
        b"/openai/v1/../../admin",
        b"/openai/v1/%2e%2e/%2E%2e/admin",
        b"/openai/v1/..;/admin",
        b"/openai/v1/..%2fadmin",
        b"/openai/v1/.%2e/admin",
        b"/openai/v1/chat/completions/../../files",
        b"/openai/..",
        b"/openai/\\evil.example/x",
        b"/openai/%5c..%5cx",
        b"/openai//evil.example/x",
        b"//evil.example/openai/v1/files",
        b"http://evil.example/openai/v1/files",
        b"/openai/v1/files%00",
        b"/openai/v1/%0d%0aHost:%20evil",
        b"/nested/v1/../../../etc",
        b"/nested/%2e%2e/x",
    ],
)
def test_paths_that_try_to_get_somewhere_else(server: str, token: bytes, upstream: RecordingUpstream, path: bytes) -> None:
    before = len(upstream.requests)
    assert 400 <= status(ask(server, token, path)) < 500
    assert len(upstream.requests) == before


@pytest.mark.parametrize(
    ("path", "target", "secret"),
    [
        (b"/openai/@evil.example/x", b"/v1/@evil.example/x", b"sk-other"),
        (b"/openai/v1/%252e%252e/files", b"/v1/%252e%252e/files", b"sk-other"),
        (b"/openai/v1/chat//completions", b"/v1/chat//completions", b"sk-other"),
        (b"/openai/v1/chat/completions/", b"/v1/chat/completions/", b"sk-other"),
        (b"/openai/v1/%63hat/completions", b"/v1/%63hat/completions", b"sk-other"),
        (b"/openai/v1/chat%2Fcompletions", b"/v1/chat%2Fcompletions", b"sk-other"),
        (b"/openai/v1/Chat/Completions", b"/v1/Chat/Completions", b"sk-other"),
        (b"/openai/v1/chat/completions;x=1", b"/v1/chat/completions;x=1", b"sk-other"),
        (b"/openai/chat/completions", b"/v1/chat/completions", b"sk-chat"),
        (b"/nested/files", b"/inner/api/v1/files", b"sk-nested"),
    ],
)
def test_an_unusual_spelling_reaches_the_service_and_no_other_secret(
    server: str, token: bytes, upstream: RecordingUpstream, path: bytes, target: bytes, secret: bytes
) -> None:
    assert status(ask(server, token, path, b"Content-Length: 2", method=b"POST", body=b"{}")) == 200
    assert upstream.last.target == target
    assert upstream.last.all(b"authorization") == [b"Bearer " + secret]
    assert upstream.last.all(b"host") == [upstream.url.removeprefix("http://").encode()]


# The fuzz

_TARGET_BYTES = st.sampled_from(b"/abcv1.%2eEfF5cC0\\;:@!$&'()*+,=~|^[]<>\"{}`-_ ?#\x00\x7f\x80\xc3")
_ODD = st.sampled_from([b"/../", b"/./", b"%2e%2e", b"..;/", b"//", b"%2F", b"%5c", b"%zz", b"?", b"&key=x", b"%00", b"%252e"])
TARGETS = st.lists(st.one_of(_TARGET_BYTES.map(lambda byte: bytes([byte])), _ODD), max_size=12).map(b"".join)
NAMES = st.one_of(
    st.sampled_from(
        [
            b"connection",
            b"te",
            b"upgrade",
            b"host",
            b"cookie",
            b"expect",
            b"via",
            b"x-forwarded-for",
            b"x-api-key",
            b"accept-encoding",
            b"user-agent",
            b"X-MiXeD",
            b"content-type",
            b"transfer-encoding",
            b"content-length",
        ]
    ),
    st.text("abcdefghijklmnopqrstuvwxyz-_.!#$", min_size=1, max_size=8).map(lambda text: b"x-" + text.encode()),
    st.binary(min_size=1, max_size=4).filter(
        lambda name: not set(name) & set(b"\n:")
    ),  # a line end or a colon makes it another header
)
VALUES = st.one_of(
    st.binary(max_size=12).filter(lambda value: b"\n" not in value),
    st.sampled_from(
        [b"close", b"keep-alive, x-a", b"x-a", b"websocket", b"2", b"chunked", b"a, b", b"", b"h\xc3\xa9", b"\tx\t"]
    ),
)
DROPPED = HOP_BY_HOP | COMMON_HEADERS | CLIENT_ADDRESS | OVERRIDES | PAGE | {b"host", b"expect"}


def expected(headers: list[tuple[bytes, bytes]], host: bytes, secret: bytes) -> list[tuple[bytes, bytes]]:
    """What documentation says of the headers that travel."""
    options = {
        option.strip().lower() for name, value in headers if name.lower() == b"connection" for option in value.split(b",")
    }
    options -= {b"close", b"keep-alive", b"upgrade", b"te", b""}
    kept = [
        (name.lower(), value.strip(b" \t"))
        for name, value in headers
        if name.lower() not in DROPPED | options | {b"x-aisbreaker-passed"} and b"_" not in name
    ]
    chunked = [(b"transfer-encoding", b"chunked") for name, _ in headers if name.lower() == b"transfer-encoding"]
    return [(b"host", host), *kept, (b"authorization", b"Bearer " + secret), *chunked]


@hypothesis_settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(TARGETS, st.lists(st.tuples(NAMES, VALUES), max_size=5))
@example(b"/../", [])
@example(b"?a=%zz&b=[]|^", [(b"x-a", b"1"), (b"connection", b"x-a")])
@example(b"", [(b"host", b"evil.example")])
def test_either_exactly_what_was_sent_or_an_error(
    server: str, token: bytes, upstream: RecordingUpstream, tail: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    before = len(upstream.requests)
    target = b"/openai/v1/files" + tail
    # Where a header announces a body, this is one; where none does, nothing is read behind a head that says close.
    answer = ask(server, token, target, *(name + b": " + value for name, value in headers), body=b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 "), answer
    event(f"status {status(answer)}")
    if status(answer) >= 400:
        return
    received = upstream.requests[before:]
    assert len(received) == 1
    path, question, query = target.partition(b"?")
    if question:
        kept = [pair for pair in query.split(b"&") if pair.partition(b"=")[0] != b"key"]
        path += question + b"&".join(kept) if b"&".join(kept) else b""
    assert received[0].target == path.removeprefix(b"/openai")
    secret = received[0].all(b"authorization")[0].removeprefix(b"Bearer ")
    assert secret in (b"sk-chat", b"sk-other")
    assert secret == b"sk-other"  # nothing below /v1/files is a chat
    assert received[0].headers == expected(headers, upstream.url.removeprefix("http://").encode(), secret)
