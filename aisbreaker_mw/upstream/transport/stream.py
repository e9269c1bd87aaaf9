"""One exchange of a request and its answer over a connection."""

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx

from .request import OutgoingRequest
from .response import COMPLETE, HEAD, ResponseReader

if TYPE_CHECKING:
    from .connection import Connection

NEVER = math.inf

TimeoutExtension = dict[str, float | None]
"""Seconds, by httpx's names: `connect`, `pool`, `read`, `write`. None and what is missing is no limit."""


class ConnectionStale(Exception):
    """An idle connection turned out to be closed before the upstream can have seen the request's body."""


class ResponseStream(httpx.AsyncByteStream):
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

    def __init__(self, connection: "Connection", request: OutgoingRequest, timeouts: TimeoutExtension) -> None:
        self._connection = connection
        self._timeouts = timeouts
        self._waiter: asyncio.Future[bool] | None = None
        self._sender: asyncio.Task[Any] | None = None
        self._interrupted = False
        self.request = request
        self.request_sent = False
        self.reader = ResponseReader(request.answer_has_body)
        self.failure: tuple[type[httpx.TransportError], str] | None = None
        """Why there is no more to come. An exception, raised, would refer to this, and so wait for the garbage collector."""
        self.write_now: Callable[[bytes], bool] | None = None
        """
        Is given a piece that arrives while the next one is awaited, and says whether it took it. If not, or where there are
        none to come after it, the piece goes to whoever waits, whom it otherwise does not wake.
        """

    async def send_body(self) -> None:
        """
        Send the request's body as it comes, until it ends, the answer's head is there or the connection is lost.

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
        """Whether the request's task is still at the body."""
        return self._sender is not None

    def answered(self) -> bool:
        """Say whether the answer has begun, or will never begin."""
        return self.reader.state != HEAD or self.failure is not None

    @property
    def arrived(self) -> bool:
        """Whether all of the answer is there."""
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
        Wait until the head of the answer is there.

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
                raise httpx.ReadTimeout("the upstream did not answer in time")

    def __aiter__(self) -> "ResponseStream":
        return self

    async def __anext__(self) -> bytes:
        reader = self.reader
        if not reader.pieces:
            try:
                while not reader.pieces and reader.state != COMPLETE:
                    self._raise_failure()
                    if not await self._event("read"):
                        raise httpx.ReadTimeout("the upstream's answer stopped")
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
        """Let go of the connection: it is dropped unless the answer has arrived completely."""
        self._connection.drop(self)

    def _event(self, name: str) -> asyncio.Future[bool]:
        """Return a future that is True when something happens, or False when the timeout of that name has passed."""
        self._start_timeout(name)
        self._waiter = waiter = self._connection.loop.create_future()
        return waiter

    def _start_timeout(self, name: str) -> None:
        connection = self._connection
        seconds = self._timeouts.get(name)
        connection.set_deadline(NEVER if seconds is None else connection.loop.time() + seconds)

    def wake(self, happened: bool = True) -> None:
        """Tell the task that waits."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(happened)

    def advance(self) -> None:
        """Have the request's task notice that the answer or an error is there."""
        waiter = self._waiter
        if waiter is not None:
            take = self.write_now
            if take is None or not self._pass_on(take, waiter):
                self.wake()
        elif self._sender is not None and not self._interrupted:
            self._interrupted = True
            self._sender.cancel()

    def _pass_on(self, take: Callable[[bytes], bool], waiter: asyncio.Future[bool]) -> bool:
        """Give what has arrived to `write_now`, and say whether the wait for the next piece goes on."""
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
            # A request of whose body nothing has gone out can have a second try, which needs its body unharmed.
            if not self._connection.used or self.reader.touched or self.request.sent or self._waiter is not None:
                self.advance()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            kind, text = self.failure
            raise kind(text)
