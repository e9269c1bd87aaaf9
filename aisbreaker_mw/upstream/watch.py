"""Cancels requests whose clients have gone away."""

import asyncio
from typing import Any

from starlette.types import Receive

from ..client.body import RequestBody
from ..client.exchange import Exchange

DISCONNECT_CHECK = 0.25
"""Seconds after which a request that is still under way is watched. A response that comes sooner costs no task."""


class WatchedRequest:
    """
    One request under way. Its task is cancelled when its client goes away; `client_gone` is then true.

    Args:
        task: the request's task.
        receive: the ASGI call's `receive`, which tells of the disconnection.
        body: the request's body.
        exchange: the request's exchange.
    """

    __slots__ = ("_body", "_exchange", "_receive", "_task", "_watch", "client_gone")

    def __init__(self, task: "asyncio.Task[Any]", receive: Receive, body: RequestBody, exchange: Exchange) -> None:
        self._task = task
        self._receive = receive
        self._body = body
        self._exchange = exchange
        self._watch: asyncio.Task[None] | None = None
        self.client_gone = False

    def begin(self) -> bool:
        """Watch from now on. Return False where that is not possible yet."""
        if self._body.reading and not self._body.exhausted:
            return False  # whoever reads the rest of the body has `receive`, and sees the client go
        self._watch = self._task.get_loop().create_task(self._wait())
        return True

    def end(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None  # the traceback of its cancellation refers to this object

    async def _wait(self) -> None:
        # Parts of the body may still come that the upstream did not read.
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # After a whole response a server tells of a disconnection too. Only tidying up is left then, and it must not be
        # cancelled: a transport is about to take its connection back.
        if not self._exchange.complete:
            self.client_gone = True
            self._task.cancel()


class DisconnectWatcher:
    """
    Watches for a disconnect once a request takes longer than `DISCONNECT_CHECK` seconds.

    One timer serves all requests, and runs only while there are any. So a quick request costs neither a task nor a timer.

    Args:
        loop: the requests' event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._new: set[WatchedRequest] = set()
        self._due: set[WatchedRequest] = set()
        """Requests that have been here for a round of the timer, or could not be watched then."""

    def add(self, request: WatchedRequest) -> None:
        """Watch a request soon."""
        self._new.add(request)
        if self._timer is None:
            self._timer = self._loop.call_later(DISCONNECT_CHECK, self._go_round)

    def remove(self, request: WatchedRequest) -> None:
        """Stop watching a request, which has ended."""
        self._new.discard(request)
        self._due.discard(request)
        request.end()

    def _go_round(self) -> None:
        self._due = {request for request in self._due if not request.begin()} | self._new
        self._new = set()
        self._timer = self._loop.call_later(DISCONNECT_CHECK, self._go_round) if self._due else None
