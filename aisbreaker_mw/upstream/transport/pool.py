"""The connections to one origin."""

import asyncio
import ssl
from collections import deque
from typing import Any

import httpx

from .connection import Connection
from .dialing import open_socket
from .request import TimeoutExtension
from .tls import ResumingContext

TLS_SHUTDOWN = 1.0
"""Seconds that a closed connection waits for the other side's closing alert."""


class Pool:
    """
    The connections to one origin. The one used last is used next. A request that finds none waits in line.

    A slot stands for a connection that is open or being opened. It belongs to the task that has acquired it, to the response on
    its connection, or to the idle connection. Whoever gives up a connection frees its slot.

    Args:
        origin: scheme, host, port.
        max_connections: number of slots.
        keepalive_expiry: longest time, in seconds, that a connection stays idle.
        max_connection_age: seconds after which a connection is not used again.
        ssl_context: the context of an `https` origin, else None.
        buffer: memory that every connection reads into.
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
        """Memory that every connection reads into. The bytes are copied out before anything else happens."""
        self.buffer_size = len(buffer)
        self.connections: set[Connection] = set()
        """The open connections."""
        self._options: dict[str, Any] = {}
        if self._tls is not None:
            self._options = {"ssl": self._tls, "server_hostname": self._host, "ssl_shutdown_timeout": TLS_SHUTDOWN}

    def take_idle(self) -> Connection | None:
        """Return the idle connection that was used last, with its slot, or None."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if not connection.expired:
                return connection
            connection.abort()
            self.free_slot()
        return None

    async def acquire(self, timeouts: TimeoutExtension) -> Connection:
        """
        Open a connection, or wait for one. Return it with its slot.

        Args:
            timeouts: seconds, `pool` and `connect`.

        Raises:
            httpx.PoolTimeout: all slots stayed taken.
            httpx.ConnectTimeout: the upstream did not accept a connection in time.
            httpx.ConnectError: it cannot be reached, TLS failed, or the transport is closed.
        """
        if self._closed:
            raise closed_error()
        if self._slots < self._max_connections:
            self._slots += 1
        else:
            handed_over = await self._wait(timeouts.get("pool"))
            if handed_over is not None:
                return handed_over
        return await self.connect(timeouts)

    async def connect(self, timeouts: TimeoutExtension) -> Connection:
        """
        Open a connection in a slot that the caller has acquired. The slot is freed where this fails.

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
                            opened.detach()  # uvloop has closed it already; before 0.23 the socket does not know
                        raise
            except TimeoutError as error:
                raise httpx.ConnectTimeout("the upstream did not accept a connection in time") from error
            except ssl.SSLError as error:
                raise httpx.ConnectError("TLS with the upstream failed") from error
            except (OSError, ValueError) as error:  # ValueError: a malformed host name
                raise httpx.ConnectError("the upstream cannot be reached") from error
            if self._closed:  # while connecting
                raise closed_error()
        except BaseException:
            connection.abort()
            self.lost(connection)  # uvloop calls no connection_lost() after a cancelled connect
            self.free_slot()
            raise
        return connection

    async def _wait(self, seconds: float | None) -> Connection | None:
        """Wait for a slot. Return its connection, or None where it has none."""
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiters.append(waiter)
        timer = None if seconds is None else self._loop.call_later(seconds, _expire, waiter)
        try:
            return await waiter
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif not waiter.cancelled() and waiter.exception() is None:
                # The slot was handed over, but its new owner is cancelled.
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
        """Take an idle connection out, and return whether it was one."""
        if connection in self._idle:
            del self._idle[connection]
            self.free_slot()
            return True
        return False

    def free_slot(self) -> None:
        """Pass the slot of a closed connection to the first in line."""
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
        """Close every connection, whatever it is doing, and end the waits for one with an error."""
        self._closed = True
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(closed_error())
        for connection in tuple(self.connections):
            connection.abort()

    async def wait_closed(self) -> None:
        """Wait until no connection is open."""
        while self.connections:
            if self._all_lost is None or self._all_lost.done():
                self._all_lost = self._loop.create_future()
            await asyncio.shield(self._all_lost)


def closed_error() -> httpx.ConnectError:
    """Return the error of a request that comes after the transport was closed."""
    return httpx.ConnectError("the transport is closed")


def _expire(waiter: "asyncio.Future[Connection | None]") -> None:
    if not waiter.done():
        waiter.set_exception(httpx.PoolTimeout("no connection to the upstream became free in time"))
