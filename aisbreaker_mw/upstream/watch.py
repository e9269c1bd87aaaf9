"""Ends requests whose clients have gone away, do not read, or send so slowly that others wait for their slots."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from starlette.types import Receive

from ..client.body import RequestBody
from ..client.exchange import Exchange
from ..exceptions import AIsBreakerError, ClientDisconnected, RequestTimeout, ResponseInterrupted

DISCONNECT_CHECK = 0.25
"""Seconds after which a request that is still under way is watched. A response that comes sooner costs no task."""
UPLOAD_RATE = 16 * 1024
"""Least bytes per second of an upload that keeps its slot while others wait for one."""
UPLOAD_WINDOW = 10.0
"""Seconds over which that rate is measured. Only time in which the client keeps the service waiting counts."""
LOOKS = 8
"""Looks at a client that does not read, in the time after which it is cut off."""

Origin: TypeAlias = tuple[str, str, int]
"""Scheme, host and port of a service."""


class _Upload:
    """The rate of a body that is still to come."""

    __slots__ = ("_body", "_received", "_waited", "slow")

    def __init__(self, body: RequestBody) -> None:
        self._body = body
        self._received = body.received
        self._waited = 0.0
        self.slow = False
        """Whether the last whole window had too few bytes."""

    def measure(self) -> None:
        """Note that `DISCONNECT_CHECK` seconds have passed."""
        body = self._body
        if body.waiting:
            self._waited += DISCONNECT_CHECK
        if self._waited >= UPLOAD_WINDOW:
            self.slow = body.received - self._received < UPLOAD_RATE * UPLOAD_WINDOW
            self._received, self._waited = body.received, 0.0


class WatchedRequest:
    """
    One request under way. Its task is cancelled when it has to end; `error` then says why.

    Args:
        task: the request's task.
        receive: the ASGI call's `receive`, which tells of the disconnection.
        body: the request's body.
        exchange: the request's exchange.
        origin: the service's origin.
    """

    __slots__ = ("_body", "_exchange", "_receive", "_sent", "_task", "_unread", "_upload", "_watch", "error", "origin")

    def __init__(
        self, task: "asyncio.Task[Any]", receive: Receive, body: RequestBody, exchange: Exchange, origin: Origin
    ) -> None:
        self._task = task
        self._receive = receive
        self._body = body
        self._exchange = exchange
        self._watch: asyncio.Task[None] | None = None
        self._upload: _Upload | None = None
        self.origin = origin
        self.error: AIsBreakerError | None = None

    def begin(self) -> bool:
        """
        Watch for a disconnect from now on. Return False where more of the body is to be sent.
        """
        body = self._body
        uploading = body.reading and not body.exhausted
        if uploading:
            if self._upload is None:
                self._upload = _Upload(body)
            self._upload.measure()
        # Whoever waits for more of the body sees the client go. Where the service takes no more, nobody waits.
        if self._watch is None and not (uploading and body.waiting):
            self._watch = self._task.get_loop().create_task(self._wait())
        if uploading:
            return False
        body.stop_reading_ahead()
        self._sent, self._unread = -1, 0
        return True

    @property
    def sends_slowly(self) -> bool:
        """Whether the client's upload is slower than a slot is worth."""
        return self._upload is not None and self._upload.slow and not self._body.short

    def look(self) -> None:
        """Note that a `LOOKS`th of the time has passed for which the client may read nothing."""
        exchange = self._exchange
        if not exchange.writing:
            self._sent = -1
        elif exchange.sent_bytes != self._sent:
            self._sent, self._unread = exchange.sent_bytes, 0
        else:
            self._unread += 1
            if self._unread >= LOOKS:
                exchange.complete = False
                exchange.error = "client_not_reading"
                self.stop(ResponseInterrupted("the client does not read the response"))

    def stop(self, error: AIsBreakerError) -> None:
        """Cancel the request's task, unless that has been done."""
        if self.error is None:
            self.error = error
            self._task.cancel()

    def end(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._body.discard()
            self._watch.cancel()
            self._watch = None  # the traceback of its cancellation refers to this object

    async def _wait(self) -> None:
        await self._body.read_ahead()
        # Parts of the body may still come that the upstream did not read.
        while not self._body.client_gone and (await self._receive())["type"] != "http.disconnect":
            pass
        # After a whole response a server tells of a disconnection too. Only tidying up is left then, and it must not be
        # cancelled: a transport is about to take its connection back.
        if not self._exchange.complete:
            self.stop(ClientDisconnected())


class DisconnectWatcher:
    """
    Watches for a disconnect once a request takes longer than `DISCONNECT_CHECK` seconds, and for clients that hold others up.

    One timer serves all requests, and runs only while there are any. So a quick request costs neither a task nor a timer.

    Args:
        loop: the requests' event loop.
        crowded: returns whether a request waits for a connection to a service.
        unread: seconds for which a client may leave a response unread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, crowded: Callable[[Origin], bool], unread: float) -> None:
        self._loop = loop
        self._crowded = crowded
        self._look_interval = unread / LOOKS
        self._timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._new: set[WatchedRequest] = set()
        self._due: set[WatchedRequest] = set()
        """Requests that have been here for a round of the timer, or whose bodies are being sent."""
        self._begun: set[WatchedRequest] = set()
        """Requests that wait for a response, or stream one."""

    def add(self, request: WatchedRequest) -> None:
        """Watch a request soon."""
        self._new.add(request)
        if self._timer is None:
            self._timer = self._loop.call_later(DISCONNECT_CHECK, self._go_round)

    def remove(self, request: WatchedRequest) -> None:
        """Stop watching a request, which has ended."""
        if request in self._new:
            self._new.remove(request)
        else:
            self._due.discard(request)
            self._begun.discard(request)
            request.end()

    def _go_round(self) -> None:
        uploads: set[WatchedRequest] = set()
        for request in self._due:
            if request.begin():
                self._begun.add(request)
            else:
                uploads.add(request)
                if request.sends_slowly and self._crowded(request.origin):
                    request.stop(RequestTimeout())
        self._due = uploads | self._new
        self._new = set()
        self._timer = self._loop.call_later(DISCONNECT_CHECK, self._go_round) if self._due else None
        if self._begun and self._look_timer is None:
            self._look_timer = self._loop.call_later(self._look_interval, self._look)

    def _look(self) -> None:
        for request in self._begun:
            request.look()
        self._look_timer = self._loop.call_later(self._look_interval, self._look) if self._begun else None
