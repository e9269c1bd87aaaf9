"""An app that answers as the path says, a connection without sockets, a real server, and a strict client."""

import asyncio
import contextlib
import contextvars
import functools
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.server import ServerState

from aisbreaker_mw.exceptions import ResponseInterrupted
from aisbreaker_mw.serving.http_protocol import HTTPProtocol
from aisbreaker_mw.serving.request_head import Limits

CANARY = b"s3cr3t"


DATE = b"Thu, 01 Jan 1970 00:00:00 GMT"


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


CHUNKED = (b"Transfer-Encoding: chunked",)


WITH_TRAILERS = post(
    *CHUNKED,
    body=b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n"
    b"X-Forwarded-For: 6.6.6.6\r\nAuthorization: Bearer s3cr3t\r\nHost: evil\r\n\r\n",
)
