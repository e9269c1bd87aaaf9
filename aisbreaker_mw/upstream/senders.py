"""
Two ways to send a request: by this package's own transport, and by any of httpx's.

The own transport is used without httpx's models of request and response, which nobody reads. They cost a tenth of a request's
instructions. Both ways return the same `Received`.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

import httpx

from ..client.body import RequestBody
from ..client.exchange import Exchange
from ..http1.fields import RawHeaders, get
from ..http1.heads import MalformedHead, read_length
from .request import UpstreamRequest
from .transport import HTTPTransport, TimeoutExtension, origin_of

__all__ = [
    "HTTPXSender",
    "NativeSender",
    "Received",
    "ResponseBody",
    "Sender",
    "open_sender",
    "open_transport",
]


class ResponseBody(Protocol):
    """The body of a response, piece by piece."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """Let go of the connection."""


class Received(NamedTuple):
    """
    The head of a service's response, and its body to come.

    Attributes:
        status: HTTP status.
        headers: headers in the order received, names in lower case.
        length: bytes of the body by Content-Length, or None.
        body: the body; it must be closed.
    """

    status: int
    headers: RawHeaders
    length: int | None
    body: ResponseBody


class Sender(Protocol):
    """One way to send a request."""

    closes_early: bool
    """Whether a connection is closed whose response is not iterated beyond its last piece."""

    async def send(
        self, request: UpstreamRequest, body: RequestBody | bytes, timeouts: TimeoutExtension, exchange: Exchange
    ) -> Received:
        """
        Send a request and return its response as soon as the head is there.

        Args:
            request: what is sent.
            body: the request's body.
            timeouts: seconds.
            exchange: the exchange that the response goes to.

        Raises:
            httpx.TransportError: there is no response.
        """

    def crowded(self, origin: tuple[str, str, int]) -> bool:
        """Return whether a request waits for a connection to a service, as far as the transport tells."""

    def slot(
        self, request: UpstreamRequest, timeouts: TimeoutExtension, exchange: Exchange
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """
        Hold the slot of a connection that the transport does not make itself, if it has slots.

        Args:
            request: the request that the connection is for.
            timeouts: seconds.
            exchange: the exchange that it belongs to.

        Raises:
            httpx.TransportError: there was none in time.
        """


class NativeSender:
    """
    Sends by this package's transport.

    Where the client is connected to this package's server, streamed pieces go from socket to socket without waking the
    request's task (`Exchange.synchronous_writer`).

    Args:
        transport: carries the requests.
    """

    closes_early = False

    def __init__(self, transport: HTTPTransport) -> None:
        self._transport = transport
        self._origins: dict[tuple[str, str, int], tuple[str, str, int]] = {}

    async def send(
        self, request: UpstreamRequest, body: RequestBody | bytes, timeouts: TimeoutExtension, exchange: Exchange
    ) -> Received:
        """Send a request; see `Sender`."""
        origin = self._origins.get(request.origin) or self._find_origin(request)
        stream = await self._transport.send(
            request.method, origin, request.target, request.headers, body, timeouts, exchange.asker
        )
        reader = stream.reader
        if not stream.arrived and reader.status < 400:  # an error is searched for the credential first
            stream.write_now = exchange.synchronous_writer()
        return Received(reader.status, reader.fields, reader.length, stream)

    def crowded(self, origin: tuple[str, str, int]) -> bool:
        """Return whether a request waits for a connection; see `Sender`."""
        return origin in self._origins and self._transport.crowded(self._origins[origin])

    def slot(
        self, request: UpstreamRequest, timeouts: TimeoutExtension, exchange: Exchange
    ) -> contextlib.AbstractAsyncContextManager[None]:
        return self._transport.slot(self._find_origin(request), exchange.asker, timeouts)

    def _find_origin(self, request: UpstreamRequest) -> tuple[str, str, int]:
        """Return a pool's name: the origin as DNS knows it."""
        origin = self._origins[request.origin] = origin_of(_url(request))
        return origin


class HTTPXSender:
    """
    Sends by any transport of httpx.

    Args:
        transport: carries the requests.
    """

    closes_early = True

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def send(
        self, request: UpstreamRequest, body: RequestBody | bytes, timeouts: TimeoutExtension, exchange: Exchange
    ) -> Received:
        """Send a request; see `Sender`."""
        response = await self._transport.handle_async_request(
            httpx.Request(
                request.method,
                _url(request),
                headers=request.headers,
                stream=httpx.ByteStream(body) if isinstance(body, bytes) else body,
                extensions={"target": request.target, "timeout": timeouts},
            )
        )
        stream = response.stream
        assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - what httpx.AsyncBaseTransport promises
        headers = [(name.lower(), value) for name, value in response.headers.raw]
        return Received(response.status_code, headers, _length(headers), stream)

    def crowded(self, origin: tuple[str, str, int]) -> bool:
        """Return whether a request waits for a connection; see `Sender`."""
        return False

    def slot(
        self, request: UpstreamRequest, timeouts: TimeoutExtension, exchange: Exchange
    ) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()


def _url(request: UpstreamRequest) -> httpx.URL:
    scheme, host, port = request.origin
    return httpx.URL(scheme=scheme, host=host, port=port, path="/")


def _length(headers: RawHeaders) -> int | None:
    """
    Return the bytes that Content-Length tells, or None.

    Raises:
        httpx.RemoteProtocolError: it is malformed.
    """
    text = get(headers, b"content-length")
    try:
        return None if text is None else read_length(text)
    except MalformedHead:
        raise httpx.RemoteProtocolError("malformed Content-Length") from None


def open_sender(transport: httpx.AsyncBaseTransport) -> Sender:
    """Return the way to send by a transport."""
    return NativeSender(transport) if type(transport) is HTTPTransport else HTTPXSender(transport)


def open_transport(kind: str, *, max_connections: int, fair_share: int, http2: bool) -> httpx.AsyncBaseTransport:
    """
    Return a transport to AI services. It follows no redirect, keeps no cookie, and uses no proxy of the environment.

    Args:
        kind: `native` (this package's) or `httpx` (httpx's own).
        max_connections: connections at once; per origin for `native`, in all for `httpx`.
        fair_share: most connections held for each free one, by one client or token, at which it can take one more; `native`
            only.
        http2: offer HTTP/2 to the service; `httpx` only.
    """
    if kind == "native":
        return HTTPTransport(max_connections=max_connections, fair_share=fair_share)
    limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections, keepalive_expiry=30)
    return httpx.AsyncHTTPTransport(http2=http2, limits=limits, trust_env=False)
