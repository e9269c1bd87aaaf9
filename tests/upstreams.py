"""Upstreams that answer with exactly the bytes that a test gives them, on the loop of the test."""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

WAIT = 10.0
"""Seconds that a test waits at most for something that should happen at once."""


class Peer:
    """One connection, seen from the upstream."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        """1 for the first connection."""
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        """Read a request's head. An upstream whose client hangs up instead ends here."""
        try:
            return await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Upstream.Done from None

    async def body(self, size: int) -> bytes:
        return await self.reader.readexactly(size)

    async def chunked_body(self) -> bytes:
        """Read a chunked body whose data doesn't look like its end."""
        received = bytearray()
        while not received.endswith(b"\r\n0\r\n\r\n"):
            piece = await self.reader.read(1 << 20)
            if not piece:
                raise Upstream.Done
            received += piece
        return bytes(received)

    async def send(self, *pieces: bytes) -> None:
        """Send pieces one by one, each of which the loop can take to the other side before the next."""
        for piece in pieces:
            if self.writer.is_closing():
                raise Upstream.Done
            self.writer.write(piece)
            await self.writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0)
                await asyncio.sleep(0)

    async def closed(self) -> bytes:
        """Read until the other side has closed, and return what came."""
        with contextlib.suppress(ConnectionError):
            return await self.reader.read()
        return b""

    def hang_up(self) -> None:
        self.writer.close()

    def cut_off(self) -> None:
        """End the stream of TCP, without what TLS would have to say."""
        with socket.socket(fileno=os.dup(self.writer.get_extra_info("socket").fileno())) as duplicate:
            duplicate.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send RST."""
        with socket.socket(fileno=os.dup(self.writer.get_extra_info("socket").fileno())) as duplicate:
            duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class Upstream:
    """
    Runs a script for each connection on a free port of loopback.

    Args:
        script: serves a connection, which is closed when it returns.
        ssl_context: for TLS.
        port: to listen on, instead of a free one.

    An exception of a script is raised at the end of the test.
    """

    class Done(Exception):
        """The client has closed the connection."""

    def __init__(self, script: Script, ssl_context: ssl.SSLContext | None = None, port: int = 0) -> None:
        self._script = script
        self._ssl_context = ssl_context
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self.connections = 0
        self.finished = 0
        """Connections whose script has ended."""
        self.port = port

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._ssl_context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if kind is None and self._errors:
            raise self._errors[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._script(Peer(self.connections, reader, writer))
        except (self.Done, asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            writer.transport.abort()
        except Exception as error:
            self._errors.append(error)
        finally:
            self.finished += 1
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError, asyncio.CancelledError, TimeoutError):
                await writer.wait_closed()


async def until(happened: Callable[[], object], what: str = "it") -> None:
    """Poll until `happened` is true."""
    for _ in range(int(WAIT / 0.002)):
        if happened():
            return
        await asyncio.sleep(0.002)
    raise AssertionError(f"{what} did not happen within {WAIT} s")


@dataclass(frozen=True)
class Answer:
    """
    Bytes that an upstream sends, and what becomes of them.

    Args:
        raw: what it sends.
        body: of the answer that is delivered; None where there is no whole answer.
        status: of the answer that is delivered.
        method: of the request.
        closes: whether the upstream closes after it.
        reusable: whether the connection may carry another request.
        stock: what httpx's stock transport does: the `same`, or `accepts` what is refused here, `waits` for the rest of it,
            `reuses` a connection that is dropped here, or `drops` one that is reused here.
    """

    raw: bytes
    body: bytes | None = b""
    status: int = 200
    method: str = "GET"
    closes: bool = False
    reusable: bool = False
    stock: str = "same"


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
FILL = b"X-Fill: " + b"x" * 992 + b"\r\n"

WHOLE = {
    "length": Answer(OK + b"Content-Length: 5\r\n\r\nhello", b"hello", reusable=True),
    "length zero": Answer(OK + b"Content-Length: 0\r\n\r\n", reusable=True),
    "length with leading zeros": Answer(OK + b"Content-Length: 005\r\n\r\nhello", b"hello", reusable=True),
    "length, then closed": Answer(OK + b"Content-Length: 5\r\n\r\nhello", b"hello", closes=True),
    "length, connection close": Answer(OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello", b"hello"),
    "connection close among others": Answer(OK + b"Content-Length: 5\r\nConnection: x, Close\r\n\r\nhello", b"hello"),
    "until close": Answer(OK + b"Connection: close\r\n\r\nhello", b"hello", closes=True),
    "until close, empty": Answer(OK + b"\r\n", closes=True),
    "chunked": Answer(CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world", reusable=True),
    "chunked, empty": Answer(CHUNKED + b"0\r\n\r\n", reusable=True),
    "chunked in capitals": Answer(
        OK + b"TRANSFER-ENCODING: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n", b"0123456789", reusable=True
    ),
    "chunk extensions": Answer(CHUNKED + b'5;a=b;c="d"\r\nhello\r\n0;e\r\n\r\n', b"hello", reusable=True),
    "trailers": Answer(CHUNKED + b"5\r\nhello\r\n0\r\nX-Checksum: 1\r\nX-Other: 2\r\n\r\n", b"hello", reusable=True),
    "line ends in the body": Answer(CHUNKED + b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n", reusable=True),
    "an answer in the body": Answer(
        OK + b"Content-Length: 38\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        reusable=True,
    ),
    "HEAD with length": Answer(OK + b"Content-Length: 5\r\n\r\n", method="HEAD", reusable=True),
    "HEAD with chunked": Answer(CHUNKED, method="HEAD", reusable=True),
    "HEAD without framing": Answer(OK + b"\r\n", method="HEAD", reusable=True),
    "204": Answer(b"HTTP/1.1 204 No Content\r\n\r\n", status=204, reusable=True),
    "304 with length": Answer(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", status=304, reusable=True),
    "100 first": Answer(b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi", b"hi", reusable=True),
    "several interim answers": Answer(
        b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        + CHUNKED
        + b"2\r\nhi\r\n0\r\n\r\n",
        b"hi",
        reusable=True,
    ),
    "long interim answers": Answer(
        12 * (b"HTTP/1.1 102 Processing\r\n" + 6 * FILL + b"\r\n") + OK + b"Content-Length: 2\r\n\r\nhi", b"hi", reusable=True
    ),
    "error status": Answer(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno", b"no", status=503, reusable=True),
    "no reason": Answer(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", b"hi", reusable=True),
    "empty reason": Answer(b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nhi", b"hi", reusable=True),
    "1.0 until close": Answer(b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello", closes=True),
    "1.0 with length": Answer(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    "1.0 kept alive": Answer(
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi", b"hi", reusable=True, stock="drops"
    ),
    "head of nearly 64 KiB": Answer(OK + 65 * FILL + b"Content-Length: 2\r\n\r\nhi", b"hi", reusable=True),
}
"""Whole answers."""

LEFTOVER = {
    "more than the length": Answer(OK + b"Content-Length: 2\r\n\r\nhi!", b"hi", stock="reuses"),
    "a line end after the length": Answer(OK + b"Content-Length: 2\r\n\r\nhi\r\n", b"hi", stock="reuses"),
    "a second answer": Answer(2 * (OK + b"Content-Length: 2\r\n\r\nhi"), b"hi", stock="reuses"),
    "a second answer after chunks": Answer(2 * (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n"), b"hi", stock="reuses"),
    "a line end after chunks": Answer(CHUNKED + b"2\r\nhi\r\n0\r\n\r\n\r\n", b"hi", stock="reuses"),
    "junk after chunks": Answer(CHUNKED + b"2\r\nhi\r\n0\r\n\r\njunk", b"hi", stock="reuses"),
    "a body after HEAD": Answer(OK + b"Content-Length: 2\r\n\r\nhi", method="HEAD", stock="reuses"),
    "chunks after HEAD": Answer(CHUNKED + b"0\r\n\r\n", method="HEAD", stock="reuses"),
    "a body after 204": Answer(b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nhi", status=204, stock="reuses"),
    "204 with a length": Answer(b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\n", status=204, stock="reuses"),
    "a body after 304": Answer(b"HTTP/1.1 304 No\r\nContent-Length: 2\r\n\r\nhi", status=304, stock="reuses"),
    "1.0 with chunks": Answer(
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"hi"
    ),
}
"""Whole answers, after which the connection is of no use."""

BROKEN = {
    "nothing": Answer(b"", None, closes=True),
    "half a head": Answer(OK + b"Content-Le", None, closes=True),
    "an interim answer only": Answer(b"HTTP/1.1 100 Continue\r\n\r\n", None, closes=True),
    "less than the length": Answer(OK + b"Content-Length: 5\r\n\r\nhell", None, closes=True),
    "head and no body": Answer(OK + b"Content-Length: 5\r\n\r\n", None, closes=True),
    "no last chunk": Answer(CHUNKED + b"5\r\nhello\r\n", None, closes=True),
    "no end after the last chunk": Answer(CHUNKED + b"5\r\nhello\r\n0\r\n", None, closes=True),
    "no end after the trailers": Answer(CHUNKED + b"5\r\nhello\r\n0\r\nA: b\r\n", None, closes=True),
    "half a chunk": Answer(CHUNKED + b"5\r\nhel", None, closes=True),
    "half a chunk size": Answer(CHUNKED + b"5\r\nhello\r\n1", None, closes=True),
}
"""Answers that are cut short."""

MALFORMED = {
    "junk": Answer(b"SSH-2.0-OpenSSH_9.2\r\n", None, stock="waits"),
    "junk before the status line": Answer(b"junk" + OK + b"Content-Length: 2\r\n\r\nhi", None),
    "a line end before the status line": Answer(b"\r\n" + OK + b"Content-Length: 2\r\n\r\nhi", None),
    "an empty line before the status line": Answer(b"\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi", None),
    "another protocol": Answer(b"RTSP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", None),
    "version 0.9": Answer(b"HTTP/0.9 200 OK\r\nContent-Length: 2\r\n\r\nhi", None, stock="accepts"),
    "version 2.0": Answer(b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", None, stock="accepts"),
    "status of two digits": Answer(b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nhi", None),
    "status of four digits": Answer(b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nhi", None),
    "status 99": Answer(b"HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nhi", None),
    "status 600": Answer(b"HTTP/1.1 600 OK\r\nContent-Length: 2\r\n\r\nhi", None, stock="accepts"),
    "NUL in the reason": Answer(b"HTTP/1.1 200 O\0K\r\nContent-Length: 2\r\n\r\nhi", None),
    "NUL in the reason of an interim answer": Answer(
        b"HTTP/1.1 100 Con\0tinue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi", None
    ),
    "101": Answer(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", None),
    "101 without Upgrade": Answer(b"HTTP/1.1 101 Switching\r\n\r\n", None),
    "a line end after an interim answer": Answer(
        b"HTTP/1.1 100 Continue\r\n\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi", None
    ),
    "interim answers without end": Answer(
        17 * b"HTTP/1.1 102 Processing\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n", None, stock="accepts"
    ),
    "bare LF": Answer(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", None, stock="accepts"),
    "bare LF after a field": Answer(OK + b"A: b\nContent-Length: 2\r\n\r\nhi", None, stock="accepts"),
    "bare LF at the end": Answer(OK + b"Content-Length: 2\r\n\nhi", None, stock="accepts"),
    "bare CR": Answer(OK + b"A: b\rContent-Length: 2\r\n\r\nhi", None),
    "NUL in a value": Answer(OK + b"A: b\0c\r\nContent-Length: 2\r\n\r\nhi", None),
    "folded field": Answer(OK + b"A: b\r\n c\r\nContent-Length: 2\r\n\r\nhi", None, stock="accepts"),
    "folded length": Answer(OK + b"Content-Length: 2\r\n 3\r\n\r\nhi", None),
    "space before the colon": Answer(OK + b"Content-Length : 2\r\n\r\nhi", None),
    "no colon": Answer(OK + b"Content-Length\r\n\r\nhi", None),
    "no name": Answer(OK + b": 2\r\n\r\nhi", None),
    "head over 64 KiB": Answer(OK + 66 * FILL + b"Content-Length: 2\r\n\r\nhi", None, stock="accepts"),
    "head without end": Answer(OK + 130 * FILL, None),
    "lengths that differ": Answer(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi!", None),
    "lengths that agree": Answer(OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi", None, stock="accepts"),
    "list of lengths": Answer(OK + b"Content-Length: 2, 2\r\n\r\nhi", None, stock="accepts"),
    "length with a sign": Answer(OK + b"Content-Length: +2\r\n\r\nhi", None),
    "negative length": Answer(OK + b"Content-Length: -2\r\n\r\nhi", None),
    "hexadecimal length": Answer(OK + b"Content-Length: 0x2\r\n\r\nhi", None),
    "empty length": Answer(OK + b"Content-Length:\r\n\r\nhi", None),
    "enormous length": Answer(OK + b"Content-Length: 99999999999999999999999\r\n\r\nhi", None),
    "length and chunked": Answer(
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", None, stock="accepts"
    ),
    "chunked and length": Answer(
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nhi\r\n0\r\n\r\n", None, stock="accepts"
    ),
    "chunked twice": Answer(OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", None),
    "chunked twice in one": Answer(OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", None),
    "gzip and chunked": Answer(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", None),
    "another transfer coding": Answer(OK + b"Transfer-Encoding: xchunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", None),
    "identity": Answer(OK + b"Transfer-Encoding: identity\r\n\r\nhi", None),
    "no chunk size": Answer(CHUNKED + b"\r\nhi\r\n0\r\n\r\n", None),
    "chunk size with a sign": Answer(CHUNKED + b"+2\r\nhi\r\n0\r\n\r\n", None),
    "chunk size with a prefix": Answer(CHUNKED + b"0x2\r\nhi\r\n0\r\n\r\n", None),
    "chunk size with a space": Answer(CHUNKED + b"2 \r\nhi\r\n0\r\n\r\n", None, stock="accepts"),
    "chunk size that overflows": Answer(CHUNKED + b"10000000000000002\r\nhi\r\n0\r\n\r\n", None, stock="waits"),
    "chunk longer than its size": Answer(CHUNKED + b"2\r\nhi!\r\n0\r\n\r\n", None),
    "chunk size with bare LF": Answer(CHUNKED + b"2\nhi\r\n0\r\n\r\n", None),
    "chunk with bare LF": Answer(CHUNKED + b"2\r\nhi\n0\r\n\r\n", None),
    "chunk extension with bare LF": Answer(CHUNKED + b"2;a\nhi\r\n0\r\n\r\n", None),
    "trailer with bare LF": Answer(CHUNKED + b"2\r\nhi\r\n0\r\nA: b\n\r\n", None, stock="accepts"),
    "length in a trailer": Answer(CHUNKED + b"2\r\nhi\r\n0\r\nContent-Length: 9\r\n\r\n", None, stock="accepts"),
    "chunk extension without end": Answer(CHUNKED + b"2;" + 140_000 * b"a", None),
    "trailers without end": Answer(CHUNKED + b"2\r\nhi\r\n0\r\n" + 140 * FILL, None),
}
"""What is no HTTP/1.1, or could be read in two ways. The upstream keeps the connection open."""
