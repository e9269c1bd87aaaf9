"""What travels through the proxy and how: streaming, framing, headers, clients that leave and upstreams that break off."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from aisbreaker_mw import RequestQuotas, ServiceSecret, TokenClaims, create_app
from aisbreaker_mw.tokens.sealer import TokenSealer
from aisbreaker_mw.upstream.watch import DISCONNECT_CHECK

from ..support import WAIT, Recorded, RecordingUpstream, bearer, connect, mint, ok, proxy, raw_exchange, settings, wait_until

SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHAT = "/openai/v1/chat/completions"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture(params=["native", "httpx"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Through:
    """A proxy in front of a scripted upstream, and a token for it."""

    def __init__(self, base: str, upstream: RecordingUpstream) -> None:
        self.base = base
        self.upstream = upstream
        self.token = mint(base, ("", "sk-secret"))

    def request(self, method: str = "GET", path: str = CHAT, headers: bytes = b"", body: bytes = b"") -> bytes:
        """Send a raw request, and return the raw answer."""
        return raw_exchange(self.base, self.head(method, path, headers + b"Connection: close\r\n") + body)

    def head(self, method: str, path: str, headers: bytes = b"") -> bytes:
        lines = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self.token}\r\n".encode()
        return lines + headers + b"\r\n"


@pytest.fixture
def through(transport: str) -> Iterator[Callable[..., Through]]:
    import contextlib

    with contextlib.ExitStack() as stack:

        def start(script: Any = None, **values: Any) -> Through:
            upstream = stack.enter_context(RecordingUpstream(script))
            values["upstream"] = {"transport": transport, **values.get("upstream", {})}
            return Through(stack.enter_context(proxy(upstream, **values)), upstream)

        yield start


def test_a_piece_reaches_the_client_before_the_upstream_sends_the_next(through: Callable[..., Through]) -> None:
    acknowledged = threading.Semaphore(0)
    pieces = [b"data: %d\n\n" % number for number in range(20)] + [b"data: [DONE]\n\n"]

    def script(request: Recorded, connection: socket.socket) -> None:
        connection.sendall(SSE_HEAD)
        for piece in pieces:
            connection.sendall(chunk(piece))
            assert acknowledged.acquire(timeout=WAIT)
        connection.sendall(b"0\r\n\r\n")

    via = through(script)
    received = []
    with httpx.stream("POST", via.base + CHAT, json={}, headers=bearer(via.token)) as response:
        assert response.headers["content-type"] == "text/event-stream"
        for piece in response.iter_raw():
            received.append(piece)
            acknowledged.release()
    assert received == pieces


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_slow_client_holds_the_upstream_back_and_gets_everything(through: Callable[..., Through], framing: str) -> None:
    blocks = [b"%07d\n" % number * 8_192 for number in range(500)]  # 32 MB: more than the kernel holds
    whole = b"".join(blocks)
    written = 0

    def script(request: Recorded, connection: socket.socket) -> None:
        nonlocal written
        head = {
            "length": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(whole),
            "chunked": SSE_HEAD,
            "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        }[framing]
        connection.sendall(head)
        for block in blocks:
            connection.sendall(chunk(block) if framing == "chunked" else block)
            written += 1
        if framing == "chunked":
            connection.sendall(b"0\r\n\r\n")
        if framing == "close":
            raise RecordingUpstream.Hangup

    via = through(script)
    with httpx.stream("POST", via.base + CHAT, json={}, headers=bearer(via.token)) as response:
        last = -1
        while written != last:
            last = written
            time.sleep(0.05)
        assert written < len(blocks) / 2
        received = b"".join(response.iter_raw())
    assert received == whole


def test_an_answer_that_breaks_off_when_its_client_has_left_is_no_crash(
    through: Callable[..., Through], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aisbreaker_mw.access")
    left = threading.Event()

    def script(request: Recorded, connection: socket.socket) -> None:
        assert left.wait(WAIT)
        connection.sendall(SSE_HEAD + chunk(b"one"))
        raise RecordingUpstream.Hangup

    via = through(script)
    with connect(via.base) as client:
        client.sendall(via.head("GET", CHAT))
        wait_until(lambda: via.upstream.requests)
    left.set()
    wait_until(lambda: "complete=False" in caplog.text, "the end of the request")
    httpx.get(via.base + "/api/v1/ping")  # by then the task has ended
    assert [record for record in caplog.records if record.name == "uvicorn.error"] == []


def test_request_body_is_streamed_to_the_upstream_as_it_comes(through: Callable[..., Through]) -> None:
    arrived = threading.Event()

    def script(request: Recorded, connection: socket.socket) -> bytes:
        return ok()

    via = through(script)

    def body() -> Iterator[bytes]:
        yield b"first"
        # The upstream has seen the head, and so has begun to take the body, before its second half is there.
        wait_until(lambda: via.upstream.requests, "the request's arrival upstream")
        arrived.set()
        yield b"second"

    response = httpx.post(via.base + CHAT, content=body(), headers=bearer(via.token))
    assert response.status_code == 200
    assert arrived.is_set()
    assert via.upstream.last.body == b"firstsecond"
    assert via.upstream.last.all(b"transfer-encoding") == [b"chunked"]


@pytest.mark.parametrize("streamed", [True, False], ids=["streaming", "waiting-for-the-head"])
def test_a_client_that_leaves_closes_the_upstream_request_within_a_second(
    through: Callable[..., Through], streamed: bool
) -> None:
    closed = threading.Event()

    def script(request: Recorded, connection: socket.socket) -> None:
        if streamed:
            connection.sendall(SSE_HEAD + chunk(b"data: 1\n\n"))
        connection.settimeout(WAIT)
        if connection.recv(1) == b"":
            closed.set()

    via = through(script)
    with connect(via.base) as client:
        client.sendall(via.head("POST", CHAT, b"Content-Length: 2\r\n") + b"{}")
        wait_until(lambda: via.upstream.requests and via.upstream.last.body == b"{}")
        if streamed:
            assert client.recv(10)
    assert closed.wait(1.0)


def test_a_short_body_that_comes_slowly_holds_no_connection(through: Callable[..., Through]) -> None:
    via = through()
    with connect(via.base) as client:
        client.sendall(via.head("POST", CHAT, b"Content-Length: 10\r\nConnection: close\r\n") + b"hello")
        assert via.request("GET", "/openai/v1/models").startswith(b"HTTP/1.1 200")
        assert via.upstream.connections == 1
        client.sendall(b"world")
        assert client.recv(12) == b"HTTP/1.1 200"
    assert via.upstream.last.body == b"helloworld"
    assert via.upstream.connections == 1


def test_a_client_that_leaves_in_the_middle_of_a_short_body_asks_nothing(through: Callable[..., Through]) -> None:
    via = through()
    with connect(via.base) as client:
        client.sendall(via.head("POST", CHAT, b"Content-Length: 10\r\n") + b"hello")
    assert via.request("GET", "/openai/v1/models").startswith(b"HTTP/1.1 200")
    assert [request.target for request in via.upstream.requests] == [b"/v1/models"]


@pytest.mark.parametrize("sent", [b"hell", b"hello!"], ids=["shorter", "longer"])
async def test_a_body_of_another_length_than_told_is_the_clients_mistake(transport: str, sent: bytes) -> None:
    """Servers see to it, but not every ASGI server."""
    answers: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": sent, "more_body": False}

    async def send(message: Any) -> None:
        answers.append(message)

    app = create_app(settings(upstream={"transport": transport}, services={"openai": {"base_url": "http://127.0.0.1:1"}}))
    secret = ServiceSecret("chat:openai.com", SecretStr("sk-1"))
    token = TokenSealer(settings().keyring()).seal(TokenClaims("j" * 22, 0, 2**40, RequestQuotas(), (secret,)), "a")
    headers = [(b"host", b"a"), (b"authorization", b"Bearer " + token.encode()), (b"content-length", b"5")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    assert answers[0]["status"] == 400


@pytest.mark.parametrize("framing", [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")], ids=["whole", "streamed"])
@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
async def test_a_body_may_come_in_any_buffer(transport: str, buffer: type, framing: tuple[bytes, bytes]) -> None:
    """ASGI says bytes, but not everybody who stands before us keeps to it."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": buffer(b"hello"), "more_body": False}

    answers: list[Any] = []

    async def send(message: Any) -> None:
        answers.append(message)

    with RecordingUpstream() as upstream:
        services = {"openai": {"base_url": upstream.url}}
        app = create_app(settings(upstream={"transport": transport}, services=services, foreign_credentials="forward"))
        headers = [(b"host", b"a"), (b"authorization", b"Bearer sk-1"), framing]
        scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "raw_path": CHAT.encode(),
            "query_string": b"",
            "headers": headers,
        }
        await app(scope, receive, send)
        await app.aclose()
    assert answers[0]["status"] == 200
    assert upstream.last.body == b"hello"


