"""Streams one request to its service, and the service's answer back."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
from starlette.types import Receive

from ..client.body import RequestBody
from ..client.exchange import Exchange
from ..client.responses import RATE_LIMIT_HEADERS
from ..exceptions import (
    ClientDisconnected,
    RawHeaders,
    RequestError,
    ResponseInterrupted,
    UpstreamBusy,
    UpstreamCredentialRejected,
    UpstreamError,
    UpstreamTimeout,
)
from ..http1.fields import HOP_BY_HOP, forwardable, get
from ..http1.heads import MalformedHead, read_length
from .transport import AnswerReader, HTTPTransport, origin_of

DISCONNECT_CHECK = 0.25
"""Seconds after which a request that is still under way is watched for its client going away. A quick answer needs no watch,
and so no task."""

# Another origin's CORS policy is not ours.
_DROPS = HOP_BY_HOP | {
    b"access-control-allow-credentials",
    b"access-control-allow-headers",
    b"access-control-allow-methods",
    b"access-control-allow-origin",
    b"access-control-expose-headers",
    b"access-control-max-age",
}
_COUNTED_DROPS = _DROPS | RATE_LIMIT_HEADERS


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to connect, until the answer's first byte, between two pieces, and until a connection is free."""

    connect: float
    header: float
    idle: float
    pool: float


class Attempts(Protocol):
    """The other ways to send a request whose credential the service has refused."""

    def rejects(self, status: int, headers: RawHeaders) -> bool:
        """
        Tell whether an answer says that the credential is not accepted, and learn from it.

        Args:
            status: of the answer.
            headers: of the answer, names in lower case.
        """

    async def another(self) -> "UpstreamRequest | None":
        """Return the request with another credential, or None where there is none left."""


@dataclass(slots=True)
class UpstreamRequest:
    """
    What is sent to a service. Its repr shows no credential.

    Args:
        method: HTTP method.
        origin: (scheme, host, port).
        target: request target, byte for byte: path and query.
        headers: all of them, Host first, credential included; framed by `content-length` or by `transfer-encoding: chunked`
            where there is a body.
        relay_unauthorized: whether the service's 401 reaches the client, because the credential is the client's own.
        counted: whether the answer tells our rate limit, and so not the service's own in headers of the same name.
        attempts: what to do where the credential is refused; None: it is the only one, and 401 is what refuses it.
    """

    method: str
    origin: tuple[str, str, int]
    target: bytes = field(repr=False)
    headers: RawHeaders = field(repr=False)
    relay_unauthorized: bool = False
    counted: bool = False
    attempts: Attempts | None = None


class _Watched:
    """
    One request under way, whose task is cancelled when its client goes away.

    `client_gone` tells that afterwards.
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
        """Watch from now, if that can be done."""
        if self._body.reading and not self._body.exhausted:
            return False  # the rest of the body is its reader's, who has `receive` and sees the client go itself
        self._watch = self._task.get_loop().create_task(self._wait())
        return True

    def end(self) -> None:
        """Watch no longer."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None  # which refers to this, by the traceback of its cancellation

    async def _wait(self) -> None:
        # Body that the upstream did not want to read is taken and dropped.
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # After a whole answer a server tells of a disconnection as well, and what is left to do is to tidy up: a connection
        # that a transport is about to take back must not be lost to it.
        if not self._exchange.complete:
            self.client_gone = True
            self._task.cancel()


