"""One request on the server's side of a connection: what its app receives, and how its answer is framed."""

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


# What a server says of its own, whatever its app gives; and what it says where its app does not.
_OWN = frozenset({b"connection", b"transfer-encoding"})
_ONCE = (b"content-length",)


class ServerConnection(Protocol):
    """What a cycle asks of the connection that it belongs to."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    logger: logging.Logger
    access_logger: logging.Logger
    access_log: bool
    server_state: ServerState

    def resume_body(self) -> None:
        """Read on: the app asks for more of the request's body."""

    def give_up(self, cycle: "ResponseCycle", error: RequestError) -> None:
        """End a cycle whose app did not: with an error where no answer has begun, by cutting the connection where one has."""

    def on_response_complete(self) -> None:
        """Go on to the next request."""


class ResponseCycle(SynchronousSender):
    """
    One request's `receive` and `send`, and the framing of its answer.

    Args:
        protocol: the connection.
        scope: the request's.
        keep_alive: whether the connection stays open after the answer.
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
        """Whether there is more to come than has arrived."""
        self.buffered = 0
        """Bytes that have arrived and that the app has not taken."""
        self._pieces: list[bytes] = []
        self._last_told = False
        self._arrival: asyncio.Event | None = None  # made when the app has to wait, which it mostly has not
        self._waiting_for_continue = expects_continue
        # The answer.
        self.response_started = False
        self.response_complete = False
        self.bodyless = False
        self.chunked_encoding = False
        self.close_delimited = False
        """RFC 9112, 6.3: an answer to HTTP/1.0 without a Content-Length ends where the connection does."""
        self._expected_length = 0
        self._head = b""
        self._head_flush: asyncio.Handle | None = None

    def take_body(self, piece: bytes, more_body: bool) -> None:
        """Take what arrived of the request's body."""
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
        """Have whoever waits in `receive` look again."""
        if self._arrival is not None:
            self._arrival.set()

    async def run_asgi(self, app: ASGIApp) -> None:
        """Run the app, and see to it that an answer which it leaves unfinished looks unfinished."""
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._protocol.give_up(self, ShuttingDown())
            raise
        except BaseException as error:
            # An app that interrupts its answer has said why; of anything else nobody knows yet. It may be one that never began,
            # its client having left before.
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
        if self._protocol.flow.write_paused or self.disconnected or self.response_complete or not self.response_started:
            return False
        self._send_body(piece, True)
        return True

    def _send_head(self, status: int, given: Iterable[Iterable[bytes]]) -> None:
        """
        Write the answer's head.

        `date` and `server` are the app's, each once, or else uvicorn's. Content-Length is the app's; without it the body
        is chunked, or ends with the connection. `connection` and `transfer-encoding` speak of this connection only: of
        the app's, nothing but `close` counts.
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
            # RFC 9110, 10.1.1: the client may now send its body or not, so what comes next on this connection is unknown.
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
        # Head and first piece of the body leave in one write where the piece is at hand; the head waits for nothing longer.
        self._head = head
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
        """Write the answer's head, where it has not been written yet."""
        if self._head:
            self._write(b"")

    def _write(self, data: bytes) -> None:
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
    """Return an app's headers without those that the server writes itself; of `date` and `server` the first."""
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
    if isinstance(error, BaseExceptionGroup):  # what a task group makes of it
        return error.split(ResponseInterrupted)[1] is None
    return isinstance(error, ResponseInterrupted)