def holding(release: threading.Event) -> Callable[[Recorded, socket.socket], bytes]:
    """A script that has the first request wait."""

    def script(request: Recorded, connection: socket.socket) -> bytes:
        if request.target.endswith(b"first"):
            release.wait(WAIT)
        return ok()

    return script


def test_a_request_that_waits_for_a_connection_keeps_its_body(through: Callable[..., Through]) -> None:
    """Its client is watched meanwhile, or not: what it sends is not taken for that."""
    release = threading.Event()
    via = through(holding(release), upstream={"max_connections": 1})
    with connect(via.base) as first, connect(via.base) as second:
        first.sendall(via.head("GET", "/openai/v1/first"))
        wait_until(lambda: via.upstream.requests)
        second.sendall(via.head("POST", CHAT, b"Content-Length: 5\r\nConnection: close\r\n") + b"hello")
        threading.Timer(3 * DISCONNECT_CHECK, release.set).start()
        assert second.recv(12) == b"HTTP/1.1 200"
    assert via.upstream.last.body == b"hello"


def test_a_client_that_leaves_before_there_is_a_connection_asks_nothing(through: Callable[..., Through]) -> None:
    release = threading.Event()
    via = through(holding(release), upstream={"max_connections": 1})
    with connect(via.base) as first:
        first.sendall(via.head("GET", "/openai/v1/first"))
        wait_until(lambda: via.upstream.requests)
        with connect(via.base) as second:
            second.sendall(via.head("POST", "/openai/v1/second", b"Content-Length: 0\r\n"))
        threading.Timer(3 * DISCONNECT_CHECK, release.set).start()
        assert first.recv(12) == b"HTTP/1.1 200"
    assert via.request("GET", "/openai/v1/third").startswith(b"HTTP/1.1 200")
    assert [request.target for request in via.upstream.requests] == [b"/v1/first", b"/v1/third"]


