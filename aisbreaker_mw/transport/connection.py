"""One connection to an upstream, and the one exchange of request and answer that it carries at a time."""

import asyncio
import math
import ssl
from typing import TYPE_CHECKING, Any, cast

import httpx

from .messages import COMPLETE, HEAD, AnswerReader, OutgoingRequest

if TYPE_CHECKING:
    from .pool import Pool

NEVER = math.inf
TIMER_SLACK = 0.001
"""Seconds by which a loop's timer may be early."""


class ConnectionStale(Exception):
    """An idle connection turned out to be closed before the upstream can have seen the request's body."""


class Exchange(httpx.AsyncByteStream):
    """
    A request on its way and its answer: the stream of the answer's body.

    Iterating gives bytes as they arrived, without their framing; what has arrived by then comes as one piece.

    Args:
        connection: carries it.
        request: what is sent.
        timeouts: seconds, `read` and `write`; looked up anew for every wait, so they can be changed on the way.

    Raises:
        httpx.ReadTimeout: nothing came for `read` seconds.
        httpx.RemoteProtocolError: the answer broke off or is malformed.
        httpx.ReadError: the connection broke.
    """

    __slots__ = ("_connection", "_interrupted", "_sender", "_timeouts", "_waiter", "error", "reader", "request", "request_sent")

    def __init__(self, connection: "Connection", request: OutgoingRequest, timeouts: dict[str, float | None]) -> None:
        self._connection = connection
        self._timeouts = timeouts
        self._waiter: asyncio.Future[bool] | None = None
        self._sender: asyncio.Task[Any] | None = None
        self._interrupted = False
        self.request = request
        self.request_sent = False
        self.reader = AnswerReader(request.answer_has_body)
        self.error: httpx.TransportError | None = None

    async def send(self) -> None:
        """
        Send the body as it comes, until it ends, the answer's head is there or the connection is lost.

        The request's task waits for the body itself. When the answer comes first, that wait is cancelled from inside, as
        `asyncio.timeout` does it, so there is no other task.

        Raises:
            httpx.WriteTimeout: the upstream took nothing for `write` seconds.
            httpx.LocalProtocolError: the body has not the length that the head says.
            Exception: whatever the body raises.
        """
        connection, request = self._connection, self.request
        task = asyncio.current_task()
        if task is None or request.body is None:
            raise RuntimeError("a body is sent by a task")
        cancellations = task.cancelling()
        self._sender = task
        connection.flush_soon()
        try:
            async for piece in request.body:
                request.add(piece)
                if connection.writing_paused or request.pending_bytes >= connection.buffer_size:
                    connection.flush()
                    await self._drain()
                else:
                    connection.flush_soon()
                if self._answered():
                    break
            else:
                request.finish()
                connection.flush()
                self.request_sent = not self._answered()
        except asyncio.CancelledError:
            if not self._interrupted or task.cancelling() > cancellations + 1:
                raise
            self.request_sent = request.fulfilled and not request.pending
        finally:
            self._sender = None
            if self._interrupted:
                task.uncancel()

    @property
    def sending(self) -> bool:
        """Whether the request's task is still at the body."""
        return self._sender is not None

    def _answered(self) -> bool:
        return self.error is not None or self.reader.state != HEAD

    async def _drain(self) -> None:
        connection = self._connection
        deadline = connection.deadline_in(self._timeouts.get("write"))
        while connection.writing_paused and not self._answered():
            if not await self._wait(deadline):
                raise httpx.WriteTimeout("the upstream stopped reading the request")

    async def receive_head(self) -> None:
        """
        Wait until the head of the answer is there.

        Raises:
            httpx.ReadTimeout: it did not come within `read` seconds.
            httpx.TransportError: it will not come.
        """
        if not self._answered():
            deadline = self._connection.deadline_in(self._timeouts.get("read"))
            while not self._answered():
                if not await self._wait(deadline):
                    raise httpx.ReadTimeout("the upstream did not answer in time")
        if self.reader.state == HEAD and self.error is not None:
            raise self.error

    def __aiter__(self) -> "Exchange":
        return self

    async def __anext__(self) -> bytes:
        reader = self.reader
        if not reader.pieces and reader.state != COMPLETE:
            try:
                await self._receive()
            except BaseException:
                self._connection.drop(self)
                raise
        if reader.pieces:
            piece = reader.take()
            self._connection.resume_reading(self)
            return piece
        raise StopAsyncIteration

    async def _receive(self) -> None:
        reader = self.reader
        deadline = self._connection.deadline_in(self._timeouts.get("read"))
        while not reader.pieces and reader.state != COMPLETE:
            if self.error is not None:
                raise self.error
            if not await self._wait(deadline):
                raise httpx.ReadTimeout("the upstream's answer stopped")

    async def aclose(self) -> None:
        """Let go of the connection: it is dropped unless the answer has arrived completely."""
        self._connection.drop(self)

    async def _wait(self, deadline: float) -> bool:
        """Wait for something to happen; False where nothing did until `deadline`."""
        self._waiter = waiter = self._connection.wait_until(deadline)
        try:
            return await waiter
        finally:
            self._waiter = None

    def wake(self, happened: bool = True) -> None:
        """End the wait."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(happened)

    def advance(self) -> None:
        """Have the request's task notice that the answer or an error is there."""
        if self._waiter is not None:
            self.wake()
        elif self._sender is not None and not self._interrupted:
            self._interrupted = True
            self._sender.cancel()

    def fail(self, error: httpx.TransportError) -> None:
        """End with an error, after what has arrived before it."""
        if self.error is None:
            self.error = error
            # A request of whose body nothing has gone out can have a second try, which needs its body unharmed.
            if not self._connection.used or self.reader.touched or self.request.sent or self._waiter is not None:
                self.advance()


