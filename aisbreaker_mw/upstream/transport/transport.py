"""The transport: requests to any origin, over a pool of connections for each."""

import contextlib
import ssl

import httpx

from ...http1.fields import RawHeaders
from .pool import Pool, closed_error
from .request import OutgoingRequest, TimeoutExtension
from .slots import FAIR_SHARE, NOBODY, Asker, Slots
from .stream import ConnectionStale, ResponseStream
from .tls import default_context


def origin_of(url: httpx.URL) -> tuple[str, str, int]:
    """Return scheme, host (as in DNS) and port of a URL."""
    scheme = url.scheme
    return scheme, url.raw_host.decode("ascii"), url.port or (443 if scheme == "https" else 80)


class HTTPTransport(httpx.AsyncBaseTransport):
    """
    HTTP/1.1 on asyncio, or uvloop, for one event loop.

    The request is sent byte for byte: the target is `request.extensions["target"]`, else the URL's path and query; the headers
    keep their order and case. Nothing is added. A body is sent where the headers frame one, by `Content-Length` or by
    `Transfer-Encoding: chunked`. The response is given back as received, but interim responses (1xx) and the trailer section of
    a chunked response are dropped, and chunks are joined. Content encodings are left alone.

    `request.extensions["timeout"]` has seconds by httpx's names: `pool`, to wait for a connection; `connect`, TLS included;
    `write`, for which the upstream takes nothing; `read`, from the end of the request to the head of the response, and then
    between two pieces of its body. A name that is missing or None has no limit. The dictionary is looked up for every wait.

    A response that comes before the request's body has been sent ends the sending and is delivered. Its connection is not used
    again. A connection that the upstream closed while it was idle is replaced once. The request is then sent again if no byte
    of its body has been sent.

    Args:
        max_connections: most connections to one origin (scheme, host and port) at once.
        fair_share: most connections held for each free one, by one client or token, at which it can take one more.
        keepalive_expiry: seconds after which an idle connection is closed.
        max_connection_age: seconds after which a connection takes no further request.
        ssl_context: the context for `https`. The default is the system's trust, see `tls.default_context`. Its ALPN protocols
            are set.
        buffer_size: most bytes held of a response that nobody takes, and of a request's body that the upstream does not read,
            before the other side has to wait. Half of it is read at a time.

    Raises:
        httpx.TransportError: with a fixed text: `ConnectError`, `ConnectTimeout`, `PoolTimeout`, `ReadError`, `ReadTimeout`,
            `WriteTimeout`, `RemoteProtocolError`, `LocalProtocolError`, `UnsupportedProtocol`. Errors of the request's body
            pass unchanged.
    """

    def __init__(
        self,
        *,
        max_connections: int = 1000,
        fair_share: int = FAIR_SHARE,
        keepalive_expiry: float = 30.0,
        max_connection_age: float = 600.0,
        ssl_context: ssl.SSLContext | None = None,
        buffer_size: int = 65_536,
    ) -> None:
        self._max_connections = max_connections
        self._fair_share = fair_share
        self._keepalive_expiry = keepalive_expiry
        self._max_connection_age = max_connection_age
        self._ssl_context = ssl_context
        self._buffer = memoryview(bytearray(max(1, buffer_size // 2)))
        self._pools: dict[tuple[str, str, int], Pool] = {}
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """
        Send a request and return its response as soon as the head is there.

        Args:
            request: the request. Its stream is read once, if its headers frame a body.

        Raises:
            httpx.TransportError: see above.
        """
        extensions = request.extensions
        stream = request.stream
        body: bytes | httpx.AsyncByteStream
        if isinstance(stream, httpx.ByteStream):
            body = b"".join(stream)
        elif isinstance(stream, httpx.AsyncByteStream):
            body = stream
        else:
            raise RuntimeError("an asynchronous request body is needed")
        stream = await self.send(
            request.method,
            origin_of(request.url),
            extensions.get("target") or request.url.raw_path,
            request.headers.raw,
            body,
            extensions.get("timeout") or {},
            NOBODY,
        )
        reader = stream.reader
        return httpx.Response(
            reader.status,
            headers=reader.headers,
            stream=stream,
            extensions={"http_version": b"HTTP/" + reader.version.encode(), "reason_phrase": reader.reason},
        )

    async def send(
        self,
        method: str,
        origin: tuple[str, str, int],
        target: bytes,
        headers: RawHeaders,
        body: bytes | httpx.AsyncByteStream,
        timeouts: TimeoutExtension,
        asker: Asker,
    ) -> ResponseStream:
        """
        Send a request as `handle_async_request` does, without httpx's models of the request and its response.

        Plainly, every caller would make those models. They cost a tenth of a request's instructions (see `upstream.senders`).

        Args:
            method: HTTP method.
            origin: scheme, host and port, as `origin_of` returns them.
            target: request target, written byte for byte.
            headers: headers, written in their order and case.
            body: body, whole or as it comes. It is read once, if the headers frame one.
            timeouts: seconds, looked up for every wait.
            asker: who asks. Each gets a fair share of the connections.

        Raises:
            httpx.TransportError: see above.
        """
        outgoing = OutgoingRequest(method, target, headers, body)
        try:
            pool = self._pools.get(origin) or self._open_pool(origin)
            connection = pool.take_idle(asker) or await pool.acquire(asker, timeouts)
            try:
                stream = await connection.perform(outgoing, timeouts)
            except ConnectionStale:
                outgoing.rewind()
                connection = await pool.connect(connection, timeouts)
                stream = await connection.perform(outgoing, timeouts)
        except BaseException:
            await outgoing.aclose()
            raise
        if not stream.request_sent:
            await self._stop(stream)
        return stream

    def slot(
        self, origin: tuple[str, str, int], asker: Asker, timeouts: TimeoutExtension
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """
        Hold one of an origin's slots for a connection that is not this transport's.

        Args:
            origin: scheme, host and port, as `origin_of` returns them.
            asker: who holds it.
            timeouts: seconds, `pool`.

        Raises:
            httpx.PoolTimeout: there was no slot in time.
            httpx.ConnectError: the transport is closed.
        """
        return (self._pools.get(origin) or self._open_pool(origin)).slot(asker, timeouts)

    def crowded(self, origin: tuple[str, str, int]) -> bool:
        """Return whether a request waits for one of an origin's slots."""
        pool = self._pools.get(origin)
        return pool is not None and pool.slots.waited_for

    @staticmethod
    async def _stop(stream: ResponseStream) -> None:
        """Let go of the rest of a request's body, which the upstream does not want."""
        try:
            await stream.request.aclose()
        except BaseException:
            await stream.aclose()
            raise

    def _open_pool(self, origin: tuple[str, str, int]) -> Pool:
        if self._closed:
            raise closed_error()
        scheme, host, _ = origin
        if scheme not in ("http", "https") or not host:
            raise httpx.UnsupportedProtocol("only http and https to a host are supported")
        if scheme == "https" and self._ssl_context is None:
            self._ssl_context = default_context()
        pool = self._pools[origin] = Pool(
            origin,
            slots=Slots(self._max_connections, self._fair_share),
            keepalive_expiry=self._keepalive_expiry,
            max_connection_age=self._max_connection_age,
            ssl_context=self._ssl_context if scheme == "https" else None,
            buffer=self._buffer,
        )
        return pool

    async def aclose(self) -> None:
        """Close every connection. Requests under way end with an error, and so does every later one."""
        self._closed = True
        for pool in self._pools.values():
            pool.close()
        for pool in self._pools.values():
            await pool.wait_closed()
