"""Streams one request to its service, and the service's response back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import httpx
from starlette.types import Receive

from ..client.body import RequestBody
from ..client.exchange import Exchange
from ..exceptions import ClientDisconnected, ResponseInterrupted, UpstreamCredentialRejected
from .errors import upstream_failure
from .redaction import examine
from .request import Timeouts, UpstreamRequest, response_headers
from .senders import Received, Sender, open_sender
from .transport import TimeoutExtension
from .watch import DisconnectWatcher, WatchedRequest

__all__ = ["UpstreamProxy"]


class UpstreamProxy:
    """
    Streams requests to AI services.

    Connections belong to an event loop. They are made for the loop of the first request, and anew where a later request runs
    on another one, as in an app under test.

    Args:
        open_transport: returns a transport, any of httpx's.
        timeouts: the timeouts of every request.
    """

    def __init__(self, open_transport: Callable[[], httpx.AsyncBaseTransport], timeouts: Timeouts) -> None:
        self._open_transport = open_transport
        self._timeouts = timeouts
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: httpx.AsyncBaseTransport  # these three are there from `_bind` on
        self._sender: Sender
        self._watcher: DisconnectWatcher

    async def __call__(self, request: UpstreamRequest, body: RequestBody, receive: Receive, exchange: Exchange) -> None:
        """
        Send a request to its service and stream the response to the client.

        Args:
            request: what is sent.
            body: the client's request body.
            receive: the ASGI call's `receive`, which tells of the client's disconnection.
            exchange: takes the response.

        Raises:
            RequestError: nothing has been answered yet; the client is to be told this error.
            ResponseInterrupted: the service broke off in the middle of the response, or the client does not read it.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - a coroutine of asyncio always runs in a task
        watched = WatchedRequest(task, receive, body, exchange, request.origin)
        self._watcher.add(watched)
        try:
            attempt: UpstreamRequest | None = request
            while attempt is not None:
                attempt = await self._attempt(attempt, body, exchange)
        except ClientDisconnected:
            return
        except asyncio.CancelledError:
            # The watcher cancels while the task is suspended in here, so its cancellation always arrives here. It ends here,
            # unless somebody outside has cancelled as well.
            if watched.error is None or task.uncancel() > 0:
                raise
            if not isinstance(watched.error, ClientDisconnected):
                raise watched.error from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            _fail(exchange, error)
        except OSError as error:
            # ASGI 2.4: "If send is called on a closed connection the server should raise a server-specific subclass of
            # OSError." Transports raise httpx's own errors, so an OSError before the response is not the client's.
            if exchange.status is None:
                _fail(exchange, error)
        finally:
            self._watcher.remove(watched)

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """The transport of the running event loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        return self._transport

    @contextlib.asynccontextmanager
    async def slot(self, request: UpstreamRequest, exchange: Exchange) -> AsyncIterator[None]:
        """
        Hold a slot of a service for a connection that is not made here. It counts as one of the transport's.

        Args:
            request: the request that the connection is for.
            exchange: its exchange, which tells who asks.

        Raises:
            UpstreamBusy: there was none in time.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        async with contextlib.AsyncExitStack() as held:
            try:
                await held.enter_async_context(self._sender.slot(request, {"pool": self._timeouts.pool}, exchange))
            except httpx.TransportError as error:
                _fail(exchange, error)
            yield

    async def aclose(self) -> None:
        """Close the connections. A request that comes later opens new ones."""
        if self._loop is not None:
            self._loop = None
            await self._transport.aclose()

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport = self._open_transport()
        self._sender = open_sender(self._transport)
        self._watcher = DisconnectWatcher(loop, self._sender.crowded, self._timeouts.idle)

    async def _attempt(self, request: UpstreamRequest, body: RequestBody, exchange: Exchange) -> UpstreamRequest | None:
        """Send a request and relay its response. Return what to send instead, where the credential is refused."""
        timeouts = self._timeouts
        waits: TimeoutExtension = {
            "connect": timeouts.connect,
            "read": timeouts.header,
            "write": timeouts.idle,
            "pool": timeouts.pool,
        }
        body.reading = True
        whole = await body.whole()
        received = await self._sender.send(request, body if whole is None else whole, waits, exchange)
        body.reading = False
        try:
            waits["read"] = timeouts.idle  # a transport reads its timeouts again for every wait
            status, attempts, told = received.status, request.attempts, False
            if status >= 300 and request.credential:
                received, told = await examine(received, request)
            if attempts is None:
                rejected = told or (status == 401 and not request.relay_unauthorized)
            else:
                rejected = attempts.rejects(status, received.headers, told=told)
                if (rejected or status == 429) and body.rewind() and (another := await attempts.another()) is not None:
                    return another
            if rejected:
                raise UpstreamCredentialRejected
            await self._relay(received, request, exchange)
            return None
        finally:
            await received.body.aclose()

    async def _relay(self, received: Received, request: UpstreamRequest, exchange: Exchange) -> None:
        """Stream a response to the client."""
        status, fields, length, body = received
        headers = response_headers(fields, counted=request.counted)
        if request.method == "HEAD":
            length = 0
        elif status in (204, 304):
            # RFC 9110, 8.6: a 204 has no length, and the length of a 304 is that of a body which is not sent
            headers = [header for header in headers if header[0] != b"content-length"]
            length = 0
        exchange.writing = True
        await exchange.begin(status, headers)
        exchange.writing = False
        # Where the length is known, the last piece says that it is the last one. That saves a message.
        async for piece in body:
            last = exchange.sent_bytes + len(piece) == length
            exchange.writing = True
            await exchange.write(piece, more_body=not last)
            exchange.writing = False
            if last and not self._sender.closes_early:
                break
        if length is not None and exchange.sent_bytes != length:
            raise httpx.RemoteProtocolError("the response is shorter than its Content-Length")
        if not exchange.complete:
            await exchange.write(b"", more_body=False)


def _fail(exchange: Exchange, cause: Exception) -> None:
    """
    Raises:
        RequestError: the response has not begun.
        ResponseInterrupted: it has.
    """
    exchange.cause = type(cause).__name__
    if exchange.status is not None:
        exchange.error = "response_interrupted"
        raise ResponseInterrupted("the upstream broke off") from None
    raise upstream_failure(cause) from None
