"""
The server side of WebSockets, as a protocol class for uvicorn (`uvicorn.Config(ws=WebSocketProtocol)`).

It is uvicorn's own protocol on the library `websockets`. `HTTPProtocol` hands it a connection with the head that asks for one.
A refusal has the shape of OpenAI's API and never quotes what was sent.
"""

from http import HTTPStatus

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from ..exceptions import HeadTooLarge, InvalidRequest, RequestError
from ..http1.fields import RawHeaders
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


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, stricter before a conversation begins, and bounded in time after it has ended."""

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
