"""
The server side of WebSockets, as a protocol class for uvicorn (`uvicorn.Config(ws=WebSocketProtocol)`).

It is uvicorn's own protocol on the library `websockets`. `HTTPProtocol` hands it a connection with the head that asks for one.
A refusal has the shape of OpenAI's API and never quotes what was sent.
"""

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import CloseCode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from ..exceptions import HeadTooLarge, InvalidRequest, RequestError
from ..http1.fields import RawHeaders
from ..http1.frames import BoundedFrames
from .refusal import write_refusal

__all__ = ["WebSocketProtocol"]

_CUT_AFTER = 5.0
"""Seconds that a client has to read what is left for it, beside the closing handshake's own time."""


class _UnsupportedVersion(InvalidRequest):
    message = "The Sec-WebSocket-Version must be 13."

    @property
    def headers(self) -> RawHeaders:
        # RFC 6455, 4.4: "The server MUST respond with [...] a |Sec-WebSocket-Version| header field".
        return [(b"sec-websocket-version", b"13")]


class _Frames(BoundedFrames, ServerProtocol):
    """The client's frames."""


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """
    uvicorn's WebSocket protocol, stricter before a conversation begins, and bounded in time after it has ended.

    Frames are handled a turn of the event loop at a time. Meanwhile, while messages wait for the app, and while pongs wait for
    the client, nothing is read.
    """

    conn: _Frames

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        made = self.conn
        self.conn = _Frames(extensions=made.available_extensions, max_size=config.ws_max_size, logger=self.logger)
        self._turn: asyncio.Handle | None = None
        self._pongs_wait = False

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated and not self.handshake_complete:
            # RFC 6455, 4.1: a client sends no frame before the response to its handshake. When that comes is up to the app, so
            # the frame is not kept.
            self.transport.abort()
            return
        super().data_received(data)
        if not self.handshake_initiated:
            # HTTPProtocol has read the head, and it was well-formed. So a line is longer than the library's lower limit.
            self._refuse(HeadTooLarge())
        self._read_on()

    def _read_on(self) -> None:
        """Handle the frames that wait in the next turn, or read, if nothing stands in the way."""
        if self.disconnected or self.transport.is_closing():
            return
        if self.read_paused or self._pongs_wait or self._turn is not None:
            self.transport.pause_reading()
        elif self.conn.more:
            self.transport.pause_reading()
            self._turn = self.loop.call_soon(self._take_turn)
        else:
            self.transport.resume_reading()

    def _take_turn(self) -> None:
        self._turn = None
        if not (self.disconnected or self.transport.is_closing() or self.read_paused or self._pongs_wait):
            self.data_received(b"")

    async def receive(self) -> ASGIReceiveEvent:
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._read_on()
        return message

    def handle_ping(self) -> None:
        super().handle_ping()
        # Else a client that reads nothing could make the server keep any number of pongs.
        self._pongs_wait = not self.writable.is_set()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._pongs_wait:
            self._pongs_wait = False
            self._read_on()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            # uvicorn logs bad text with a traceback, which quotes it.
            text = b"".join(self.frames)
            self.frames = []
            try:
                message: ASGIReceiveEvent = {"type": "websocket.receive", "text": text.decode()}
            except UnicodeDecodeError:
                self.conn.fail(CloseCode.INVALID_DATA)
                self.handle_parser_exception()
                return
            self.queue.put_nowait(message)
            self.read_paused = True
        else:
            super().send_receive_event_to_app()

    def handle_connect(self, event: Request) -> None:
        self.handshake_initiated = True
        # The library's own refusals quote what was sent.
        if event.headers.get_all("Sec-WebSocket-Version") != ["13"]:
            self._refuse(_UnsupportedVersion())
        elif self.conn.accept(event).status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            self._refuse(InvalidRequest("The WebSocket handshake is malformed."))
        else:
            super().handle_connect(event)

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True  # else uvicorn takes a refused handshake for a forgotten one
        if self.close_sent:
            self._read_on()  # the client's Close may be among the frames that wait

    async def run_asgi(self) -> None:
        try:
            await super().run_asgi()
        finally:
            self._cut_later()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._cut_later()

    def _cut_later(self) -> None:
        # Else a client that reads nothing would keep the connection open, for the bytes that it has not read yet.
        self.loop.call_later(self.close_timeout + _CUT_AFTER, self.transport.abort)

    def _refuse(self, error: RequestError) -> None:
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        self.transport.write(write_refusal(error, self.default_headers, self.client))
        self.transport.close()
