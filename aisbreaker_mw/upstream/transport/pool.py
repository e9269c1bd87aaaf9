"""The connections to one origin."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import httpx

from .connection import Connection
from .dialing import open_socket
from .request import TimeoutExtension
from .slots import Asker, Slots
from .tls import ResumingContext

TLS_SHUTDOWN = 1.0
"""Seconds that a closed connection waits for the other side's closing alert."""

EARLY_CLOSE = 0.1
"""Seconds after a response in which an upstream closes a connection early. A request could cross the end on its way."""
EARLY_CLOSES = 3
"""Connections that an upstream closes early, one after the other, before none is kept."""
NONE_KEPT = 10.0
"""Seconds for which none is kept then."""


class Pool:
    """
    The connections to one origin. The one used last is used next. A request that finds no slot waits for one.

    A slot belongs to the task that has acquired it, or to the response on its connection. An idle connection has none, and is
    closed where its place is needed. So there are never more connections than slots.

    Args:
        origin: scheme, host, port.
        slots: the slots.
        keepalive_expiry: longest time, in seconds, that a connection stays idle.
        max_connection_age: seconds after which a connection is not used again.
        ssl_context: the context of an `https` origin, else None.
        buffer: memory that every connection reads into.
    """

    def __init__(
        self,
        origin: tuple[str, str, int],
        *,
        slots: Slots,
        keepalive_expiry: float,
        max_connection_age: float,
        ssl_context: ssl.SSLContext | None,
        buffer: memoryview,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        _, self._host, self._port = origin
        self.slots = slots
        self._taken = slots.taken
        self._keepalive_expiry = keepalive_expiry
        self._tls = None if ssl_context is None else ResumingContext(ssl_context)
        self._idle: dict[Connection, None] = {}
        self._closed = False
        self._all_lost: asyncio.Future[None] | None = None
        self._early_closes = 0
        self._usual_age = max_connection_age
        self._none_kept: asyncio.TimerHandle | None = None
        self.max_connection_age = max_connection_age
        """Seconds after which a connection takes no further request; 0 while none is kept."""
        self.buffer = buffer
        """Memory that every connection reads into. The bytes are copied out before anything else happens."""
        self.buffer_size = len(buffer)
        self.connections: set[Connection] = set()
        """The open connections."""
        self._options: dict[str, Any] = {}
        if self._tls is not None:
            self._options = {"ssl": self._tls, "server_hostname": self._host, "ssl_shutdown_timeout": TLS_SHUTDOWN}

    def take_idle(self, asker: Asker) -> Connection | None:
        """Return the idle connection that was used last, with a slot, or None where there is none, or the asker has to wait."""
        if self._idle and len(self._taken) < self.slots.relaxed:
            connection, _ = self._idle.popitem()
            if not connection.expired:
                self._taken[connection] = asker  # as Slots.take does it
                return connection
            self._give_up(connection)
        return self._take_any(asker)

    def _take_any(self, asker: Asker) -> Connection | None:
        while self._idle:
            connection = next(reversed(self._idle))
            if not connection.expired:
                if not self.slots.take(connection, asker):
                    return None
                del self._idle[connection]
                return connection
            del self._idle[connection]
            self._give_up(connection)
        return None

    async def acquire(self, asker: Asker, timeouts: TimeoutExtension) -> Connection:
        """
        Open a connection, or wait for one. Return it with its slot.

        Args:
            asker: who asks.
            timeouts: seconds, `pool` and `connect`.

        Raises:
            httpx.PoolTimeout: there was no slot in time.
            httpx.ConnectTimeout: the upstream did not accept a connection in time.
            httpx.ConnectError: it cannot be reached, TLS failed, or the transport is closed.
        """
        use = object()
        await self._acquire_slot(use, asker, timeouts)
        while self._idle:  # where it had to wait
            connection, _ = self._idle.popitem()
            if not connection.expired:
                self.slots.pass_on(use, connection)
                return connection
            self._give_up(connection)
        return await self.connect(use, timeouts)

    @contextlib.asynccontextmanager
    async def slot(self, asker: Asker, timeouts: TimeoutExtension) -> AsyncIterator[None]:
        """
        Hold a slot for a connection that is not this pool's.

        Args:
            asker: who holds it.
            timeouts: seconds, `pool`.

        Raises:
            httpx.PoolTimeout: there was no slot in time.
            httpx.ConnectError: the transport is closed.
        """
        use = object()
        await self._acquire_slot(use, asker, timeouts)
        try:
            self._make_place()
            yield
        finally:
            self.slots.free(use)

    async def _acquire_slot(self, use: object, asker: Asker, timeouts: TimeoutExtension) -> None:
        if self._closed:
            raise closed_error()
        if not self.slots.take(use, asker):
            await self.slots.wait(use, asker, timeouts.get("pool"))

    def _make_place(self) -> None:
        """Close the connection that has been idle longest, where there are as many as slots."""
        if self._idle and len(self._taken) + len(self._idle) > self.slots.limit:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            oldest.abort()

    async def connect(self, use: object, timeouts: TimeoutExtension) -> Connection:
        """
        Open a connection in a slot that the caller has acquired. The slot is freed where this fails.

        Args:
            use: the slot's use until now.
            timeouts: seconds, `connect`.

        Raises:
            httpx.ConnectTimeout: the upstream did not accept a connection in time.
            httpx.ConnectError: it cannot be reached, or TLS failed.
        """
        connection = Connection(self, self._loop)
        self.slots.pass_on(use, connection)
        try:
            self._make_place()
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
            self.slots.free(connection)
            raise
        return connection

    def release(self, connection: Connection) -> None:
        """Take back a connection that can be used again, with its slot."""
        now = self._loop.time()
        if self._tls is not None and not connection.used:
            self._tls.session = connection.tls_session
        if now >= connection.expires_at or self._closed:
            connection.abort()
            self.slots.free(connection)
            return
        if connection.used:
            self._early_closes = 0
        else:
            connection.used = True
        self._idle[connection] = None
        connection.set_deadline(min(now + self._keepalive_expiry, connection.expires_at))
        if self.slots.counted:
            self.slots.free(connection)
        else:
            del self._taken[connection]  # as Slots.free does it

    def forget(self, connection: Connection) -> bool:
        """Take an idle connection out, and return whether it was one."""
        if connection in self._idle:
            del self._idle[connection]
            return True
        return False

    def free_slot(self, connection: Connection) -> None:
        """Take back the slot of a connection that is gone."""
        self.slots.free(connection)

    def lost(self, connection: Connection) -> None:
        """Note that a connection is closed."""
        if self.forget(connection):
            self._note_close(connection)
        self.connections.discard(connection)
        if not self.connections and self._all_lost is not None and not self._all_lost.done():
            self._all_lost.set_result(None)

    def _give_up(self, connection: Connection) -> None:
        """Close a connection that was idle and can't be used."""
        connection.abort()
        self._note_close(connection)

    def _note_close(self, connection: Connection) -> None:
        """
        Note that an idle connection is closed. Where the upstream closes each after its response, none is kept for a while.

        No look at the socket helps against an upstream that closes while the next request is on its way.
        """
        released = connection.deadline - self._keepalive_expiry
        if self._loop.time() > released + EARLY_CLOSE or self._closed:
            return
        self._early_closes += 1
        if self._early_closes >= EARLY_CLOSES and self._none_kept is None:
            self.max_connection_age = 0.0
            self._none_kept = self._loop.call_later(NONE_KEPT, self._keep_again)

    def _keep_again(self) -> None:
        self._none_kept = None
        self._early_closes = 0
        self.max_connection_age = self._usual_age

    def close(self) -> None:
        """Close every connection, whatever it is doing, and end the waits for one with an error."""
        self._closed = True
        if self._none_kept is not None:
            self._none_kept.cancel()
        self.slots.end_waits(closed_error)
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
