"""One connection to an upstream, which carries one exchange at a time."""

import asyncio
import ssl
from typing import TYPE_CHECKING, cast

import httpx

from .request import OutgoingRequest
from .response import COMPLETE, HEAD
from .stream import NEVER, ConnectionStale, ResponseStream, TimeoutExtension

if TYPE_CHECKING:
    from .pool import Pool

SMALL = 16_384
"""Bytes below which pieces are joined: cheaper than to write them one by one."""

TIMER_SLACK = 0.001
"""Seconds by which a loop's timer may be early."""


class Connection(asyncio.BufferedProtocol):
    """
    A connection of a pool.

    Args:
        pool: to which it goes back after a whole, well-framed answer of a connection that stays open.
        loop: on which it runs.

    Its slot in the pool belongs to whoever has acquired it, until the exchange is complete or dropped.
    """

    __slots__ = (
        "_buffer",
        "_deadline",
        "_exchange",
        "_flush_handle",
        "_pool",
        "_timer",
        "_timer_at",
        "_transport",
        "buffer_size",
        "closed",
        "expires_at",
        "loop",
        "reading_paused",
        "used",
        "writing_paused",
    )

    def __init__(self, pool: "Pool", loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._buffer = pool.buffer
        self._transport: asyncio.Transport  # there is none before connection_made()
        self._exchange: ResponseStream | None = None
        self._flush_handle: asyncio.Handle | None = None
        self._deadline = NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self.loop = loop
        self.buffer_size = pool.buffer_size
        self.reading_paused = False
        self.writing_paused = False
        self.closed = False
        """Whether either side has closed it, as far as is known."""
        self.used = False
        """Whether it has carried an exchange."""
        self.expires_at = loop.time() + pool.max_connection_age

    async def perform(self, request: OutgoingRequest, timeouts: TimeoutExtension) -> ResponseStream:
        """
        Send a request and wait for the head of its answer.

        Args:
            request: to send.
            timeouts: `read` and `write`.

        Raises:
            ConnectionStale: the request can be tried once more. The caller keeps the connection's slot.
            httpx.TransportError: the connection is dropped.
        """
        exchange = self._exchange = ResponseStream(self, request, timeouts)
        reader = exchange.reader
        try:
            if self.closed:
                exchange.fail(httpx.RemoteProtocolError("the upstream closed the connection without an answer"))
            elif request.body is None:
                self.flush()
                exchange.request_sent = True
                if self.writing_paused:
                    await exchange.drain()
            else:
                await exchange.send_body()
            if reader.state == HEAD:
                await exchange.receive_head()
        except ConnectionStale:
            self._abandon(exchange)
            raise
        except BaseException:
            self.drop(exchange)
            raise
        if reader.state == COMPLETE and self._exchange is exchange:
            self._complete(exchange)  # which had to wait for the end of the sending
        return exchange

    # The deadline. There is one timer, and it is only ever set again when it fires or is too late: a wait costs a comparison.

    def set_deadline(self, deadline: float) -> None:
        """
        Set when the exchange is told that nothing happened, or an idle connection closes.

        Args:
            deadline: seconds, on the loop's clock.
        """
        self._deadline = deadline
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self.loop.call_at(deadline, self._on_timer)

    @property
    def expired(self) -> bool:
        """Whether an idle connection is not to be used any more."""
        return self.closed or self._deadline <= self.loop.time()

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = NEVER
        if self.loop.time() + TIMER_SLACK < self._deadline:
            self.set_deadline(self._deadline)
        elif self._exchange is not None:
            self._exchange.wake(False)
        elif self._pool.forget(self):
            self.closed = True
            self._transport.close()

    @property
    def tls_session(self) -> ssl.SSLSession | None:
        """What a later connection can resume."""
        tls: ssl.SSLObject | None = self._transport.get_extra_info("ssl_object")
        return None if tls is None else tls.session

    # Sending

    def flush_soon(self) -> None:
        """Write when the task waits for something: head and body go out together where the body is at hand."""
        if self._flush_handle is None:
            self._flush_handle = self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is pending."""
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        exchange = self._exchange
        if exchange is None or self.closed or exchange.reader.state != HEAD or not exchange.request.pending:
            return
        small = exchange.request.pending_bytes < SMALL
        pending = exchange.request.take()
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
        if self._exchange is not None:
            self._exchange.wake()

    # Receiving

    def resume_reading(self, exchange: ResponseStream) -> None:
        """Read on after the exchange's body has been taken."""
        if self._exchange is exchange and not self.closed:
            self.reading_paused = False
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none of asyncio's classes
        if not self.closed:
            self._transport.set_write_buffer_limits(self.buffer_size)
            self._pool.connections.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        exchange = self._exchange
        if exchange is None:
            # Nothing was asked, so this is no answer.
            self._pool.forget(self)
            self.abort()
            return
        if exchange.failure is not None:
            return
        reader = exchange.reader
        try:
            reader.receive(bytes(self._buffer[:nbytes]))
        except httpx.RemoteProtocolError as error:
            self.abort()
            exchange.fail(error)
            return
        if reader.state == HEAD:
            return
        if reader.state == COMPLETE:
            self._complete(exchange)
        exchange.advance()
        if reader.buffered >= self.buffer_size and reader.state != COMPLETE and not self.reading_paused:
            self.reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        exchange = self._exchange
        if exchange is not None:
            try:
                exchange.reader.receive_eof(self._ended_cleanly())
            except httpx.RemoteProtocolError as error:
                self.abort()
                exchange.fail(error)
            else:
                self._complete(exchange)
                exchange.advance()
        self.closed = True

    def _ended_cleanly(self) -> bool:
        """Whether TLS, where there is TLS, said that this is the end. asyncio does not tell; uvloop does not come here."""
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
        if self._timer is not None:
            self._timer.cancel()
        self._pool.lost(self)
        if self._exchange is not None:
            if exc is None:
                self._exchange.fail(httpx.RemoteProtocolError("the upstream closed the connection"))
            else:
                self._exchange.fail(httpx.ReadError("the connection to the upstream broke"))

    # The end of an exchange

    def _complete(self, exchange: ResponseStream) -> None:
        """
        Give the connection back as soon as the answer has arrived, whether or not its body has been taken.

        It is reused only if the request was on its way completely as well: what follows an answer that came too early would be
        the rest of a body for one side and a request for the other.
        """
        if self._exchange is exchange and not exchange.sending:
            self._exchange = None
            if (
                exchange.reader.reusable
                and exchange.request_sent
                and not exchange.request.close
                and not self.closed
                and not self._transport.get_write_buffer_size()
            ):
                if self.reading_paused:
                    self.reading_paused = False
                    self._transport.resume_reading()
                self._pool.release(self)
            else:
                self.abort()
                self._pool.free_slot()

    def drop(self, exchange: ResponseStream) -> None:
        """Close, and free the slot, if the exchange still has the connection."""
        if self._exchange is exchange:
            self._abandon(exchange)
            self._pool.free_slot()

    def _abandon(self, exchange: ResponseStream) -> None:
        self._exchange = None
        exchange.reader.discard()
        self.abort()

    def abort(self) -> None:
        """Close at once, whatever is under way, or as soon as the connection is made."""
        self.closed = True
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        if hasattr(self, "_transport"):
            self._transport.abort()
