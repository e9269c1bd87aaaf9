"""One request and what became of it: sends its answer, counts it, and tells it to the log."""

import logging
from secrets import token_hex
from time import perf_counter
from typing import Any

from starlette.types import Message, Scope, Send

from .claims import TokenClaims
from .exceptions import RawHeaders, RequestError
from .logs import ACCESS_LOGGER, LogFields
from .responses import Answer, Dialect, error_answer

_logger = logging.getLogger(ACCESS_LOGGER)

SWITCHING_PROTOCOLS = 101
"""What accepting a WebSocket answers (RFC 6455, 4.2.2)."""
CLIENT_CLOSED_REQUEST = 499
"""Logged, never sent: the client went away before its answer was whole (nginx's number for it)."""


class Exchange:
    """
    One request and its answer. What is known of it is set from outside, as it becomes known.

    Args:
        scope: the request's.
        send: takes the answer's ASGI messages. Where a WebSocket is asked for, an answer refuses its handshake.
        dialect: how errors are told.
    """

    __slots__ = (
        "_first_byte",
        "_method",
        "_send",
        "_started",
        "cause",
        "claims",
        "client",
        "complete",
        "dialect",
        "error",
        "headers",
        "request_id",
        "sent_bytes",
        "service_id",
        "status",
    )

    def __init__(self, scope: Scope, send: Send, dialect: Dialect = "openai") -> None:
        self._method = scope.get("method", "GET")
        self._send = send if scope["type"] == "http" else _answering(scope, send)
        self._started = perf_counter()
        self._first_byte: float | None = None
        self.request_id = "req_" + token_hex(12)
        self.dialect = dialect
        self.status: int | None = None
        self.sent_bytes = 0
        self.complete = False
        self.headers: RawHeaders = []
        """Headers to add to the answer."""
        self.client: str | None = None
        self.claims: TokenClaims | None = None
        self.service_id: str | None = None
        self.error: str | None = None
        """Code of the error that was answered."""
        self.cause: str | None = None
        """What the error came from; a class name, never a text."""

    async def send(self, message: Message) -> None:
        """Send one ASGI message of the answer, or of a WebSocket."""
        kind = message["type"]
        if kind == "http.response.start" or kind == "websocket.accept":
            self._first_byte = perf_counter()
            self.status = message.get("status", SWITCHING_PROTOCOLS)
            if self.headers:
                message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
        elif kind == "http.response.body":
            self.sent_bytes += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        elif kind == "websocket.send":
            text = message.get("text")
            self.sent_bytes += len(message.get("bytes") or b"") if text is None else len(text.encode())
        await self._send(message)

    async def answer(self, answer: Answer) -> None:
        """Send a whole answer."""
        status, headers, body = answer
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        if self._method == "HEAD":
            body = b""
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def refuse(self, error: RequestError) -> None:
        """Answer with an error."""
        self.error = error.code
        await self.answer(error_answer(error, self.dialect, self.request_id))

    def log(self) -> None:
        """Write the request's line."""
        if not _logger.isEnabledFor(logging.INFO):
            return
        now = perf_counter()
        claims = self.claims
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "method": self._method,
            "client": self.client,
            "kid": claims.kid if claims else None,
            "jti": claims.jti[:8] if claims else None,
            "service_id": self.service_id,
            "status": self.status or CLIENT_CLOSED_REQUEST,
            "bytes": self.sent_bytes,
            "first_byte_ms": _milliseconds(self._started, self._first_byte),
            "total_ms": _milliseconds(self._started, now),
            "complete": self.complete,
            "error": self.error,
            "cause": self.cause,
        }
        _logger.info(LogFields(fields))


def _answering(scope: Scope, send: Send) -> Send:
    """
    Return a WebSocket's `send` that takes the messages of an HTTP answer as well, before the socket is accepted.

    Where the server has no such answers (the ASGI extension `websocket.http.response`), the socket is closed instead: with
    1008, which most servers tell as 403.
    """
    can_answer = "websocket.http.response" in (scope.get("extensions") or {})

    async def send_answer(message: Message) -> None:
        kind = message["type"]
        if not kind.startswith("http."):
            await send(message)
        elif can_answer:
            await send({**message, "type": f"websocket.{kind}"})
        elif kind == "http.response.start":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})

    return send_answer


def _milliseconds(start: float, end: float | None) -> float | None:
    return None if end is None else round((end - start) * 1000, 3)
