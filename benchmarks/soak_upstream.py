"""The AI service of the soak: responses by query, and resets when it is told to."""

import asyncio
import contextlib
import random

NORMAL = b'{"object":"chat.completion","choices":[{"message":{"content":"' + b"x" * 900 + b'"}}]}'
PIECES = 20
PIECE = b"data: " + b"y" * 200 + b"\n\n"
LAST_PIECE = b"data: [DONE]\n\n"
STREAM = PIECE * PIECES + LAST_PIECE
PAUSE = 0.1
"""Seconds between two pieces of a stream."""
BIG = 16 * 1024 * 1024
"""Bytes of a large response."""
KEPT = 5.0
"""Seconds until it closes an idle connection."""
SLOW = 3.0
"""Seconds until a slow response begins."""


class Upstream:
    """
    An HTTP/1.1 server on loopback.

    The query names the response: `?normal`, `?stream`, `?big`, `?slow`. While `resetting` is above 0, that share of the
    requests ends with a reset, before or within the response.
    """

    def __init__(self, chance: random.Random) -> None:
        self.resetting = 0.0
        self.requests = 0
        self.port = 0
        self._chance = chance
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        return len(self._open)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.reset_all()

    def reset_all(self) -> None:
        """Reset every open connection, busy or idle."""
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            # The proxy closes the connection when its client has gone, in the middle of a request too.
            # The run's end cancels it.
            ended = (ConnectionError, asyncio.IncompleteReadError, TimeoutError, asyncio.CancelledError)
            with contextlib.suppress(*ended):
                while True:
                    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), KEPT)
                    await self._respond(head, reader, writer)
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _respond(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests += 1
        kind = head.split(b" ", 2)[1].rpartition(b"?")[2]
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        left = int(fields.get(b"content-length", b"0"))
        while left:
            piece = await reader.read(min(left, 65536))
            if not piece:
                raise ConnectionResetError
            left -= len(piece)
        resets = self._chance.random() < self.resetting
        if resets and self._chance.random() < 0.5:
            raise ConnectionResetError
        if kind == b"stream":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for number in range(PIECES):
                if resets and number == PIECES // 2:
                    raise ConnectionResetError
                writer.write(b"%x\r\n%s\r\n" % (len(PIECE), PIECE))
                await writer.drain()
                await asyncio.sleep(PAUSE)
            writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(LAST_PIECE), LAST_PIECE))
        elif kind == b"big":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % BIG)
            for _ in range(0, BIG, 65536):
                writer.write(bytes(65536))
                await writer.drain()
        else:
            if kind == b"slow":
                await asyncio.sleep(SLOW)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(NORMAL))
            writer.write(NORMAL[: len(NORMAL) // 2] if resets else NORMAL)
            if resets:
                raise ConnectionResetError
        await writer.drain()
