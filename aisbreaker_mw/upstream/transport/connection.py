"""One connection to an upstream. It carries one request at a time."""

import asyncio
import select
import ssl
import sys
from collections.abc import Callable
from typing import Protocol, cast

import httpx

from ...deadline import DeadlineTimer
from .request import OutgoingRequest, TimeoutExtension
from .response import COMPLETE, HEAD
from .stream import ConnectionStale, ResponseStream

SMALL = 16_384
"""Bytes below which pieces are joined. That is cheaper than to write them one by one."""


def _look_at(socket: int) -> Callable[[int], object]:
    """Return a function that returns something true if a socket has bytes to read, or its end: `select.poll`'s `poll`."""
    if sys.platform == "win32":  # it has none
        return lambda milliseconds: select.select([socket], [], [], milliseconds / 1000)[0]
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return poll.poll


class ConnectionPool(Protocol):
    """What a connection needs of its pool."""

    max_connection_age: float
    buffer: memoryview
    buffer_size: int
    connections: set["Connection"]

    def release(self, connection: "Connection") -> None:
        """Take back a connection that can be used again, with its slot."""

    def forget(self, connection: "Connection") -> bool:
        """Take an idle connection out, and return whether it was one."""

    def free_slot(self, connection: "Connection") -> None:
        """Take back the slot of a connection that is gone."""

    def lost(self, connection: "Connection") -> None:
        """Note that a connection is closed."""


