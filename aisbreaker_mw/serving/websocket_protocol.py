"""
The server side of WebSockets, as a protocol class for uvicorn (`uvicorn.Config(ws=WebSocketProtocol)`).

It is uvicorn's own on the library `websockets`, and gets a connection from `HTTPProtocol` with a head that asks for one. A
refusal has the shape of OpenAI's API, and never quotes what was sent.
"""

import logging
from http import HTTPStatus
from secrets import token_hex

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from ..client.responses import error_response
from ..exceptions import HeadTooLarge, InvalidRequest, RequestError
from ..http1.fields import RawHeaders
from ..telemetry.logs import ACCESS_LOGGER, LogFields

__all__ = ["WebSocketProtocol"]

_logger = logging.getLogger(ACCESS_LOGGER)

_CUT_AFTER = 5.0
"""Seconds that a client has to take what is left for it, after the closing handshake's own time."""


class _UnsupportedVersion(InvalidRequest):
    message = "The Sec-WebSocket-Version must be 13."

    @property
    def headers(self) -> RawHeaders:
        # RFC 6455, 4.4: "The server MUST respond with [...] a |Sec-WebSocket-Version| header field".
        return [(b"sec-websocket-version", b"13")]


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, stricter before a conversation begins, and not for ever after it has ended."""

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated and not self.handshake_complete:
            # RFC 6455, 4.1: a client sends no frame before the handshake has been answered. What one that does would have to
            # wait for is unknown, so nothing is kept for it.
            self.transport.abort()
            return
        super().data_received(data)
        if not self.handshake_initiated:
            # The head has been read before, and was well-formed. The library's limit of a single line is lower.
            self._refuse(HeadTooLarge())

    def handle_connect(self, event: Request) -> None:
        self.handshake_initiated = True
        # The library's own refusals quote what they refuse.
        if event.headers.get_all("Sec-WebSocket-Version") != ["13"]:
            self._refuse(_UnsupportedVersion())
        elif self.conn.accept(event).status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            self._refuse(InvalidRequest("The WebSocket handshake is malformed."))
        else:
            super().handle_connect(event)

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True  # else uvicorn takes a handshake that was refused for one that was forgotten

    async def run_asgi(self) -> None:
        try:
            await super().run_asgi()
        finally:
            self._cut_later()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._cut_later()

    def _cut_later(self) -> None:
        # A client that reads nothing would keep a closed connection open, for what it has not taken yet.
        self.loop.call_later(self.close_timeout + _CUT_AFTER, self.transport.abort)

    def _refuse(self, error: RequestError) -> None:
        request_id = "req_" + token_hex(12)
        status, headers, body = error_response(error, "openai", request_id)
        lines = [STATUS_LINE[status]]
        lines += [b"%b: %b\r\n" % header for header in (*self.default_headers, *headers, (b"connection", b"close"))]
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        self.transport.write(b"".join((*lines, b"\r\n", body)))
        self.transport.close()
        client = self.client[0] if self.client else None
        _logger.info(LogFields({"request_id": request_id, "client": client, "status": status, "error": error.code}))