class _Watchman:
    """
    Has those requests watched that take longer than `DISCONNECT_CHECK` seconds.

    A request that is answered sooner costs no task and no timer: there is one timer for all, and it runs only while there are
    requests.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._new: set[_Watched] = set()
        self._due: set[_Watched] = set()
        """Those that have been there for a round of the timer, or could not be watched then."""

    def add(self, request: _Watched) -> None:
        self._new.add(request)
        if self._timer is None:
            self._timer = self._loop.call_later(DISCONNECT_CHECK, self._go_round)

    def remove(self, request: _Watched) -> None:
        self._new.discard(request)
        self._due.discard(request)
        request.end()

    def _go_round(self) -> None:
        self._due = {request for request in self._due if not request.begin()} | self._new
        self._new = set()
        self._timer = self._loop.call_later(DISCONNECT_CHECK, self._go_round) if self._due else None


class UpstreamProxy:
    """
    Streams requests to AI services; for one event loop, the running one.

    Args:
        transport: carries the requests; any of httpx's.
        timeouts: of every request.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, timeouts: Timeouts) -> None:
        self._transport = transport
        # This package's own is spoken to without httpx's models, which nobody would look at: a tenth of its instructions.
        self._native = transport if type(transport) is HTTPTransport else None
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._watchman = _Watchman(self._loop)
        self._urls: dict[tuple[str, str, int], tuple[httpx.URL, tuple[str, str, int]]] = {}

    async def __call__(self, upstream: UpstreamRequest, body: RequestBody, receive: Receive, exchange: Exchange) -> None:
        """
        Send a request to its service and stream the answer to the client.

        Args:
            upstream: what to send.
            body: the client's request body.
            receive: of the ASGI call; told the client's going away.
            exchange: takes the answer.

        Raises:
            RequestError: nothing has been answered yet, and this is to be.
            ResponseInterrupted: the service broke off in the middle of the answer.
        """
        loop = self._loop
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - a coroutine of asyncio always runs in a task
        watched = _Watched(task, receive, body, exchange)
        self._watchman.add(watched)
        try:
            attempt: UpstreamRequest | None = upstream
            while attempt is not None:
                attempt = await self._relay(attempt, body, exchange)
        except ClientDisconnected:
            return
        except asyncio.CancelledError:
            # The watch cancels while the task is suspended in here, so its cancellation always arrives here. It ends here,
            # unless somebody outside has cancelled as well.
            if not watched.client_gone or task.uncancel() > 0:
                raise
        except httpx.PoolTimeout as error:
            self._fail(exchange, error, UpstreamBusy)
        except httpx.TimeoutException as error:
            self._fail(exchange, error, UpstreamTimeout)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            self._fail(exchange, error, UpstreamError)
        except OSError as error:
            # ASGI 2.4: "If send is called on a closed connection the server should raise a server-specific subclass of
            # OSError." Transports raise httpx's own errors, so one that comes before an answer is none of the client's.
            if exchange.status is None:
                self._fail(exchange, error, UpstreamError)
        finally:
            self._watchman.remove(watched)

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """What carries the requests."""
        return self._transport

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    @staticmethod
    def _fail(exchange: Exchange, cause: Exception, error: Callable[[], RequestError]) -> None:
        exchange.cause = type(cause).__name__
        if exchange.status is not None:
            exchange.error = "response_interrupted"
            raise ResponseInterrupted("the upstream broke off") from None
        raise error() from None

    async def _relay(self, upstream: UpstreamRequest, body: RequestBody, exchange: Exchange) -> UpstreamRequest | None:
        """Send a request and answer it; return what to send instead, where the credential is refused and there is another."""
        known = self._urls.get(upstream.origin)
        if known is None:
            scheme, host, port = upstream.origin
            url = httpx.URL(scheme=scheme, host=host, port=port, path="/")
            known = self._urls[upstream.origin] = url, origin_of(url)
        url, origin = known
        # Both this package's transport and httpx's own look their timeout up anew for the body, in this very object.
        timeouts = self._timeouts
        timeout: dict[str, float | None] = {
            "connect": timeouts.connect,
            "read": timeouts.header,
            "write": timeouts.idle,
            "pool": timeouts.pool,
        }
        stream: httpx.AsyncByteStream
        reader: AnswerReader | None = None
        body.reading = True
        whole = await body.whole()
        if self._native is not None:
            sent = body if whole is None else whole
            stream = answer = await self._native.send(upstream.method, origin, upstream.target, upstream.headers, sent, timeout)
            reader = answer.reader
            status, received = reader.status, reader.fields
            if not answer.arrived:
                answer.take_at_once = exchange.writer_at_once()
        else:
            extensions = {"target": upstream.target, "timeout": timeout}
            sending = body if whole is None else httpx.ByteStream(whole)
            response = await self._transport.handle_async_request(
                httpx.Request(upstream.method, url, headers=upstream.headers, stream=sending, extensions=extensions)
            )
            assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - what httpx.AsyncBaseTransport promises
            stream, status = response.stream, response.status_code
            received = [(name.lower(), value) for name, value in response.headers.raw]
        body.reading = False
        try:
            timeout["read"] = timeouts.idle
            attempts = upstream.attempts
            if attempts is None:
                rejected = status == 401 and not upstream.relay_unauthorized
            else:
                rejected = attempts.rejects(status, received)
                if (rejected or status == 429) and body.rewind() and (another := await attempts.another()) is not None:
                    return another
            if rejected:
                raise UpstreamCredentialRejected
            size = _length(received) if reader is None else reader.length
            await self._answer(status, received, size, stream, upstream, exchange)
            return None
        finally:
            await stream.aclose()

    async def _answer(
        self,
        status: int,
        received: RawHeaders,
        size: int | None,
        stream: httpx.AsyncByteStream,
        upstream: UpstreamRequest,
        exchange: Exchange,
    ) -> None:
        """Relay an answer; its `size` is what Content-Length says."""
        headers = answer_headers(received, counted=upstream.counted)
        if upstream.method == "HEAD":
            size = 0
        elif status in (204, 304):
            # RFC 9110, 8.6: no length in a 204, and the one that a 304 tells is of no body that is sent
            headers = [header for header in headers if header[0] != b"content-length"]
            size = 0
        await exchange.begin(status, headers)
        # Where the length is known the last piece says that it is the last one, which saves a message.
        async for piece in stream:
            last = exchange.sent_bytes + len(piece) == size
            await exchange.write(piece, more_body=not last)
            if last and self._native is not None:
                break  # which httpx's transport would take for a loss of interest, and close the connection
        if size is not None and exchange.sent_bytes != size:
            raise httpx.RemoteProtocolError("the answer is shorter than its Content-Length")
        if not exchange.complete:
            await exchange.write(b"", more_body=False)


def _length(headers: RawHeaders) -> int | None:
    """
    Return what Content-Length says.

    Raises:
        httpx.RemoteProtocolError: it is malformed.
    """
    text = get(headers, b"content-length")
    try:
        return None if text is None else read_length(text)
    except MalformedHead:
        raise httpx.RemoteProtocolError("malformed Content-Length") from None


def answer_headers(received: RawHeaders, *, counted: bool) -> RawHeaders:
    """
    Return the headers of a service's answer that reach the client.

    Args:
        received: names in lower case.
        counted: whether our rate limit is told, and so not the service's own in headers of the same name.
    """
    return forwardable(received, _COUNTED_DROPS if counted else _DROPS)


def open_transport(kind: str, *, max_connections: int, http2: bool) -> httpx.AsyncBaseTransport:
    """
    Return a transport to AI services: no redirect is followed, no cookie kept, no proxy of the environment used.

    Args:
        kind: `native` (this package's) or `httpx` (httpx's own).
        max_connections: at once; per origin for `native`, in all for `httpx`.
        http2: offer HTTP/2 to the service; `httpx` only.
    """
    if kind == "native":
        return HTTPTransport(max_connections=max_connections)
    limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections, keepalive_expiry=30)
    return httpx.AsyncHTTPTransport(http2=http2, limits=limits, trust_env=False)
