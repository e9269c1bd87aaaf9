"""One request under way on a connection, and its response."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import httpx

from ...deadline import NEVER
from .request import OutgoingRequest, TimeoutExtension
from .response import COMPLETE, HEAD, ResponseReader


class ConnectionStale(Exception):
    """An idle connection turned out to be closed before the upstream can have seen the request's body."""


class StreamConnection(Protocol):
    """What a stream needs of its connection."""

    loop: asyncio.AbstractEventLoop
    buffer_size: int
    used: bool
    reading_paused: bool
    writing_paused: bool

    def flush(self) -> None:
        """Write what is pending of the request."""

    def flush_soon(self) -> None:
        """Write what is pending of the request once the task waits for something."""

    def set_deadline(self, deadline: float) -> None:
        """Have `ResponseStream.wake(False)` called at this time of the loop's clock."""

    def resume_reading(self, stream: "ResponseStream") -> None:
        """Read on after the body that had arrived was taken."""

    def drop(self, stream: "ResponseStream") -> None:
        """Close, if the stream still has the connection."""


class ResponseStream(httpx.AsyncByteStream):
    """
    A request on its way and its response; iterating gives the response's body.

    The bytes come without their framing. All that has arrived since the last piece comes as one piece.

    Args:
        connection: the connection that carries both.
        request: the request.
        timeouts: seconds, `read` and `write`. They are looked up for every wait, so they can be changed on the way.

    Raises:
        httpx.ReadTimeout: nothing came for `read` seconds.
        httpx.RemoteProtocolError: the response broke off or is malformed.
        httpx.ReadError: the connection broke.
    """

    __slots__ = (
        "_connection",
        "_interrupted",
        "_sender",
        "_timeouts",
        "_waiter",
        "failure",
        "reader",
        "request",
        "request_sent",
        "write_now",
    )

    def __init__(self, connection: StreamConnection, request: OutgoingRequest, timeouts: TimeoutExtension) -> None:
        self._connection = connection
        self._timeouts = timeouts
        self._waiter: asyncio.Future[bool] | None = None
        self._sender: asyncio.Task[Any] | None = None
        self._interrupted = False
        self.request = request
        self.request_sent = False
        """Whether all of the request has been handed to the connection."""
        self.reader = ResponseReader(request.response_has_body)
        self.failure: tuple[type[httpx.TransportError], str] | None = None
        """Why the response ends early: class and text of the error. A raised exception would refer back to this object."""
        self.write_now: Callable[[bytes], bool] | None = None
        """Takes a piece of the body without waking the task, and returns whether it did; see `_pass_on`."""

    async def send_body(self) -> None:
        """
        Send the request's body as it comes, until it ends, the response's head arrives or the connection is lost.

        The request's own task waits for the body. When the response comes first, that wait is cancelled from inside, as
        `asyncio.timeout` does it. So no second task is needed.

        Raises:
            httpx.WriteTimeout: the upstream took nothing for `write` seconds.
            httpx.LocalProtocolError: the body is longer or shorter than its Content-Length.
            Exception: any error of the body.
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
                    await self.drain()
                else:
                    connection.flush_soon()
                if self.answered():
                    break
            else:
                request.finish()
                connection.flush()
                self.request_sent = not self.answered()
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
        """Whether the request's task is still sending the body."""
        return self._sender is not None

    def answered(self) -> bool:
        """Return whether the response has begun, or never will."""
        return self.reader.state != HEAD or self.failure is not None

    @property
    def arrived(self) -> bool:
        """Whether the whole response has arrived."""
        return self.reader.state == COMPLETE

    async def drain(self) -> None:
        """
        Wait until the upstream has read enough of the request, or has answered.

        Raises:
            httpx.WriteTimeout: it did neither for `write` seconds.
        """
        while self._connection.writing_paused and not self.answered():
            if not await self._event("write"):
                raise httpx.WriteTimeout("the upstream stopped reading the request")

    async def receive_head(self) -> None:
        """
        Wait for the head of the response.

        Raises:
            httpx.ReadTimeout: it did not come within `read` seconds.
            ConnectionStale: it will not come, and the request can be tried once more.
            httpx.TransportError: it will not come.
        """
        while self.reader.state == HEAD:
            if self.failure is not None:
                if self._connection.used and not self.reader.touched and not self.request.sent:
                    raise ConnectionStale
                self._raise_failure()
            if not await self._event("read"):
                raise httpx.ReadTimeout("the upstream did not respond in time")

    def __aiter__(self) -> "ResponseStream":
        return self

    async def __anext__(self) -> bytes:
        reader = self.reader
        if not reader.pieces:
            try:
                while not reader.pieces and reader.state != COMPLETE:
                    self._raise_failure()
                    if not await self._event("read"):
                        raise httpx.ReadTimeout("the upstream's response stopped")
            except BaseException:
                self._connection.drop(self)
                raise
            if not reader.pieces:
                raise StopAsyncIteration
        piece = reader.take()
        if self._connection.reading_paused:
            self._connection.resume_reading(self)
        return piece

    async def aclose(self) -> None:
        """Let go of the connection. It is closed unless the whole response has arrived."""
        self._connection.drop(self)

    def _event(self, name: str) -> asyncio.Future[bool]:
        """Return a future: True when something happens, False when the timeout of this name has passed."""
        self._start_timeout(name)
        self._waiter = waiter = self._connection.loop.create_future()
        return waiter

    def _start_timeout(self, name: str) -> None:
        connection = self._connection
        seconds = self._timeouts.get(name)
        connection.set_deadline(NEVER if seconds is None else connection.loop.time() + seconds)

    def wake(self, happened: bool = True) -> None:
        """End the wait of the request's task, if it waits."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(happened)

    def advance(self) -> None:
        """Tell the request's task that part of the response, or an error, has arrived."""
        waiter = self._waiter
        if waiter is not None:
            take = self.write_now
            if take is None or not self._pass_on(take, waiter):
                self.wake()
        elif self._sender is not None and not self._interrupted:
            self._interrupted = True
            self._sender.cancel()

    def _pass_on(self, take: Callable[[bytes], bool], waiter: asyncio.Future[bool]) -> bool:
        """
        Give what has arrived to `write_now`, and return whether the task may go on waiting.

        Plainly, `advance` would always wake the task, which takes the piece and sends it. Without the wake-up a streamed piece
        costs 347 interpreted instructions instead of 452. The task is woken where the client takes no more, and for the last
        piece.

        Args:
            take: `write_now`.
            waiter: the future that the task waits for.
        """
        reader = self.reader
        if reader.state == COMPLETE or not reader.pieces or self.failure is not None or waiter.done():
            return False
        piece = reader.take()
        if not take(piece):
            reader.put_back(piece)
            return False
        self._start_timeout("read")
        return True

    def fail(self, error: httpx.TransportError) -> None:
        """End with an error, after what has arrived before it."""
        if self.failure is None:
            self.failure = type(error), str(error)
            # A request whose body has not begun to go out can be tried again, which needs the body untouched.
            if not self._connection.used or self.reader.touched or self.request.sent or self._waiter is not None:
                self.advance()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            kind, text = self.failure
            raise kind(text)