class Connection(DeadlineTimer, asyncio.BufferedProtocol):
    """
    A connection of a pool.

    Its slot in the pool belongs to the task that has acquired it, until the response is complete or dropped. The deadline is
    that of the wait under way, or that of an idle connection.

    Args:
        pool: the pool. The connection goes back to it after a whole, well-framed response, if it stays open.
        loop: the event loop.
    """

    __slots__ = (
        "_buffer",
        "_flush_handle",
        "_look",
        "_pool",
        "_stream",
        "_transport",
        "buffer_size",
        "closed",
        "expires_at",
        "reading_paused",
        "used",
        "writing_paused",
    )

    def __init__(self, pool: ConnectionPool, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._pool = pool
        self._buffer = pool.buffer
        self._transport: asyncio.Transport  # set by connection_made(), as the next
        self._look: Callable[[int], object]
        self._stream: ResponseStream | None = None
        self._flush_handle: asyncio.Handle | None = None
        self.buffer_size = pool.buffer_size
        self.reading_paused = False
        self.writing_paused = False
        self.closed = False
        """Whether either side is known to have closed it."""
        self.used = False
        """Whether it has carried a whole response."""
        self.expires_at = loop.time() + pool.max_connection_age

    async def perform(self, request: OutgoingRequest, timeouts: TimeoutExtension) -> ResponseStream:
        """
        Send a request and wait for the head of its response.

        Args:
            request: the request.
            timeouts: seconds, `read` and `write`.

        Raises:
            ConnectionStale: the request can be tried once more. The caller keeps the connection's slot.
            httpx.TransportError: the connection is dropped.
        """
        stream = self._stream = ResponseStream(self, request, timeouts)
        reader = stream.reader
        try:
            if self.closed:
                stream.fail(httpx.RemoteProtocolError("the upstream closed the connection without a response"))
            elif request.body is None:
                self.flush()
                stream.request_sent = True
                if self.writing_paused:
                    await stream.drain()
            else:
                await stream.send_body()
            if reader.state == HEAD:
                await stream.receive_head()
        except ConnectionStale:
            self._abandon(stream)
            raise
        except BaseException:
            self.drop(stream)
            raise
        if reader.state == COMPLETE and self._stream is stream:
            self._complete(stream)  # it had to wait for the end of the sending
        return stream

    @property
    def expired(self) -> bool:
        """
        Whether this idle connection must not be used any more.

        The event loop may not have seen yet that the upstream has closed it. So the socket is looked at, without waiting. A
        request's body could not be sent again after that.
        """
        return self.closed or self.deadline <= self.loop.time() or bool(self._look(0))

    def on_deadline(self) -> None:
        """Tell the request's task that nothing came, or close an idle connection."""
        if self._stream is not None:
            self._stream.wake(False)
        elif self._pool.forget(self):
            self.closed = True
            self._transport.close()

    @property
    def tls_session(self) -> ssl.SSLSession | None:
        """The TLS session, which a later connection can resume; None without TLS."""
        tls: ssl.SSLObject | None = self._transport.get_extra_info("ssl_object")
        return None if tls is None else tls.session

    # Sending

    def flush_soon(self) -> None:
        """Write once the task waits for something, so that head and body go out together where the body is at hand."""
        if self._flush_handle is None:
            self._flush_handle = self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is pending of the request."""
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        stream = self._stream
        if stream is None or self.closed or stream.reader.state != HEAD or not stream.request.pending:
            return
        small = stream.request.pending_bytes < SMALL
        pending = stream.request.take()
        if len(pending) == 1:
            self._transport.write(pending[0])
        elif small:
            self._transport.write(b"".join(pending))
        else:
            for piece in pending:  # not writelines(): asyncio's does not call pause_writing(), from Python 3.12 on
                self._transport.write(piece)

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self._stream is not None:
            self._stream.wake()

    # Receiving

    def resume_reading(self, stream: ResponseStream) -> None:
        """Read on after the body that had arrived was taken."""
        if self._stream is stream and not self.closed:
            self.reading_paused = False
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class is not asyncio's
        self._look = _look_at(transport.get_extra_info("socket").fileno())
        if not self.closed:
            self._transport.set_write_buffer_limits(self.buffer_size)
            self._pool.connections.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        stream = self._stream
        if stream is None:
            # Nothing was asked, so this is no response.
            self._pool.forget(self)
            self.abort()
            return
        if stream.failure is not None:
            return
        reader = stream.reader
        try:
            reader.receive(bytes(self._buffer[:nbytes]))
        except httpx.RemoteProtocolError as error:
            self.abort()
            stream.fail(error)
            return
        if reader.state == HEAD:
            return
        if reader.state == COMPLETE:
            self._complete(stream)
        stream.advance()
        if reader.buffered >= self.buffer_size and reader.state != COMPLETE and not self.reading_paused:
            self.reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        stream = self._stream
        if stream is not None:
            try:
                stream.reader.receive_eof(self._ended_cleanly())
            except httpx.RemoteProtocolError as error:
                self.abort()
                stream.fail(error)
            else:
                self._complete(stream)
                stream.advance()
        self.closed = True

    def _ended_cleanly(self) -> bool:
        """
        Return whether TLS announced the end with its closing alert; True without TLS.

        asyncio does not tell. uvloop never calls `eof_received` with TLS.
        """
        session: ssl.SSLObject | None = self._transport.get_extra_info("ssl_object")
        if session is None:
            return True
        try:
            return not session.read(1)
        except ssl.SSLZeroReturnError:
            return True
        except (ssl.SSLError, ValueError):
            return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.stop_timer()
        self._pool.lost(self)
        if self._stream is not None:
            if exc is None:
                self._stream.fail(httpx.RemoteProtocolError("the upstream closed the connection"))
            else:
                self._stream.fail(httpx.ReadError("the connection to the upstream broke"))

    # The end of a response

    def _complete(self, stream: ResponseStream) -> None:
        """
        Give the connection back as soon as the response has arrived, whether or not its body has been taken.

        It is reused only if the whole request has been sent, too. After an early response the next bytes would be the rest of a
        body for one side and a new request for the other.
        """
        if self._stream is stream and not stream.sending:
            self._stream = None
            if (
                stream.reader.reusable
                and stream.request_sent
                and not stream.request.close
                and not self.closed
                and not self._transport.get_write_buffer_size()
            ):
                if self.reading_paused:
                    self.reading_paused = False
                    self._transport.resume_reading()
                self._pool.release(self)
            else:
                self.abort()
                self._pool.free_slot(self)

    def drop(self, stream: ResponseStream) -> None:
        """Close, and free the slot, if the stream still has the connection."""
        if self._stream is stream:
            self._abandon(stream)
            self._pool.free_slot(self)

    def _abandon(self, stream: ResponseStream) -> None:
        self._stream = None
        stream.reader.discard()
        self.abort()

    def abort(self) -> None:
        """Close at once, whatever is under way; or, while connecting, as soon as the connection is made."""
        self.closed = True
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        if hasattr(self, "_transport"):
            self._transport.abort()