class Connection(asyncio.BufferedProtocol):
    """
    A connection of a pool.

    Args:
        pool: to which it goes back after a whole, well-framed answer of a connection that stays open.
        loop: on which it runs.

    Its slot in the pool belongs to whoever has acquired it, until the exchange is complete or dropped.
    """

    __slots__ = (
        "_deadline",
        "_exchange",
        "_flush_handle",
        "_loop",
        "_pool",
        "_reading_paused",
        "_timer",
        "_timer_at",
        "_transport",
        "buffer_size",
        "closed",
        "expires_at",
        "used",
        "writing_paused",
    )

    def __init__(self, pool: "Pool", loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._transport: asyncio.Transport
        self._exchange: Exchange | None = None
        self._flush_handle: asyncio.Handle | None = None
        self._deadline = NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._reading_paused = False
        self.buffer_size = pool.buffer_size
        self.writing_paused = False
        self.closed = False
        """Whether either side has closed it, as far as is known."""
        self.used = False
        """Whether it has carried an exchange."""
        self.expires_at = loop.time() + pool.max_connection_age

    async def perform(self, request: OutgoingRequest, timeouts: dict[str, float | None]) -> Exchange:
        """
        Send a request and wait for the head of its answer.

        Args:
            request: to send.
            timeouts: seconds, `read` and `write`.

        Raises:
            ConnectionStale: the request can be tried once more. The caller keeps the connection's slot.
            httpx.TransportError: the connection is dropped.
        """
        exchange = self._exchange = Exchange(self, request, timeouts)
        try:
            if self.closed:
                exchange.fail(httpx.RemoteProtocolError("the upstream closed the connection without an answer"))
            elif request.body is None:
                self._transport.writelines(request.take())
                exchange.request_sent = True
            else:
                await exchange.send()
            await exchange.receive_head()
        except BaseException:
            if exchange.error is not None and self.used and not exchange.reader.touched and not request.sent:
                self._abandon(exchange)
                raise ConnectionStale from None
            self.drop(exchange)
            raise
        if exchange.reader.state == COMPLETE:
            self._complete(exchange)
        return exchange

    # Deadlines. There is one timer, and it is only moved forward: an exchange that ends in time costs a comparison.

    def deadline_in(self, seconds: float | None) -> float:
        """Return a time of the loop's clock."""
        return NEVER if seconds is None else self._loop.time() + seconds

    def wait_until(self, deadline: float) -> asyncio.Future[bool]:
        """Return a future that becomes False at `deadline` if it is the exchange's."""
        self._set_deadline(deadline)
        return self._loop.create_future()

    def idle_until(self, deadline: float) -> None:
        """Close at `deadline` unless acquired before."""
        self._set_deadline(deadline)

    @property
    def expired(self) -> bool:
        return self.closed or self._deadline <= self._loop.time()

    @property
    def tls_session(self) -> ssl.SSLSession | None:
        """What a later connection can resume."""
        tls: ssl.SSLObject | None = self._transport.get_extra_info("ssl_object")
        return None if tls is None else tls.session

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = NEVER
        if self._loop.time() + TIMER_SLACK < self._deadline:
            self._set_deadline(self._deadline)
        elif self._exchange is not None:
            self._exchange.wake(False)
        elif self._pool.forget(self):
            self.closed = True
            self._transport.close()

    # Sending

    def flush_soon(self) -> None:
        """Write when the task waits for something: head and body go out together where the body is at hand."""
        if self._flush_handle is None:
            self._flush_handle = self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is pending."""
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        exchange = self._exchange
        if exchange is not None and not self.closed and exchange.request.pending and exchange.reader.state == HEAD:
            self._transport.writelines(exchange.request.take())

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self._exchange is not None:
            self._exchange.wake()

    # Receiving

    def resume_reading(self, exchange: Exchange) -> None:
        """Read on after the exchange's body has been taken."""
        if self._reading_paused and self._exchange is exchange:
            self._reading_paused = False
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none of asyncio's classes
        self._transport.set_write_buffer_limits(self.buffer_size)
        self._pool.connections.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._pool.buffer

    def buffer_updated(self, nbytes: int) -> None:
        exchange = self._exchange
        if exchange is None:
            # Nothing was asked, so this is no answer.
            self._pool.forget(self)
            self._abort()
            return
        if exchange.error is not None:
            return
        reader = exchange.reader
        try:
            reader.receive(bytes(self._pool.buffer[:nbytes]))
        except httpx.RemoteProtocolError as error:
            self._abort()
            exchange.fail(error)
            return
        if reader.state == HEAD:
            return
        if reader.state == COMPLETE:
            self._complete(exchange)
        elif reader.buffered >= self.buffer_size and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        exchange.advance()

    def eof_received(self) -> None:
        exchange = self._exchange
        if exchange is None:
            self._pool.forget(self)
        else:
            self._receive_eof(exchange)
        self.closed = True

    def _receive_eof(self, exchange: Exchange) -> None:
        try:
            exchange.reader.receive_eof(self._ended_cleanly())
        except httpx.RemoteProtocolError as error:
            self._abort()
            exchange.fail(error)
        else:
            self._complete(exchange)
            exchange.advance()

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

    def _complete(self, exchange: Exchange) -> None:
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
                self.used = True
                self._pool.release(self)
            else:
                self._abort()
                self._pool.free_slot()

    def drop(self, exchange: Exchange) -> None:
        """Close, and free the slot, if the exchange still has the connection."""
        if self._exchange is exchange:
            self._abandon(exchange)
            self._pool.free_slot()

    def _abandon(self, exchange: Exchange) -> None:
        self._exchange = None
        exchange.reader.discard()
        self._abort()

    def _abort(self) -> None:
        self.closed = True
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        self._transport.abort()

    abort = _abort