def test_an_upload_that_breaks_off_is_no_complete_request_upstream(through: Callable[..., Through]) -> None:
    ended = threading.Event()

    def script(request: Recorded, connection: socket.socket) -> bytes:
        ended.set()
        return ok()

    via = through(script)
    with connect(via.base) as client:
        client.sendall(via.head("POST", CHAT, b"Transfer-Encoding: chunked\r\n") + chunk(b"half"))
        wait_until(lambda: via.upstream.requests)
    assert via.upstream.last.closed.wait(WAIT)
    assert not ended.is_set()


@pytest.mark.parametrize(
    "start",
    [SSE_HEAD + chunk(b"data: 1\n\n"), b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"],
    ids=["chunked", "length"],
)
def test_an_upstream_that_breaks_off_leaves_a_truncated_answer(through: Callable[..., Through], start: bytes) -> None:
    def script(request: Recorded, connection: socket.socket) -> None:
        connection.sendall(start)
        raise RecordingUpstream.Hangup

    via = through(script)
    with httpx.stream("POST", via.base + CHAT, json={}, headers=bearer(via.token)) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            list(response.iter_raw())


def test_an_idle_upstream_is_cut_off(through: Callable[..., Through]) -> None:
    def script(request: Recorded, connection: socket.socket) -> None:
        connection.sendall(SSE_HEAD + chunk(b"data: 1\n\n"))
        connection.settimeout(WAIT)
        connection.recv(1)

    via = through(script, upstream={"idle_timeout": "200ms"})
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(via.base + CHAT, json={}, headers=bearer(via.token))


def test_request_headers(through: Callable[..., Through]) -> None:
    via = through()
    via.request(
        "POST",
        headers=b"\r\n".join(
            [
                b"X-First: 1",
                b"Keep-Alive: timeout=5",
                b"X-Nominated: gone",
                b"Connection: keep-alive, x-nominated",
                b"Proxy-Authorization: Basic Zm9v",
                b"Proxy-Connection: keep-alive",
                b"TE: trailers",
                b"X-Api-Key: sk-other",
                b"Cookie: session=1",
                b"X-Forwarded-For: 192.0.2.1",
                b"X-Forwarded-Proto: https",
                b"Forwarded: for=192.0.2.1",
                b"X-Real-IP: 192.0.2.1",
                b"Via: 1.1 x",
                b"Accept-Encoding: br;q=0.5",
                b"X-Bytes: caf\xe9",
                b"X-Twice: a",
                b"X-Twice: b",
                b"Content-Length: 2",
                b"",
            ]
        ),
        body=b"{}",
    )
    host = via.upstream.url.removeprefix("http://").encode()
    assert via.upstream.last.headers == [
        (b"host", host),
        (b"x-first", b"1"),
        (b"accept-encoding", b"br;q=0.5"),
        (b"x-bytes", b"caf\xe9"),
        (b"x-twice", b"a"),
        (b"x-twice", b"b"),
        (b"content-length", b"2"),
        (b"authorization", b"Bearer sk-secret"),
    ]


def test_answer_headers(through: Callable[..., Through]) -> None:
    via = through(
        ok(
            b"{}",
            b"Set-Cookie: a=1",
            b"X-Twice: a=1",
            b"X-Twice: b=2",
            b"Connection: x-nominated",
            b"X-Nominated: gone",
            b"Keep-Alive: timeout=5",
            b"Date: Thu, 01 Jan 1970 00:00:00 GMT",
            b"Server: theirs",
            b"X-RateLimit-Remaining-Requests: 7",
            b"RateLimit: theirs",
            b"Access-Control-Allow-Origin: https://elsewhere.example",
            b"X-Bytes: caf\xe9",
        )
    )
    token = mint(via.base, ("", "sk"), quotas={"globalRequestLimits": {"requestsPerHour": 10}})
    via.token = token
    head = via.request().partition(b"\r\n\r\n")[0]
    lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
    values = [(name.lower(), value) for name, _, value in lines]
    names = [name for name, _ in values]
    assert [value for name, value in values if name == b"x-twice"] == [b"a=1", b"b=2"]
    assert names.count(b"date") == names.count(b"server") == names.count(b"ratelimit") == 1
    assert (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT") in values
    assert (b"server", b"theirs") in values
    assert (b"x-ratelimit-remaining-requests", b"7") in values
    assert (b"ratelimit", b'"token-hour";r=9;t=3600') in values
    assert (b"x-bytes", b"caf\xe9") in values
    assert not {b"x-nominated", b"keep-alive", b"access-control-allow-origin", b"set-cookie"} & set(names)


def test_no_cookie_is_kept_and_no_redirect_followed(through: Callable[..., Through]) -> None:
    via = through(ok(b"", b"Location: http://127.0.0.1:1/", b"Set-Cookie: a=1; Path=/", status=b"307 Temporary Redirect"))
    for _ in range(2):
        response = httpx.get(via.base + CHAT, headers=bearer(via.token))
        assert response.status_code == 307
        assert response.headers["location"] == "http://127.0.0.1:1/"
    assert via.upstream.last.all(b"cookie") == []


@pytest.mark.parametrize(
    "target",
    [
        "/v1/files/a%2Fb?x=%2F&y=%zz&z=[]|^;q",
        "/v1/chat/completions?",
        "/v1/x?a=1&&b=%C3%A9&+=+",
        "/v1/%E2%82%AC/~a!$&'()*+,;=:@",
    ],
)
def test_path_and_query_travel_byte_for_byte(through: Callable[..., Through], target: str) -> None:
    via = through()
    answer = via.request("GET", "/openai" + target)
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert via.upstream.last.target.removesuffix(b"?") == target.encode().removesuffix(b"?")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_every_method_travels(through: Callable[..., Through], method: str) -> None:
    def script(request: Recorded, connection: socket.socket) -> bytes:
        answer = ok()
        return answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if request.head.startswith(b"HEAD") else answer

    via = through(script)
    for _ in range(2):
        response = httpx.request(method, via.base + CHAT, headers=bearer(via.token))
        assert response.status_code == 200
        assert response.headers["content-length"] == "11"
    assert via.upstream.last.request_line.startswith(method.encode() + b" ")
    assert via.upstream.connections == 1  # the connection is used again


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_answers_without_a_body(through: Callable[..., Through], status: bytes) -> None:
    via = through(b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n")
    answer = via.request()
    assert answer.startswith(b"HTTP/1.1 " + status[:3])
    assert answer.endswith(b"\r\n\r\n")
    assert b"chunked" not in answer


def test_an_answer_that_ends_with_its_connection(through: Callable[..., Through]) -> None:
    def script(request: Recorded, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end")
        raise RecordingUpstream.Hangup

    via = through(script)
    assert httpx.get(via.base + CHAT, headers=bearer(via.token)).text == "until the end"


def test_a_body_over_the_limit_is_413(through: Callable[..., Through]) -> None:
    via = through(upstream={"max_body_bytes": 1000})
    declared = httpx.post(via.base + CHAT, content=b"x" * 1001, headers=bearer(via.token))
    assert declared.status_code == 413
    assert not via.upstream.requests

    def body() -> Iterator[bytes]:
        for _ in range(101):
            yield b"x" * 10

    assert httpx.post(via.base + CHAT, content=body(), headers=bearer(via.token)).status_code == 413
    assert httpx.post(via.base + CHAT, content=b"x" * 1000, headers=bearer(via.token)).status_code == 200


def test_proxies_in_the_environment_are_ignored(through: Callable[..., Through], monkeypatch: pytest.MonkeyPatch) -> None:
    via = through()
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    assert via.request().startswith(b"HTTP/1.1 200 ")


def test_expect_100_continue_is_met_before_the_body_is_sent(through: Callable[..., Through]) -> None:
    via = through()
    with connect(via.base) as client:
        client.sendall(via.head("POST", CHAT, b"Content-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n"))
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"{}")
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert via.upstream.last.all(b"expect") == []


def test_a_refused_upload_is_not_asked_for(through: Callable[..., Through]) -> None:
    via = through()
    via.token = "aisbreaker_bad"
    with connect(via.base) as client:
        client.sendall(via.head("POST", CHAT, b"Content-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n"))
        assert client.recv(1000).startswith(b"HTTP/1.1 401 ")


def test_foreign_credentials_are_forwarded_where_configured(through: Callable[..., Through]) -> None:
    via = through(
        ok(b'{"error":{"message":"bad key"}}', status=b"401 Unauthorized"),
        foreign_credentials="forward",
        quotas={"server": {"global_request_limits": {"requests_per_minute": 1}}},
    )
    response = httpx.get(f"{via.base}{CHAT}?key=mine&a=1", headers=bearer("sk-mine"))
    assert response.status_code == 401
    assert response.json() == {"error": {"message": "bad key"}}
    assert via.upstream.last.all(b"authorization") == [b"Bearer sk-mine"]
    assert via.upstream.last.target == b"/v1/chat/completions?key=mine&a=1"
    assert httpx.get(via.base + CHAT, headers=bearer("sk-mine")).status_code == 429


def test_the_default_token_serves_requests_without_a_credential(through: Callable[..., Through]) -> None:
    first = through(hosts=["127.0.0.1"])
    via = through(hosts=["127.0.0.1"], default_api_key=first.token)
    assert httpx.get(via.base + CHAT).status_code == 200
    assert via.upstream.last.all(b"authorization") == [b"Bearer sk-secret"]
    assert httpx.get(via.base + CHAT, headers=bearer("sk-foreign")).status_code == 401


def test_engines(through: Callable[..., Through]) -> None:
    via = through(upstream={"max_engine_scan_bytes": 10_000})
    token = mint(via.base, ("chat:openai.com/gpt-4o-mini", "sk-mini"), ("chat:openai.com/o1*", "sk-o1"))

    def ask(body: Any, **options: Any) -> httpx.Response:
        arguments = {"json": body} if isinstance(body, dict) else {"content": body}
        return httpx.post(via.base + CHAT, headers=bearer(token), **arguments, **options)

    assert ask({"messages": [{"model": "o1"}], "model": "gpt-4o-mini"}).status_code == 200
    assert via.upstream.last.all(b"authorization") == [b"Bearer sk-mini"]
    assert b'"gpt-4o-mini"' in via.upstream.last.body
    assert ask({"model": "o1-preview"}).status_code == 200
    assert via.upstream.last.all(b"authorization") == [b"Bearer sk-o1"]
    refused = ask({"model": "gpt-4o"})
    assert refused.status_code == 403
    assert "chat:openai.com/gpt-4o" in refused.json()["error"]["message"]
    assert ask({}).status_code == 403
    assert ask(b'{"model":"gpt-4o-mini","model":"gpt-4o"}').status_code == 400
    assert ask({"model": "gpt-4o-mini", "x": "y" * 10_000}).status_code == 413
    assert len(via.upstream.requests) == 2


def test_cors(through: Callable[..., Through]) -> None:
    via = through(cors_origins=["https://app.example.com"])
    origin = {"origin": "https://app.example.com"}
    preflight = httpx.options(
        via.base + CHAT,
        headers={
            **origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
    answer = httpx.post(via.base + CHAT, json={}, headers={**origin, **bearer(via.token)})
    assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "ratelimit" in answer.headers["access-control-expose-headers"]
    refused = httpx.post(via.base + CHAT, json={}, headers=origin)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example.com"
    minting = httpx.options(f"{via.base}/api/v1/oauth/token", headers={**origin, "access-control-request-method": "POST"})
    assert minting.status_code == 405
    assert "access-control-allow-origin" not in minting.headers
