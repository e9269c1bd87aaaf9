"""The server side of HTTP/1.1: what is a request, what is refused, what time a client has, and how answers end."""

import asyncio
import contextlib
import contextvars
import functools
import itertools
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import h11
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from aisbreaker_mw.exceptions import HeadTooLarge, InvalidRequest, RequestError, ResponseInterrupted
from aisbreaker_mw.serving.http_protocol import HTTPProtocol
from aisbreaker_mw.serving.request_head import ChunkedDecoder, Limits, RequestHead

FUZZ_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
CANARY = b"s3cr3t"
DATE = b"Thu, 01 Jan 1970 00:00:00 GMT"


# --- Apps -------------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """One whole request as the app saw it."""

    scope: dict[str, Any]
    body: bytes

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self.scope["headers"]

    def names(self) -> list[bytes]:
        return [name for name, _ in self.headers]


@dataclass
class App:
    """Answers as the path says, and remembers what it saw."""

    seen: list[Seen] = field(default_factory=list)
    started: int = 0
    disconnects: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.started += 1
        await getattr(self, scope["path"].strip("/").replace("-", "_") or "echo", self.echo)(scope, receive, send)

    async def read(self, scope: Any, receive: Any) -> bytes | None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return None
            body += message["body"]
            if not message["more_body"]:
                self.seen.append(Seen(scope, body))
                return body

    async def answer(self, send: Any, body: bytes, *headers: tuple[bytes, bytes], status: int = 200) -> None:
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def echo(self, scope: Any, receive: Any, send: Any) -> None:
        body = await self.read(scope, receive)
        if body is not None:
            await self.answer(send, b"%d bytes" % len(body))

    async def early(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer without looking at the body."""
        await self.answer(send, b"early", status=401)

    async def early_close(self, scope: Any, receive: Any, send: Any) -> None:
        await self.answer(send, b"early", (b"Connection", b"close"), status=413)

    async def lazy(self, scope: Any, receive: Any, send: Any) -> None:
        """Take nothing of the body until told."""
        await LAZY.wait()
        await self.echo(scope, receive, send)

    async def begun(self, scope: Any, receive: Any, send: Any) -> None:
        """Begin the answer, then read the body."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        if await self.read(scope, receive) is not None:
            await send({"type": "http.response.body", "body": b" and done", "more_body": False})

    async def waits(self, scope: Any, receive: Any, send: Any) -> None:
        """Wait until the client goes away."""
        await self.read(scope, receive)
        await self.read(scope, receive)

    async def chunked(self, scope: Any, receive: Any, send: Any) -> None:
        await self.read(scope, receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"one ", b"two ", b""):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"three"})

    async def named(self, scope: Any, receive: Any, send: Any) -> None:
        """What a proxy passes on of its upstream's answer."""
        date = [(b"Date", b"upstream's"), (b"date", b"second"), (b"Server", b"nginx"), (b"server", b"second")]
        hop = [(b"Connection", b"keep-alive"), (b"Transfer-Encoding", b"chunked"), (b"Set-Cookie", b"a"), (b"Set-Cookie", b"b")]
        await self.answer(send, b"named", *date, *hop)

    async def loose(self, scope: Any, receive: Any, send: Any) -> None:
        """Say it in other types than ASGI's own examples do."""
        headers = ([b"X-A", b"a"], [b"content-length", b"5"], [b"Connection", b"keep-alive"])
        await send({"type": "http.response.start", "status": HTTPStatus.CREATED, "headers": iter(headers)})
        await send({"type": "http.response.body", "body": bytearray(b"lo"), "more_body": 1})
        await send({"type": "http.response.body", "body": memoryview(b"ose"), "more_body": None})

    async def no_content(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async def not_modified(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 304, "headers": [(b"content-length", b"17")]})
        await send({"type": "http.response.body"})

    async def interrupted(self, scope: Any, receive: Any, send: Any) -> None:
        await self.cut_off(send, ResponseInterrupted("upstream broke off"))

    async def interrupted_in_group(self, scope: Any, receive: Any, send: Any) -> None:
        await self.cut_off(send, ExceptionGroup("task group", [ResponseInterrupted("upstream broke off")]))

    async def interrupted_with_length(self, scope: Any, receive: Any, send: Any) -> None:
        await self.cut_off(send, ResponseInterrupted("upstream broke off"), (b"content-length", b"100"))

    async def interrupted_before(self, scope: Any, receive: Any, send: Any) -> None:
        raise ResponseInterrupted("before the answer")

    async def crash(self, scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError("a bug")

    async def crash_after_begin(self, scope: Any, receive: Any, send: Any) -> None:
        await self.cut_off(send, ZeroDivisionError("a bug"))

    async def crash_after_end(self, scope: Any, receive: Any, send: Any) -> None:
        await self.answer(send, b"whole")
        raise ZeroDivisionError("a bug")

    async def forgets(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def too_long(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": b"four"})

    async def too_short(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"four"})

    async def splits(self, scope: Any, receive: Any, send: Any) -> None:
        await self.answer(send, b"", (b"x", b"a\r\nSet-Cookie: b"))

    async def bad_name(self, scope: Any, receive: Any, send: Any) -> None:
        await self.answer(send, b"", (b"x y", b"a"))

    async def context(self, scope: Any, receive: Any, send: Any) -> None:
        before = CONTEXT.get()
        CONTEXT.set("of another request")
        await self.answer(send, before.encode())

    async def cut_off(self, send: Any, error: BaseException, *headers: tuple[bytes, bytes]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await asyncio.sleep(0.01)
        raise error


CONTEXT = contextvars.ContextVar("CONTEXT", default="clean")
LAZY = asyncio.Event()


# --- A connection without sockets, on a clock of the test's own ---------------------------------------------------------


class Clock(asyncio.SelectorEventLoop):
    now = 1000.0

    def time(self) -> float:
        return self.now


class Transport(asyncio.Transport):
    """Takes what the server writes; tells it of the connection's end as asyncio would."""

    def __init__(self, wire: "Wire") -> None:
        super().__init__()
        self.wire = wire
        self.written = b""
        self.eof = self.closed = self.paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        assert not self.eof
        self.written += bytes(data)

    def write_eof(self) -> None:
        self.eof = True

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.wire.loop.call_soon(self.wire.protocol.connection_lost, None)

    abort = close


LIMITS = Limits()


class Wire:
    """One connection."""

    def __init__(self, loop: Clock, app: Any, limits: Limits = LIMITS) -> None:
        self.loop = loop
        config = uvicorn.Config(app, http=HTTPProtocol, ws="none", log_config=None, access_log=False, proxy_headers=False)
        config.load()
        self.state = ServerState()
        self.state.default_headers = [(b"date", DATE)]
        self.protocol = HTTPProtocol(config, self.state, {}, loop, limits=limits)
        self.transport = Transport(self)
        self.protocol.connection_made(self.transport)

    def send(self, data: bytes) -> "Wire":
        if not self.transport.closed:
            self.protocol.data_received(data)
        return self.settle()

    def settle(self) -> "Wire":
        for _ in range(8):
            self.loop.run_until_complete(asyncio.sleep(0))
        return self

    def after(self, seconds: float) -> "Wire":
        """Let time pass, in steps as a real clock would."""
        end = self.loop.now + seconds
        while self.loop.now < end:
            self.loop.now = min(self.loop.now + 1, end)
            self.settle()
        return self

    @property
    def ended(self) -> bool:
        return self.transport.eof or self.transport.closed

    def statuses(self) -> list[int]:
        """Status codes of the answers so far, each parsed strictly."""
        return [answer.status for answer in parse(self.transport.written, partial=True)]

    def abandon(self) -> None:
        self.transport.close()
        self.settle()
        for task in list(self.state.tasks):
            task.cancel()
        self.settle()


@pytest.fixture(scope="module")
def loop() -> Iterator[Clock]:
    loop = Clock()
    yield loop
    loop.close()


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def connect(loop: Clock, app: App) -> Iterator[Callable[..., Wire]]:
    wires: list[Wire] = []

    def connect(limits: Limits = LIMITS) -> Wire:
        wires.append(Wire(loop, app, limits))
        return wires[-1]

    yield connect
    for wire in wires:
        wire.abandon()


# --- A real server ------------------------------------------------------------------------------------------------------


SmallLimits = functools.partial(HTTPProtocol, limits=Limits(head_timeout=0.3, body_grace=0.3, linger=0.5))


@dataclass
class Server:
    port: int
    app: App

    def talk(self, *segments: bytes, pause: float = 0.0) -> bytes:
        """Send, and return all that comes until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for segment in segments:
                try:
                    client.sendall(segment)
                except ConnectionError:
                    break
                time.sleep(pause)
            return read_all(client)


def read_all(client: socket.socket) -> bytes:
    received = b""
    while piece := client.recv(65536):
        received += piece
    return received


def read_one(client: socket.socket) -> "Answer":
    received = client.recv(65536)
    while not parse(received, partial=True)[0].complete:
        received += client.recv(65536)
    return parse(received, partial=True)[0]


@contextlib.contextmanager
def run_server(app: App, **options: Any) -> Iterator[Server]:
    config = uvicorn.Config(
        app,
        port=0,
        http=SmallLimits,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        **options,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield Server(server.servers[0].sockets[0].getsockname()[1], app)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def running(request: pytest.FixtureRequest) -> Iterator[Server]:
    with run_server(App(), loop=request.param) as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    running.app.seen.clear()
    running.app.disconnects = 0
    return running


# --- Reading answers ----------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    complete: bool = False

    def values(self, name: bytes) -> list[bytes]:
        return [value for other, value in self.headers if other == name]


def parse(raw: bytes, *methods: str, partial: bool = False) -> list[Answer]:
    """Return the answers in `raw`, as a client that knows the requests' methods (default GET) understands them."""
    client = h11.Connection(h11.CLIENT)
    answers: list[Answer] = []
    queue = list(methods)

    def begin() -> None:
        method = queue.pop(0) if queue else "GET"
        client.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        client.send(h11.EndOfMessage())

    begin()
    client.receive_data(raw)
    if not partial:
        client.receive_data(b"")
    while True:
        try:
            event = client.next_event()
        except h11.RemoteProtocolError:
            break
        if isinstance(event, h11.InformationalResponse):
            answers.append(Answer(event.status_code, list(event.headers), complete=True))
        elif isinstance(event, h11.Response):
            answers.append(Answer(event.status_code, list(event.headers)))
        elif isinstance(event, h11.Data):
            answers[-1].body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            answers[-1].complete = True
            if client.our_state is h11.DONE and client.their_state is h11.DONE:
                client.start_next_cycle()
                begin()
        else:
            break
    return answers


def assert_refused(raw: bytes, status: int) -> None:
    """`raw` ends with a refusal in the shape of OpenAI's errors, which says nothing of what was sent."""
    answer = parse(raw)[-1]
    assert (answer.status, answer.complete) == (status, True), raw
    assert answer.values(b"connection") == [b"close"]
    assert answer.values(b"content-type") == [b"application/json"]
    assert len(answer.values(b"date")) == 1
    assert len(answer.values(b"x-request-id")) == 1
    content = json.loads(answer.body)
    assert content.keys() == {"error"}
    assert content["error"].keys() == {"message", "type", "param", "code"}
    assert content["error"]["message"]
    assert content["error"]["code"]
    assert CANARY not in raw


def request(line: bytes = b"GET /s3cr3t HTTP/1.1", *headers: bytes, host: bytes = b"Host: a", body: bytes = b"") -> bytes:
    lines = [line, *([host] if host else []), b"X-S: s3cr3t", *headers]
    return b"".join(each + b"\r\n" for each in lines) + b"\r\n" + body


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def post(*headers: bytes, body: bytes = b"", path: bytes = b"/", version: bytes = b"1.1") -> bytes:
    lines = [b"POST " + path + b" HTTP/" + version, b"Host: a", *headers]
    return b"".join(each + b"\r\n" for each in lines) + b"\r\n" + body


# --- Heads --------------------------------------------------------------------------------------------------------------

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
    "method in lower case": request(b"get /s3cr3t HTTP/1.1"),
    "unknown method": request(b"STEAL /s3cr3t HTTP/1.1"),
    "HTTP/0.9": b"GET /s3cr3t\r\n\r\n",
    "HTTP/0.9 with a version": request(b"GET / HTTP/0.9"),
    "HTTP/1.2": request(b"GET / HTTP/1.2"),
    "HTTP/2.0": request(b"GET / HTTP/2.0"),
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.10": request(b"GET / HTTP/1.10"),
    "version in lower case": request(b"GET / http/1.1"),
    "RTSP": request(b"GET / RTSP/1.0"),
    "ICE": request(b"SOURCE / ICE/1.0"),
    "absolute-form": request(b"GET http://a/s3cr3t HTTP/1.1"),
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


# --- Bodies and trailers --------------------------------------------------------------------------------------------------

CHUNKED = (b"Transfer-Encoding: chunked",)
WITH_TRAILERS = post(
    *CHUNKED,
    body=b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n"
    b"X-Forwarded-For: 6.6.6.6\r\nAuthorization: Bearer s3cr3t\r\nHost: evil\r\n\r\n",
)
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
        pytest.param(b'a;x=1;y="\xff"\r\n0123456789\r\nA;\r\n0123456789\r\n0\r\n\r\n', id="extensions"),
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
    wait_for(lambda: server.app.disconnects >= 1)
    assert server.app.seen == []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- Keep-alive, pipelining, upgrades, expectations -----------------------------------------------------------------------


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


# --- Time -----------------------------------------------------------------------------------------------------------------


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
    wait_for(lambda: server.app.disconnects >= 1)


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


# --- Answers ----------------------------------------------------------------------------------------------------------------


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
    wait_for(lambda: ("Exception in ASGI application" in caplog.text) is logged)


@pytest.mark.parametrize("path", ["/interrupted", "/crash-after-begin"])
def test_cut_answer_without_framing_is_reset(server: Server, path: str) -> None:
    with pytest.raises(ConnectionResetError):
        server.talk(f"GET {path} HTTP/1.0\r\n\r\n".encode())


@pytest.mark.parametrize("path", ["/crash", "/interrupted-before", "/splits", "/bad-name"])
def test_failure_before_the_answer_is_a_500(server: Server, caplog: pytest.LogCaptureFixture, path: str) -> None:
    assert_refused(server.talk(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()), 500)
    wait_for(lambda: "Exception in ASGI application" in caplog.text)


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


def test_refusal_is_logged_in_one_line(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aisbreaker_mw.access")
    raw = server.talk(REFUSED_HEADS["obs-fold"])
    request_id = parse(raw)[0].values(b"x-request-id")[0].decode()
    line = f"request_id={request_id} client=127.0.0.1 status=400 error=invalid_request"
    wait_for(lambda: line in caplog.messages)


# --- Fuzzing ------------------------------------------------------------------------------------------------------------------

SEEDS = [
    GET,
    request(b"GET /a?b HTTP/1.1", b"Connection: keep-alive"),
    request(b"GET / HTTP/1.0", host=b""),
    WITH_TRAILERS,
    post(b"Content-Length: 5", body=b"hello"),
    post(b"Content-Length: 27", body=GET),
    post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 27", body=GET),
    post(*CHUNKED, body=b"1b\r\n" + GET + b"\r\n0\r\nX-Trailer: t\r\n\r\n"),
    post(*CHUNKED, b"Expect: 100-continue", body=b"5;a=b\r\nhello\r\n0\r\n\r\n"),
]
PIECES = [
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"5", b"f", b"\xff", b"\r\n\r\n", b"\r\n ", b"GET"),
    *(b"Host: b\r\n", b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"X: y\r\n"),
    *(
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"0\r\n\r\n",
        b"Connection: close\r\n",
        b"HTTP/1.0",
    ),
]


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """One to three requests with some damage, and the same cut into segments."""
    data = b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 0, 1, 2, 10])))
        data = data[:start] + draw(st.one_of(st.sampled_from(PIECES), st.just(b""), st.binary(max_size=3))) + data[end:]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    if draw(st.booleans()) and len(data) < 300:
        cuts = list(range(len(data)))
    edges = [0, *cuts, len(data)]
    return data, [data[a:b] for a, b in itertools.pairwise(edges) if b > a]


