"""The connection of a WebSocket to an AI service."""

import asyncio

from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.protocol import State

from ..http1.frames import BoundedFrames

CLOSE_TIMEOUT = 1.0
"""Seconds for the other side's part of the closing handshake. Then the connection is cut."""


class ServiceFrames(BoundedFrames, ClientProtocol):
    """The service's frames."""


class ServiceConnection(ClientConnection):
    """
    A connection to a service, which handles its frames a turn of the event loop at a time.

    Meanwhile, while messages wait for the client, and while pongs wait for the service, nothing is read. It aborts the
    connection soon after closing begins. The library would leave it to the service to close it.

    It also aborts a connection whose service takes nothing for `ping_timeout`. The library's ping would wait for room first,
    without a limit.
    """

    protocol: ServiceFrames
    _cut: asyncio.TimerHandle | None = None
    _turn: asyncio.Handle | None = None
    _pongs_wait = False
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.recv_messages.resume = self._read_on

    def data_received(self, data: bytes) -> None:
        pings = self.protocol.pings
        super().data_received(data)
        self._pongs_wait = self._pongs_wait or (self.paused and self.protocol.pings != pings)
        if self.protocol.more or self._pongs_wait:
            self._read_on()
        if self._cut is None and self.protocol.state is State.CLOSING:
            self._cut = self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def _read_on(self) -> None:
        """Handle the frames that wait in the next turn, or read, if nothing stands in the way."""
        if self.transport.is_closing():
            return
        if self.recv_messages.paused or self._pongs_wait or self._turn is not None:
            self.transport.pause_reading()
        elif self.protocol.more:
            self.transport.pause_reading()
            self._turn = self.loop.call_soon(self._take_turn)
        else:
            self.transport.resume_reading()

    def _take_turn(self) -> None:
        self._turn = None
        if not (self.transport.is_closing() or self.recv_messages.paused or self._pongs_wait):
            self.data_received(b"")
            self._read_on()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.ping_timeout is not None:
            self._unread = self.loop.call_later(self.ping_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_unread()
        if self._pongs_wait:
            self._pongs_wait = False
            self._read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._cut is not None:
            self._cut.cancel()
        self._end_unread()
        super().connection_lost(exc)

    def _end_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
