"""The transport: a pool of connections for each origin."""

import asyncio
import ssl
from collections import deque
from typing import Any

import httpx

from ...http1.fields import RawHeaders
from .connection import Connection
from .dialing import open_socket
from .request import OutgoingRequest
from .stream import ConnectionStale, ResponseStream, TimeoutExtension
from .tls import ResumingContext, default_context

TLS_SHUTDOWN = 1.0
"""Seconds for which a closed connection waits for the other side's closing alert."""


class Pool:
    """
    The connections to one origin: the one used last is used next, and who finds none waits in line.

    A slot stands for a connection that is open or being opened. It belongs to the task that has acquired it, to the exchange on
    its connection, or to the idle connection; whoever gives up a connection frees its slot.

    Args:
        origin: scheme, host, port.
        max_connections: slots.
        keepalive_expiry: seconds that a connection stays idle at most.
        max_connection_age: seconds after which a connection is not used again.
        ssl_context: for `https`.
        buffer_size: bytes.
    """

    def __init__(
        self,
        origin: tuple[str, str, int],
        *,
        max_connections: int,
        keepalive_expiry: float,
        max_connection_age: float,
        ssl_context: ssl.SSLContext | None,
        buffer: memoryview,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        _, self._host, self._port = origin
        self._max_connections = max_connections
        self._keepalive_expiry = keepalive_expiry
        self._tls = None if ssl_context is None else ResumingContext(ssl_context)
        self._slots = 0
        self._idle: dict[Connection, None] = {}
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._closed = False
        self._all_lost: asyncio.Future[None] | None = None
        self.max_connection_age = max_connection_age
        self.buffer = buffer
        """Into which every connection reads: what has been read is taken out before anything else happens."""
        self.buffer_size = len(buffer)
        self.connections: set[Connection] = set()
        """Those that are open."""
        self._options: dict[str, Any] = {}
        if self._tls is not None:
            self._options = {"ssl": self._tls, "server_hostname": self._host, "ssl_shutdown_timeout": TLS_SHUTDOWN}

    def take_idle(self) -> Connection | None:
        """Return the connection that was used last, with its slot, if one is idle."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if not connection.expired:
                return connection
            connection.abort()
            self.free_slot()
        return None

    async def acquire(self, timeouts: TimeoutExtension) -> Connection:
        """
        Return a connection, with its slot, where none is idle.

        Args:
            timeouts: seconds, `pool` and `connect`.

        Raises:
            httpx.PoolTimeout: all slots stayed taken.
            httpx.ConnectTimeout: the upstream did not accept a connection in time.
            httpx.ConnectError: it cannot be reached, TLS failed, or the transport is closed.
        """
        if self._closed:
            raise _closed_error()
        if self._slots < self._max_connections:
            self._slots += 1
        else:
            handed_over = await self._wait(timeouts.get("pool"))
            if handed_over is not None:
                return handed_over
        return await self.connect(timeouts)

    async def connect(self, timeouts: TimeoutExtension) -> Connection:
        """
        Open a connection in a slot that the caller has acquired; it is freed where this fails.

        Args:
            timeouts: seconds, `connect`.

        Raises:
            httpx.ConnectTimeout: the upstream did not accept a connection in time.
            httpx.ConnectError: it cannot be reached, or TLS failed.
        """
        connection = Connection(self, self._loop)
        try:
            try:
                async with asyncio.timeout(timeouts.get("connect")):
                    opened = await open_socket(self._host, self._port)
                    try:
                        await self._loop.create_connection(lambda: connection, sock=opened, **self._options)
                    except BaseException:
                        if isinstance(self._loop, asyncio.BaseEventLoop):
                            opened.close()
                        else:
                            opened.detach()  # uvloop has closed it already, and before 0.23 without telling the socket
                        raise
            except TimeoutError as error:
                raise httpx.ConnectTimeout("the upstream did not accept a connection in time") from error
            except ssl.SSLError as error:
                raise httpx.ConnectError("TLS with the upstream failed") from error
            except (OSError, ValueError) as error:  # ValueError: a host name that is none
                raise httpx.ConnectError("the upstream cannot be reached") from error
            if self._closed:  # meanwhile
                raise _closed_error()
        except BaseException:
            connection.abort()
            self.lost(connection)  # uvloop does not say so of a connection that was cancelled
            self.free_slot()
            raise
        return connection

    async def _wait(self, seconds: float | None) -> Connection | None:
        """Wait for a slot, which may have a connection."""
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiters.append(waiter)
        timer = None if seconds is None else self._loop.call_later(seconds, _expire, waiter)
        try:
            return await waiter
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif not waiter.cancelled() and waiter.exception() is None:
                # It was handed over, but its new owner is cancelled.
                connection = waiter.result()
                if connection is None or connection.closed:
                    self.free_slot()
                else:
                    self.release(connection)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def release(self, connection: Connection) -> None:
        """Take back a connection that can be used again, with its slot."""
        now = self._loop.time()
        if now >= connection.expires_at or self._closed:
            connection.abort()
            self.free_slot()
            return
        if self._tls is not None and not connection.used:
            self._tls.session = connection.tls_session
        connection.used = True
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._idle[connection] = None
        connection.set_deadline(min(now + self._keepalive_expiry, connection.expires_at))

    def forget(self, connection: Connection) -> bool:
        """Take an idle connection out, and say whether it was one."""
        if connection in self._idle:
            del self._idle[connection]
            self.free_slot()
            return True
        return False

    def free_slot(self) -> None:
        """Pass the slot of a connection that is gone to whoever waits first."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._slots -= 1

    def lost(self, connection: Connection) -> None:
        """Note that a connection is closed."""
        self.forget(connection)
        self.connections.discard(connection)
        if not self.connections and self._all_lost is not None and not self._all_lost.done():
            self._all_lost.set_result(None)

    def close(self) -> None:
        """Close every connection, whatever it is doing, and turn away who waits for one."""
        self._closed = True
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(_closed_error())
        for connection in tuple(self.connections):
            connection.abort()

    async def wait_closed(self) -> None:
        """Wait until no connection is open."""
        while self.connections:
            if self._all_lost is None or self._all_lost.done():
                self._all_lost = self._loop.create_future()
            await asyncio.shield(self._all_lost)


def _closed_error() -> httpx.ConnectError:
    return httpx.ConnectError("the transport is closed")


def _expire(waiter: "asyncio.Future[Connection | None]") -> None:
    if not waiter.done():
        waiter.set_exception(httpx.PoolTimeout("no connection to the upstream became free in time"))


def origin_of(url: httpx.URL) -> tuple[str, str, int]:
    """Return scheme, host (as DNS knows it) and port of a URL."""
    scheme = url.scheme
    return scheme, url.raw_host.decode("ascii"), url.port or (443 if scheme == "https" else 80)


class HTTPTransport(httpx.AsyncBaseTransport):
    """
    HTTP/1.1 on asyncio, or uvloop, for one event loop.

    It sends what it is given, byte for byte: `request.extensions["target"]` where there is one, else the URL's path and query;
    the headers in their order and case. It adds nothing. A body is sent where the headers frame one, by `Content-Length` or by
    `Transfer-Encoding: chunked`. It gives back what it receives: interim answers (1xx) are dropped, chunks are joined, the
    trailer section of a chunked answer is dropped, and content encodings are left alone.

    `request.extensions["timeout"]` has seconds, each of which may be missing or None for no limit: `pool`, to wait for a
    connection; `connect`, TLS included; `write`, in which the upstream takes nothing; `read`, from the end of the request to
    the head of the answer, and then between two pieces of its body. The dictionary is looked up anew for every wait.

    An answer that comes before the request's body has been sent ends the sending and is delivered; the connection is not used
    again. A connection that the upstream closes while it is idle is replaced, once, and the request sent again if no byte of
    its body has been sent.

    Args:
        max_connections: to one origin (scheme, host and port) at once.
        keepalive_expiry: seconds after which an idle connection is closed.
        max_connection_age: seconds after which a connection takes no further request.
        ssl_context: for `https`. By default the system's trust, see `tls.default_context`. Its ALPN protocols are set.
        buffer_size: bytes that are held of an answer that nobody takes, and of a request's body that the upstream does not
            read, before the other side is made to wait. Half of it is read at a time.

    Raises:
        httpx.TransportError: with a fixed text: `ConnectError`, `ConnectTimeout`, `PoolTimeout`, `ReadError`, `ReadTimeout`,
            `WriteTimeout`, `RemoteProtocolError`, `LocalProtocolError`, `UnsupportedProtocol`. What the request's body raises
            passes unchanged.
    """

    def __init__(
        self,
        *,
        max_connections: int = 1000,
        keepalive_expiry: float = 30.0,
        max_connection_age: float = 600.0,
        ssl_context: ssl.SSLContext | None = None,
        buffer_size: int = 65_536,
    ) -> None:
        self._max_connections = max_connections
        self._keepalive_expiry = keepalive_expiry
        self._max_connection_age = max_connection_age
        self._ssl_context = ssl_context
        self._buffer = memoryview(bytearray(max(1, buffer_size // 2)))
        self._pools: dict[tuple[str, str, int], Pool] = {}
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """
        Send a request and return its answer as soon as the head is there.

        Args:
            request: with a stream that is read once, if its headers frame a body.

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
        exchange = await self.send(
            request.method,
            origin_of(request.url),
            extensions.get("target") or request.url.raw_path,
            request.headers.raw,
            body,
            extensions.get("timeout") or {},
        )
        reader = exchange.reader
        return httpx.Response(
            reader.status,
            headers=reader.headers,
            stream=exchange,
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
    ) -> ResponseStream:
        """
        Do what `handle_async_request` does without making httpx's models of the request and its answer.

        Args:
            method: a token.
            origin: of `origin_of`.
            target: request target, written byte for byte.
            headers: written in order, case as given.
            body: whole or as it comes; read once, if the headers frame one.
            timeouts: seconds; looked up anew for every wait.

        Raises:
            httpx.TransportError: see above.
        """
        outgoing = OutgoingRequest(method, target, headers, body)
        try:
            pool = self._pools.get(origin) or self._open_pool(origin)
            connection = pool.take_idle() or await pool.acquire(timeouts)
            try:
                exchange = await connection.perform(outgoing, timeouts)
            except ConnectionStale:
                outgoing.rewind()
                connection = await pool.connect(timeouts)
                exchange = await connection.perform(outgoing, timeouts)
        except BaseException:
            await outgoing.aclose()
            raise
        if not exchange.request_sent:
            await self._stop(exchange)
        return exchange

    @staticmethod
    async def _stop(exchange: ResponseStream) -> None:
        """Let go of the rest of a body that is not wanted."""
        try:
            await exchange.request.aclose()
        except BaseException:
            await exchange.aclose()
            raise

    def _open_pool(self, origin: tuple[str, str, int]) -> Pool:
        if self._closed:
            raise _closed_error()
        scheme, host, _ = origin
        if scheme not in ("http", "https") or not host:
            raise httpx.UnsupportedProtocol("only http and https to a host are supported")
        if scheme == "https" and self._ssl_context is None:
            self._ssl_context = default_context()
        pool = self._pools[origin] = Pool(
            origin,
            max_connections=self._max_connections,
            keepalive_expiry=self._keepalive_expiry,
            max_connection_age=self._max_connection_age,
            ssl_context=self._ssl_context if scheme == "https" else None,
            buffer=self._buffer,
        )
        return pool

    async def aclose(self) -> None:
        """Close every connection. Exchanges under way end with an error, and so does every later request."""
        self._closed = True
        for pool in self._pools.values():
            pool.close()
        for pool in self._pools.values():
            await pool.wait_closed()
