"""The exchange: one request and its response. It sends the response, counts its bytes, and writes the log line."""

import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, TypeAlias

from starlette.types import Message, Receive, Scope, Send

from ..asgi import synchronous_send
from ..exceptions import ClientDisconnected, InvalidToken, RequestError, ResponseInterrupted
from ..http1.fields import RawHeaders
from ..telemetry.logs import ACCESS_LOGGER, LogFields, describe_crash, new_request_id
from ..tokens.claims import TokenClaims
from .responses import Dialect, Response, error_response

_logger = logging.getLogger(ACCESS_LOGGER)
_crashes = logging.getLogger("aisbreaker_mw")

SWITCHING_PROTOCOLS = 101
"""Status of the response that accepts a WebSocket (RFC 6455, 4.2.2)."""
CLIENT_CLOSED_REQUEST = 499
"""Status in the log for a client that disconnected before its response began (as in nginx). It is never sent."""


Asker: TypeAlias = tuple[str | None, str | None]
"""Who asks: the client, and the token's `jti`. None where there is none, or it is not known yet."""


class Exchange:
    """
    One request and its response. The pipeline sets the attributes as it learns them.

    Args:
        scope: ASGI scope of the request.
        send: takes the response's ASGI messages. A response to a WebSocket's handshake refuses it.
        dialect: dialect of error responses.
    """

    __slots__ = (
        "_first_byte",
        "_method",
        "_request_id",
        "_send",
        "_started",
        "cause",
        "claims",
        "client",
        "complete",
        "dialect",
        "error",
        "headers",
        "kid",
        "sent_bytes",
        "service_id",
        "status",
        "writing",
    )

    def __init__(self, scope: Scope, send: Send, dialect: Dialect = "openai") -> None:
        self._method = scope.get("method", "GET")
        self._send = send if scope["type"] == "http" else _refusing(scope, send)
        self._started = perf_counter()
        self._first_byte: float | None = None
        self._request_id: str | None = None
        self.dialect = dialect
        self.status: int | None = None
        self.sent_bytes = 0
        self.complete = False
        self.writing = False
        """Whether the response's sender waits for the client, in `begin` or `write`. The sender sets it."""
        self.headers: RawHeaders = []
        """Headers to add to the response."""
        self.client: str | None = None
        self.claims: TokenClaims | None = None
        self.kid: str | None = None
        """Master key that a token names which did not open."""
        self.service_id: str | None = None
        self.error: str | None = None
        """Code of the error, if the request failed."""
        self.cause: str | None = None
        """Class name of the error's cause. Its text is never logged."""

    @property
    def request_id(self) -> str:
        """Identifier of this request in its error response and its log line."""
        if self._request_id is None:
            self._request_id = new_request_id()
        return self._request_id

    @property
    def asker(self) -> Asker:
        """Who asks, as far as that is known."""
        claims = self.claims
        return self.client, None if claims is None else claims.jti

    async def send(self, message: Message) -> None:
        """Send one ASGI message of the response, or of a WebSocket."""
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

    def begin(self, status: int, headers: RawHeaders) -> Awaitable[None]:
        """Send the head of a response."""
        self._first_byte = perf_counter()
        self.status = status
        if self.headers:
            headers = [*headers, *self.headers]
        return self._send({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, piece: bytes, *, more_body: bool) -> Awaitable[None]:
        """Send a piece of the response's body."""
        self.sent_bytes += len(piece)
        self.complete = not more_body
        return self._send({"type": "http.response.body", "body": piece, "more_body": more_body})

    def synchronous_writer(self) -> Callable[[bytes], bool] | None:
        """
        Return a synchronous writer for non-final pieces, or None.

        The plain version is `await write(piece, more_body=True)`. That wakes the request's task for each piece: 452 interpreted
        instructions instead of 347 (`asgi.SynchronousSender`). The writer returns False, and has sent nothing, if the client's
        socket takes no more at the moment. There is none if the server can't send synchronously.
        """
        send_now = synchronous_send(self._send)
        if send_now is None:
            return None

        def write_now(piece: bytes) -> bool:
            if not send_now(piece):
                return False
            self.sent_bytes += len(piece)
            return True

        return write_now

    async def respond(self, response: Response) -> None:
        """Send a whole response."""
        status, headers, body = response
        await self.begin(status, headers)
        await self.write(b"" if self._method == "HEAD" else body, more_body=False)

    async def refuse(self, error: RequestError) -> None:
        """Send an error response."""
        self.error = error.code
        if isinstance(error, InvalidToken):
            self.cause, self.kid = error.reason, error.kid
        await self.respond(error_response(error, self.dialect, self.request_id))

    def log(self) -> None:
        """Write the request's log line."""
        if not _logger.isEnabledFor(logging.INFO):
            return
        now = perf_counter()
        claims = self.claims
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "method": self._method,
            "client": self.client,
            "kid": claims.kid if claims else self.kid,
            "key_id": claims.jti if claims else None,
            "label": (claims.label or None) if claims else None,
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


def _refusing(scope: Scope, send: Send) -> Send:
    """
    Return a WebSocket's `send` that also takes an HTTP response, which refuses the handshake.

    That needs the ASGI extension `websocket.http.response`. Without it the WebSocket is closed with 1008, for which most
    servers send 403.
    """
    can_respond = "websocket.http.response" in (scope.get("extensions") or {})

    async def send_or_refuse(message: Message) -> None:
        kind = message["type"]
        if not kind.startswith("http."):
            await send(message)
        elif can_respond:
            await send({**message, "type": f"websocket.{kind}"})
        elif kind == "http.response.start":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})

    return send_or_refuse


def _milliseconds(start: float, end: float | None) -> float | None:
    return None if end is None else round((end - start) * 1000, 3)


async def conclude(exchange: Exchange, work: Awaitable[None]) -> None:
    """Await the work on a request, send an error response if it fails, and log the exchange."""
    try:
        await work
    except RequestError as error:
        if exchange.status is not None:
            exchange.error = error.code
            raise ResponseInterrupted("the request failed after its response had begun") from None
        if exchange.cause is None and error.__cause__ is not None:
            exchange.cause = type(error.__cause__).__name__
        await exchange.refuse(error)
    except ClientDisconnected:
        pass
    except ResponseInterrupted:
        raise
    except Exception as crash:
        # A bug. Its text may quote anything, so only its class and place are logged.
        _crashes.error("crash in request %s: %s", exchange.request_id, describe_crash(crash))
        exchange.cause = type(crash).__name__
        if exchange.status is not None:
            raise ResponseInterrupted("the request failed after its response had begun") from None
        await exchange.refuse(RequestError())
    finally:
        exchange.log()


async def refuse(scope: Scope, receive: Receive, exchange: Exchange, error: RequestError) -> None:
    """Send an error response to a request or a WebSocket's handshake, and log the exchange."""
    try:
        if scope["type"] == "websocket":
            await receive()  # websocket.connect
        await exchange.refuse(error)
    finally:
        exchange.log()
