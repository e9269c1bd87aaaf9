"""One request in the server: its app's `receive` and `send`, and the framing of its response."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol, cast

from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string
from uvicorn.server import ServerState

from ..asgi import SynchronousSender
from ..exceptions import RequestError, ResponseInterrupted, ShuttingDown
from ..http1.fields import RawHeaders
from ..http1.heads import MalformedHead, by_name, lower_names, read_length, read_options, write_head

__all__ = ["ResponseCycle"]


# Headers that only the server writes, whatever the app gives.
_OWN = frozenset({b"connection", b"transfer-encoding"})
_ONCE = (b"content-length",)


class ServerConnection(Protocol):
    """What a cycle needs of its connection."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    logger: logging.Logger
    access_logger: logging.Logger
    access_log: bool
    server_state: ServerState

    def resume_body(self) -> None:
        """Read on in the request's body, as the app asks for more."""

    def give_up(self, cycle: "ResponseCycle", error: RequestError) -> None:
        """End a cycle whose app did not: with the error if no response has begun, else by cutting the connection."""

    def on_response_complete(self) -> None:
        """Go on to the next request."""


class ResponseCycle(SynchronousSender):
    """
    One request's `receive` and `send`, and the framing of its response.

    Args:
        protocol: the connection.
        scope: the request's ASGI scope.
        keep_alive: whether the connection stays open after the response.
        expects_continue: whether the client waits for `100 Continue` before it sends its body.
    """

    __slots__ = (
        "_arrival",
        "_expected_length",
        "_head",
        "_head_flush",
        "_last_told",
        "_pieces",
        "_protocol",
        "_transport",
        "_waiting_for_continue",
        "bodyless",
        "buffered",
        "chunked_encoding",
        "close_delimited",
        "disconnected",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
        "scope",
    )

    def __init__(self, protocol: ServerConnection, scope: Scope, *, keep_alive: bool, expects_continue: bool) -> None:
        self._protocol = protocol
        self._transport = protocol.transport
        self.scope = scope
        self.keep_alive = keep_alive
        self.disconnected = False
        # The request's body.
        self.more_body = True
        """Whether more of it is to arrive."""
        self.buffered = 0
        """Bytes that have arrived and that the app has not taken yet."""
        self._pieces: list[bytes] = []
        self._last_told = False
        self._arrival: asyncio.Event | None = None  # made when the app has to wait, which is rare
        self._waiting_for_continue = expects_continue
        # The response.
        self.response_started = False
        self.response_complete = False
        self.bodyless = False
        self.chunked_encoding = False
        self.close_delimited = False
        """Whether the response ends with the connection, as one to HTTP/1.0 without Content-Length does (RFC 9112, 6.3)."""
        self._expected_length = 0
        self._head = b""
        self._head_flush: asyncio.Handle | None = None

    def take_body(self, piece: bytes, more_body: bool) -> None:
        """Take a part of the request's body that arrived."""
        if piece:
            self._pieces.append(piece)
            self.buffered += len(piece)
        self.more_body = more_body
        self.wake()

    def disconnect(self) -> None:
        """Note that the client is gone."""
        self.disconnected = self.disconnected or not self.response_complete
        self.wake()

    def wake(self) -> None:
        """End the wait in `receive`, if there is one."""
        if self._arrival is not None:
            self._arrival.set()

    async def run_asgi(self, app: ASGIApp) -> None:
        """Run the app. A response that it leaves unfinished looks unfinished to the client."""
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._protocol.give_up(self, ShuttingDown())
            raise
        except BaseException as error:
            # An app that interrupts its response has logged why. So has one whose client left before the response began. Every
            # other error is logged here.
            if not ((self.response_started or self.disconnected) and _is_interruption(error)):
                self._protocol.logger.error("Exception in ASGI application\n", exc_info=error)
            self._protocol.give_up(self, RequestError())
        else:
            if not self.response_complete and not self.disconnected:
                self._protocol.logger.error("ASGI callable returned without completing its response.")
                self._protocol.give_up(self, RequestError())

    async def receive(self) -> Message:
        if self._waiting_for_continue:
            self._waiting_for_continue = False
            if self.more_body and not self._pieces and not self.disconnected and not self._transport.is_closing():
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self.disconnected and not self.response_complete:
            pieces = self._pieces
            if pieces or not (self.more_body or self._last_told):
                body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                pieces.clear()
                self.buffered = 0
                self._last_told = not self.more_body
                if self.more_body:
                    self._protocol.resume_body()
                return {"type": "http.request", "body": body, "more_body": self.more_body}
            if self.more_body:
                self._protocol.resume_body()
            if self._arrival is None:
                self._arrival = asyncio.Event()
            self._arrival.clear()
            await self._arrival.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        flow = self._protocol.flow
        if flow.write_paused and not self.disconnected:
            await flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"Expected ASGI message 'http.response.start', but got '{kind}'.")
            self._send_head(message["status"], message.get("headers", ()))
        elif self.response_complete:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' sent, after response already completed.")
        elif kind != "http.response.body":
            raise RuntimeError(f"Expected ASGI message 'http.response.body', but got '{kind}'.")
        else:
            self._send_body(message.get("body", b""), message.get("more_body", False))

    def send_now(self, piece: bytes) -> bool:
        """
        Send a piece of the body, not the last, without a task. Return whether it was sent.

        Plainly, the app would await `send({"type": "http.response.body", "body": piece, "more_body": True})`, and its task be
        woken for it. A streamed piece would cost 452 interpreted instructions instead of 347. It returns False where `send`
        would wait, drop the piece or raise an error.
        """
        if self._protocol.flow.write_paused or self.disconnected or self.response_complete or not self.response_started:
            return False
        self._send_body(piece, True)
        return True

    def _send_head(self, status: int, given: Iterable[Iterable[bytes]]) -> None:
        """
        Write the response's head.

        `date` and `server` are the app's, each once, or else uvicorn's. Content-Length is the app's. Without it the body is
        chunked, or ends with the connection. `connection` and `transfer-encoding` concern this connection only, so the app's
        are dropped; only its `close` is obeyed.
        """
        try:
            # ASGI asks for pairs, not for tuples.
            headers = lower_names(cast(RawHeaders, list(map(tuple, given))))
            fields = by_name(headers, _ONCE)
            length = None if (text := fields.get(b"content-length")) is None else read_length(text)
        except MalformedHead:
            raise RuntimeError("Invalid HTTP header.") from None
        if len(fields) != len(headers) or not _OWN.isdisjoint(fields):
            headers = _without_own(headers)
            if b"close" in read_options(fields.get(b"connection", b"")):
                self.keep_alive = False
        if status == 204 and length is not None:
            # RFC 9110, 8.6: a server "MUST NOT send a Content-Length header field" in a 204
            headers = [header for header in headers if header[0] != b"content-length"]
        own = [header for header in self._protocol.server_state.default_headers if header[0] not in fields]

        if self._waiting_for_continue and self.more_body:
            # RFC 9110, 10.1.1: the client may now send its body or not. The next bytes could be a body or a request.
            self.keep_alive = False
        self._waiting_for_continue = False
        self.bodyless = status in (204, 304) or self.scope["method"] == "HEAD"
        if not self.bodyless:
            if length is not None:
                self._expected_length = length
            elif self.scope["http_version"] == "1.0":
                self.close_delimited = True
            else:
                self.chunked_encoding = True
                own.append((b"transfer-encoding", b"chunked"))
        if not self.keep_alive:
            own.append((b"connection", b"close"))
        try:
            head = write_head(STATUS_LINE[status][:-2], headers + own)
        except MalformedHead:
            raise RuntimeError("Invalid HTTP header value.") from None
        self.response_started = True
        self._head = head  # see _write
        self._head_flush = self._protocol.loop.call_soon(self.flush_head)
        if self._protocol.access_log:
            self._protocol.access_logger.info(
                '%s - "%s %s HTTP/%s" %d',
                get_client_addr(self.scope),  # type: ignore[arg-type]
                self.scope["method"],
                get_path_with_query_string(self.scope),  # type: ignore[arg-type]
                self.scope["http_version"],
                status,
            )

    def flush_head(self) -> None:
        """Write the response's head, if it has not been written yet."""
        if self._head:
            self._write(b"")

    def _write(self, data: bytes) -> None:
        """
        Write bytes of the body, after the head where that has not been written yet.

        Plainly, the head would be written at once. It waits until the app gives up control, so that head and first piece of the
        body leave with one system call.
        """
        head = self._head
        if self._head_flush is not None:
            self._head_flush.cancel()
            self._head_flush = None
            self._head = b""
        transport = self._transport
        if transport.is_closing():
            return
        if head and data:
            transport.writelines((head, data))
        else:
            transport.write(head or data)

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
                self._expected_length -= len(body)
                if self._expected_length < 0:
                    raise RuntimeError("Response content longer than Content-Length")
                if self._expected_length > 0 and not more_body:
                    raise RuntimeError("Response content shorter than Content-Length")
            if body:
                self._write(body)
        if not more_body:
            self.flush_head()
            self.response_complete = True
            self.wake()
            self._protocol.on_response_complete()


def _without_own(headers: RawHeaders) -> RawHeaders:
    """Return an app's headers without those that the server writes itself. Of several `date` or `server` the first is kept."""
    kept: RawHeaders = []
    given: set[bytes] = set()
    for header in headers:
        name = header[0]
        if name in _OWN or (name in (b"date", b"server") and name in given):
            continue
        given.add(name)
        kept.append(header)
    return kept


def _is_interruption(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):  # from a task group
        return error.split(ResponseInterrupted)[1] is None
    return isinstance(error, ResponseInterrupted)
