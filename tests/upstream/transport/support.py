"""
The transport over real sockets, against upstreams that script every byte.

What holds for HTTP/1.1 is run against this package's transport, on asyncio's loop and on uvloop, and against httpx's stock
transport. Where the stock transport takes another answer, the table in `upstreams.py` says so. Beyond that:

- It writes a request's head and its body separately, and sends the head only together with the first piece of the body.
- It reads no answer before the body has been sent completely, so an early answer waits for the body, and an upstream that
  answers and closes in the middle of a body may be an error.
- Where a body has another length than its head says, it raises h11's error.
- It has no limit of the age of a connection, and does not send a request again when a connection turns out to be stale.
- Its limit of connections is for all origins together, and `read` bounds every single read, not the time to the head.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from aisbreaker_mw.upstream.transport import HTTPTransport

from ...upstreams import OK, WAIT, Peer, Script

STACKS = ["native-asyncio", "native-uvloop", "stock-asyncio"]


FINE = OK + b"Content-Length: 4\r\n\r\nfine"


Timeout = dict[str, float | None]


native_only = pytest.mark.parametrize("stack", STACKS[:2], indirect=True)


asyncio_only = pytest.mark.parametrize("stack", STACKS[:1], indirect=True)


def make_transport(stack: str, max_connections: int = 1000, **options: Any) -> httpx.AsyncBaseTransport:
    if stack.startswith("native"):
        return HTTPTransport(max_connections=max_connections, **options)
    expiry = options.pop("keepalive_expiry", 30.0)
    limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=None, keepalive_expiry=expiry)
    context = options.pop("ssl_context", True)
    return httpx.AsyncHTTPTransport(limits=limits, verify=context, trust_env=False, **options)


class Body(httpx.AsyncByteStream):
    """A body made by an asynchronous generator; notes whether it was read to its end, and closed."""

    def __init__(self, *pieces: bytes | Callable[[], Any]) -> None:
        self._pieces = pieces
        self.given = 0
        self.ended = False
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for piece in self._pieces:
                if isinstance(piece, bytes):
                    self.given += 1
                    yield piece
                else:
                    await piece()
            self.ended = True
        finally:
            self.closed = True


def timeouts(**seconds: float | None) -> Timeout:
    return {"connect": WAIT, "read": WAIT, "write": WAIT, "pool": WAIT} | seconds


def make_request(
    port: int,
    method: str = "GET",
    target: bytes = b"/",
    headers: list[tuple[bytes, bytes]] | None = None,
    body: httpx.AsyncByteStream | None = None,
    timeout: Timeout | None = None,
    scheme: str = "http",
    host: str = "127.0.0.1",
) -> httpx.Request:
    return httpx.Request(
        method,
        httpx.URL(f"{scheme}://{host}:{port}/"),
        headers=[(b"Host", b"up.example"), *(headers or [])],
        stream=httpx.ByteStream(b"") if body is None else body,
        extensions={"target": target, "timeout": timeouts() if timeout is None else timeout},
    )


async def collect(response: httpx.Response) -> bytes:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    try:
        return b"".join([piece async for piece in response.stream])
    finally:
        await response.stream.aclose()


async def fetch(transport: httpx.AsyncBaseTransport, port: int, **options: Any) -> tuple[int, bytes]:
    """Send a request and read its whole answer, like a proxy."""
    async with asyncio.timeout(WAIT):
        response = await transport.handle_async_request(make_request(port, **options))
        return response.status_code, await collect(response)


def always(*pieces: bytes) -> Script:
    """An upstream that gives the same answer to every request without a body."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            await peer.send(*pieces)

    return script


CHUNKED_HEADER = (b"Transfer-Encoding", b"chunked")


def length(size: int) -> tuple[bytes, bytes]:
    return (b"Content-Length", str(size).encode())


# What arrives while the next piece is awaited can be taken at once, without a step of the task that waits.


class Taker:
    """Takes pieces at once or leaves them to whoever waits, by a pattern that begins anew at its end."""

    def __init__(self, *pattern: bool) -> None:
        self._pattern = itertools.cycle(pattern)
        self.pieces: list[bytes] = []
        """What was taken, and what was not: all of it in order."""
        self.taken: list[bytes] = []
        self.refused: list[bytes] = []
        self.got_one = asyncio.Event()

    def __call__(self, piece: bytes) -> bool:
        if not next(self._pattern):
            self.refused.append(piece)
            return False
        self.taken.append(piece)
        self.pieces.append(piece)
        self.got_one.set()
        return True

    async def read(self, response: httpx.Response) -> bytes:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream.write_now = self  # type: ignore[attr-defined]
        try:
            async for piece in response.stream:
                if self.refused:
                    assert piece.startswith(self.refused.pop())
                self.pieces.append(piece)
                self.got_one.set()
        finally:
            await response.stream.aclose()
        return b"".join(self.pieces)


async def echo(peer: Peer) -> None:
    while True:
        head = await peer.head()
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
        body = await peer.body(size)
        await peer.send(OK + b"Content-Length: %d\r\n\r\n" % size + body)
