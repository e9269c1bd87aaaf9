"""A WebSocket service, a server of ours in front of it, and a client of the `websockets` library."""

import asyncio
import base64
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Self

import httpx
import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from aisbreaker_mw import AIsBreakerMiddleware, create_app

from ...ports import free_port
from ...support import WAIT, bearer, serve, settings
from ...upstreams import Peer, Upstream

SECRET = "sk-SENTINEL-secret"


REALTIME = "/openai/v1/realtime?model=gpt-realtime"


LIVE = "/gemini/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"


KEY_SUBPROTOCOL = "openai-insecure-api-key."


FOREIGN = "sk-somebodys-own"


Handler = Callable[[ServerConnection], Awaitable[None]]


class Service:
    """A WebSocket server on the test's loop; keeps every connection."""

    def __init__(self) -> None:
        self.connections: list[ServerConnection] = []

    @property
    def last(self) -> ServerConnection:
        return self.connections[-1]

    @property
    def path(self) -> str:
        assert self.last.request
        return self.last.request.path

    @property
    def headers(self) -> list[tuple[str, str]]:
        assert self.last.request
        return [(name.lower(), value) for name, value in self.last.request.headers.raw_items()]

    @property
    def head(self) -> str:
        return f"{self.path}\n{self.headers}"


async def echo(socket: ServerConnection) -> None:
    async for message in socket:
        await socket.send(message)


async def hold(socket: ServerConnection) -> None:
    """Read until the end, and say nothing."""
    async for _ in socket:
        pass


PORT = free_port()


"""Where the services of these tests are, one after the other, so that one server of ours does for many."""


URL = f"http://127.0.0.1:{PORT}"


@contextlib.asynccontextmanager
async def service(handler: Handler = echo, **options: Any) -> AsyncIterator[Service]:
    made = Service()
    options = {"close_timeout": 0.2, **options}

    async def handle(socket: ServerConnection) -> None:
        made.connections.append(socket)
        with contextlib.suppress(ConnectionClosed):
            await handler(socket)

    async with serve_websockets(handle, "127.0.0.1", PORT, **options):
        yield made


class RawService(Upstream):
    """A service whose every byte is a test's."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", PORT)
        return self


def answers(raw: bytes) -> RawService:
    """A service that answers every handshake with these bytes, and closes."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(raw)

    return RawService(script)


@contextlib.contextmanager
def gateway(url: str = URL, *, serving: Any = None, clock: Any = None, **values: Any) -> Iterator[str]:
    """Run a server of ours, with the services at `url`."""
    services = {name: {"base_url": url} for name in ("openai", "gemini")}
    options = {} if clock is None else {"clock": clock}
    app = AIsBreakerMiddleware(None, settings(services=services, **values), **options)
    with serve(app, **(serving or {})) as base:
        yield base


class Opening(connect):
    """As the clients of browsers and of AI SDKs: no redirect is followed."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def opening(base: str, path: str = REALTIME, token: str | None = None, **options: Any) -> Opening:
    """Open a WebSocket, as a client that obeys no proxy and offers no compression."""
    headers = {**(bearer(token) if token else {}), **options.pop("headers", {})}
    options = {"compression": None, "proxy": None, "additional_headers": headers, **options}
    return Opening(base.replace("http", "ws", 1) + path, **options)


async def refused(base: str, path: str = REALTIME, token: str | None = None, **options: Any) -> httpx.Response:
    """Return the answer that refuses a handshake."""
    with pytest.raises(InvalidStatus) as refusal:
        await opening(base, path, token, **options)
    response = refusal.value.response
    received = response.headers.raw_items()
    headers = [(name.encode("ascii"), value.encode("latin-1", "surrogateescape")) for name, value in received]
    return httpx.Response(response.status_code, headers=headers, content=bytes(response.body))


async def closing(socket: ClientConnection | ServerConnection) -> tuple[int, str]:
    """Return how the peer closes."""
    async with asyncio.timeout(WAIT):
        await socket.wait_closed()
    assert socket.close_code is not None
    return socket.close_code, socket.close_reason or ""


OPENED = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "


def accepting(head: bytes, *headers: str) -> bytes:
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", head)
    assert key
    lines = ["HTTP/1.1 101 Switching", OPENED + websockets.utils.accept_key(key[1].decode()), *headers, "\r\n"]
    return "\r\n".join(lines).encode()


class Client:
    """A client as an ASGI server shows it: what it sends is put into `incoming`, and what it gets goes through `take`."""

    def __init__(self, take: Callable[[Any], Awaitable[None]]) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.incoming.put_nowait({"type": "websocket.connect"})
        self._take = take

    async def connect(self) -> None:
        app = create_app(settings(services={"openai": {"base_url": URL}}, foreign_credentials="forward"))
        headers = [(b"host", b"h"), (b"authorization", b"Bearer " + FOREIGN.encode())]
        scope = {"type": "websocket", "path": "/openai/v1/realtime", "query_string": b"", "headers": headers}
        await app({**scope, "extensions": {"websocket.http.response": {}}}, self.incoming.get, self._take)


def handshake(*headers: str, target: str = REALTIME, method: str = "GET", version: str = "13", key: str | None = None) -> bytes:
    key = base64.b64encode(bytes(16)).decode() if key is None else key
    always = ["Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Version: {version}"]
    lines = [f"{method} {target} HTTP/1.1", *always, f"Sec-WebSocket-Key: {key}", *headers, "", ""]
    return "\r\n".join(lines).encode()
