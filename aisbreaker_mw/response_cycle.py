"""One request on the server's side of a connection: what its app receives, and how its answer is framed."""

import asyncio
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

from uvicorn._types import ASGI3Application, ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string

from .exceptions import RequestError, ResponseInterrupted, ShuttingDown
from .request_reader import TOKEN

__all__ = ["ResponseCycle"]

_FIELD_NAME = re.compile(TOKEN)


@lru_cache(maxsize=1024)
def _prefix(name: bytes) -> bytes:
    """Return a field's line up to its value, the name in lower case as uvicorn sends it."""
    if not _FIELD_NAME.fullmatch(name):
        raise RuntimeError("Invalid HTTP header name.")
    return name.lower() + b": "


_CONNECTION = _prefix(b"connection")
_CONTENT_LENGTH = _prefix(b"content-length")
_TRANSFER_ENCODING = _prefix(b"transfer-encoding")
_SPECIAL = frozenset({_CONNECTION, _CONTENT_LENGTH, _TRANSFER_ENCODING, _prefix(b"date"), _prefix(b"server")})


class Connection(Protocol):
    """What a cycle asks of the connection that it belongs to."""

    loop: asyncio.AbstractEventLoop

    def resume_body(self) -> None:
        """Read on: the app asks for more of the request's body."""

    def give_up(self, cycle: "ResponseCycle", error: RequestError) -> None:
        """End a cycle whose app did not: with an error where no answer has begun, by cutting the connection where one has."""


class ResponseCycle(RequestResponseCycle):
    """One request's `receive` and `send`, and the framing of its answer."""

    protocol: Connection
    bodyless = False
    close_delimited = False
    """RFC 9112, 6.3: an answer to HTTP/1.0 without a Content-Length ends where the connection does."""
    _head = b""
    _head_flush: asyncio.Handle | None = None

    async def run_asgi(self, app: ASGI3Application) -> None:
        """Run the app, and see to it that an answer which it leaves unfinished looks unfinished."""
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            self.protocol.give_up(self, ShuttingDown())
            raise
        except BaseException as error:
            # An app that interrupts its answer has said why; of anything else nobody knows yet.
            if not (self.response_started and _is_interruption(error)):
                self.logger.error("Exception in ASGI application\n", exc_info=error)
            self.protocol.give_up(self, RequestError())
        else:
            if not self.response_complete and not self.disconnected:
                self.logger.error("ASGI callable returned without completing its response.")
                self.protocol.give_up(self, RequestError())

    async def receive(self) -> ASGIReceiveEvent:
        if not self.disconnected and not self.response_complete:
            if self.waiting_for_100_continue:
                self.waiting_for_100_continue = False
                if self.more_body and not self.body and not self.transport.is_closing():
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if self.more_body:
                self.protocol.resume_body()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: ASGISendEvent) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            if message["type"] != "http.response.start":
                raise RuntimeError(f"Expected ASGI message 'http.response.start', but got '{message['type']}'.")
            self._send_head(message["status"], message.get("headers", ()))
        elif self.response_complete:
            raise RuntimeError(f"Unexpected ASGI message '{message['type']}' sent, after response already completed.")
        elif message["type"] != "http.response.body":
            raise RuntimeError(f"Expected ASGI message 'http.response.body', but got '{message['type']}'.")
        else:
            self._send_body(message.get("body", b""), message.get("more_body", False))

    def _send_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """
        Write the answer's head.

        `date` and `server` are the app's, each once, or else uvicorn's. Content-Length is the app's; without it the body
        is chunked, or ends with the connection. `connection` and `transfer-encoding` speak of this connection only: of
        the app's, nothing but `close` counts.
        """
        lines: list[bytes] = []
        given: set[bytes] = set()
        length: int | None = None
        for name, value in headers:
            prefix = _prefix(name)
            if prefix in _SPECIAL:
                if prefix == _CONNECTION:
                    if b"close" in [option.strip() for option in value.lower().split(b",")]:
                        self.keep_alive = False
                    continue
                if prefix == _CONTENT_LENGTH:
                    if length is not None or not value.isdigit():
                        raise RuntimeError("Invalid Content-Length.")
                    length = int(value)
                    if status == 204:
                        continue  # RFC 9110, 8.6: a server "MUST NOT send a Content-Length header field" in a 204
                elif prefix == _TRANSFER_ENCODING or prefix in given:
                    continue
                else:
                    given.add(prefix)
            lines.append(prefix + value)
        for name, value in self.default_headers:
            if (prefix := _prefix(name)) not in given:
                lines.append(prefix + value)

        if self.waiting_for_100_continue and self.more_body:
            # RFC 9110, 10.1.1: the client may now send its body or not, so what comes next on this connection is unknown.
            self.keep_alive = False
        self.waiting_for_100_continue = False
        self.bodyless = self.scope["method"] == "HEAD" or status in (204, 304)
        if not self.bodyless:
            if length is not None:
                self.expected_content_length = length
            elif self.scope["http_version"] == "1.0":
                self.close_delimited = True
            else:
                self.chunked_encoding = True
                lines.append(_TRANSFER_ENCODING + b"chunked")
        if not self.keep_alive:
            lines.append(_CONNECTION + b"close")
        lines.append(b"\r\n")

        head = b"\r\n".join(lines)
        if not head.count(b"\n") == head.count(b"\r") == len(lines) or b"\0" in head:
            raise RuntimeError("Invalid HTTP header value.")
        head = STATUS_LINE[status] + head
        self.response_started = True
        # Head and first piece of the body leave in one write where the piece is at hand; the head waits for nothing longer.
        self._head = head
        self._head_flush = self.protocol.loop.call_soon(self.flush_head)
        if self.access_log:
            self.access_logger.info(
                '%s - "%s %s HTTP/%s" %d',
                get_client_addr(self.scope),
                self.scope["method"],
                get_path_with_query_string(self.scope),
                self.scope["http_version"],
                status,
            )

    def flush_head(self) -> None:
        """Write the answer's head, where it has not been written yet."""
        if self._head:
            self._write(b"")

    def _write(self, data: bytes) -> None:
        head = self._head
        if self._head_flush is not None:
            self._head_flush.cancel()
            self._head_flush = None
            self._head = b""
        if self.transport.is_closing():
            return
        if head and data:
            self.transport.writelines((head, data))
        else:
            self.transport.write(head or data)

    def _send_body(self, body: bytes, more_body: bool) -> None:
        if self.bodyless:
            pass
        elif self.chunked_encoding:
            if body:
                end = b"\r\n" if more_body else b"\r\n0\r\n\r\n"
                self._write(b"".join((b"%x\r\n" % len(body), body, end)))
            elif not more_body:
                self._write(b"0\r\n\r\n")
        else:
            if not self.close_delimited:
                self.expected_content_length -= len(body)
                if self.expected_content_length < 0:
                    raise RuntimeError("Response content longer than Content-Length")
                if self.expected_content_length > 0 and not more_body:
                    raise RuntimeError("Response content shorter than Content-Length")
            if body:
                self._write(body)
        if not more_body:
            self.flush_head()
            self.response_complete = True
            self.message_event.set()
            self.on_response()


def _is_interruption(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):  # what a task group makes of it
        return error.split(ResponseInterrupted)[1] is None
    return isinstance(error, ResponseInterrupted)