def converse(loop: Clock, segments: list[bytes]) -> tuple[list[tuple[Any, ...]], list[int], bool]:
    """Return the requests that the app saw in whole, the statuses that the client saw, and whether the server closed."""
    app = App()
    wire = Wire(loop, app)
    for segment in segments:
        wire.send(segment)
    for _ in range(3):
        wire.settle()
    requests = [
        (seen.scope["method"], seen.scope["raw_path"], seen.scope["query_string"], seen.headers, seen.body) for seen in app.seen
    ]
    statuses = [status for status in wire.statuses() if status != 100]
    ended = wire.ended
    wire.abandon()
    return requests, statuses, ended


@settings(max_examples=FUZZ_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(streams())
def test_segmentation_changes_nothing(loop: Clock, stream: tuple[bytes, list[bytes]]) -> None:
    data, segments = stream
    whole = converse(loop, [data])
    assert converse(loop, segments) == whole
    requests, statuses, ended = whole
    refused = [status for status in statuses if status >= 400]
    assert len(refused) <= 1
    assert set(refused) <= {400, 431}
    assert not refused or ended
    assert statuses.count(200) == len(requests)
    # What the app saw is what another, independent parser makes of the same bytes.
    assert requests == reference(data)[: len(requests)]


def reference(data: bytes) -> list[tuple[Any, ...]]:
    """The whole requests in `data`, read by h11."""
    requests: list[tuple[Any, ...]] = []
    server = h11.Connection(h11.SERVER)
    server.receive_data(data.removeprefix(b"\r\n"))
    with contextlib.suppress(h11.RemoteProtocolError):
        while isinstance(request := server.next_event(), h11.Request):
            body = b""
            while isinstance(event := server.next_event(), h11.Data):
                body += bytes(event.data)
            if not isinstance(event, h11.EndOfMessage):
                break
            path, _, query = request.target.partition(b"?")
            requests.append((request.method.decode(), path, query, list(request.headers), body))
            server.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            server.send(h11.EndOfMessage())
            if server.our_state is not h11.DONE:
                break
            rest, _ = server.trailing_data
            server = h11.Connection(h11.SERVER)
            server.receive_data(rest.removeprefix(b"\r\n"))
    return requests


@settings(max_examples=FUZZ_EXAMPLES, deadline=None)
@given(st.binary(max_size=200), st.lists(st.sampled_from(PIECES), max_size=10))
def test_decoder_survives_anything(noise: bytes, pieces: list[bytes]) -> None:
    decoder = ChunkedDecoder(Limits())
    with contextlib.suppress(InvalidRequest, HeadTooLarge):
        for piece in (b"".join(pieces), noise):
            decoder.feed(piece)
            if decoder.done:
                break
