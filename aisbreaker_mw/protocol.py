"""
The server side of HTTP/1.1, as a protocol class for uvicorn (`uvicorn.Config(http=HTTPProtocol)`).

uvicorn feeds whatever arrives to one parser per connection. Here a request is cut out of the stream first, and only then read:

    bytes → a whole head → RequestHead → the app's task
                             ↘ its body, by Content-Length or ChunkedDecoder → the app's receive()
                                 ↘ what follows waits for the answer's end, and is the next head

So a request is the same in whatever segments it comes, one request is in flight at a time, and nothing after a head (body,
trailers, the next request) can become part of it. llhttp splits and judges the head; what it lets through is refused here.

A refusal is an error in the shape of OpenAI's API and closes the connection. It never quotes what was sent.
"""

import asyncio
import contextlib
import contextvars
import logging
import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from secrets import token_hex
from typing import Any, NoReturn
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveEvent, ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, service_unavailable
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string
from uvicorn.server import ServerState

from .exceptions import InvalidRequest, RawHeaders, RequestError, ResponseInterrupted
from .logs import ACCESS_LOGGER, LogFields
from .responses import error_answer

__all__ = ["ChunkedDecoder", "HTTPProtocol", "HeadTooLarge", "Limits", "RequestHead", "RequestTimeout", "ShuttingDown"]


_logger = logging.getLogger(ACCESS_LOGGER)


@dataclass(frozen=True, slots=True)
class Limits:
    """
    What one client may take of the server before the app is asked.

    Args:
        headers: fields in a request's head; as many in its trailer section.
        head_bytes: bytes of a request's head, request line and line ends included; as many in its trailer section.
        head_timeout: seconds from a head's first byte to its last; for a connection's first request, from its opening.
        body_rate: bytes per second of body that the client sends at least, on average over each `body_grace`.
        body_grace: seconds over which the rate is averaged, counting only time in which the server was reading.
        linger: seconds for which a refused client's bytes are still read (and dropped), so that the refusal reaches it.
    """

    headers: int = 100
    head_bytes: int = 65_536
    head_timeout: float = 10.0
    body_rate: float = 1024.0
    body_grace: float = 30.0
    linger: float = 2.0


class HeadTooLarge(RequestError):
    """RFC 6585, 5."""

    status = 431
    code = "request_header_fields_too_large"
    message = "The request's header fields are too many or too large."


class RequestTimeout(RequestError):
    """RFC 9110, 15.5.9."""

    status = 408
    code = "request_timeout"
    message = "The request was sent too slowly."


class ShuttingDown(RequestError):
    status = 503
    code = "server_shutting_down"
    message = "The server is shutting down. Retry."


_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"([A-Z][A-Z-]*) (/[!\"$-~]*) HTTP/1\.([01])\r\n")
_OTHER_TARGET = re.compile(rb"[A-Z][A-Z-]* [!-~]+ HTTP/1\.[01]\r\n")
# RFC 3986, 3.2.2, without the percent-encoding and sub-delims that no name in DNS has.
_HOST = re.compile(rb"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]*)|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
# What no head holds anywhere: line ends other than CRLF, and control characters.
_NO_HEAD = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_READ_HERE = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"})
_END_OF_HEAD = b"\r\n\r\n"


class RequestHead:
    """
    A request's head, read strictly (RFC 9112, 2 to 6).

    Args:
        data: the head's bytes, up to and with the empty line.
        limits: `headers` is checked here.

    Raises:
        InvalidRequest: it is malformed, or its framing is ambiguous, or its target is not a path.
        HeadTooLarge: it has too many header fields.
    """

    __slots__ = (
        "_complete",
        "_special",
        "body_length",
        "expects_continue",
        "headers",
        "http_version",
        "keep_alive",
        "method",
        "target",
        "upgrade",
    )

    def __init__(self, data: bytes, limits: Limits) -> None:
        if data.startswith(b"\r\n"):
            # RFC 9112, 2.2: "SHOULD ignore at least one empty line (CRLF) received prior to the request-line".
            data = data[2:]
        line = _REQUEST_LINE.match(data)
        if line is None or line[1] == b"CONNECT":
            _refuse_line(data)
        self.method = line[1].decode("ascii")
        """Upper case."""
        self.target: bytes = line[2]
        """Path and query as sent; begins with a slash."""
        self.http_version = "1.1" if line[3] == b"1" else "1.0"
        self.headers: RawHeaders = []
        """Names in lower case, in the order sent."""
        self.keep_alive = self.http_version == "1.1"
        self.expects_continue = False
        self.upgrade: bytes | None = None
        """Protocol that the client would like to change to, in lower case (RFC 9110, 7.8)."""
        self.body_length: int | None = 0
        """Bytes of body; None for a chunked one."""

        self._complete = False
        self._special: RawHeaders = []
        try:
            httptools.HttpRequestParser(self).feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # raised when the head has been read
        except httptools.HttpParserError:
            raise InvalidRequest("The request's head is malformed.") from None
        if not self._complete:
            raise InvalidRequest("The request's head is malformed.")
        if len(self.headers) > limits.headers:
            raise HeadTooLarge
        self._read_special()

    # Called by httptools.
    def on_header(self, name: bytes, value: bytes) -> None:
        # RFC 9110, 5.5: a value has no whitespace at its ends. llhttp strips the start.
        field = (name.lower(), value.rstrip())
        self.headers.append(field)
        if field[0] in _READ_HERE:
            self._special.append(field)

    def on_headers_complete(self) -> None:
        self._complete = True

    def _read_special(self) -> None:
        hosts = codings = 0
        upgrade = None
        options: list[bytes] = []
        for name, value in self._special:
            if name == b"host":
                # RFC 9112, 3.2: 400 for a request "that contains more than one Host header field line or a Host header
                # field with an invalid field value".
                hosts += 1
                if not _HOST.fullmatch(value):
                    raise InvalidRequest("The Host header is malformed.")
            elif name == b"content-length":
                # llhttp has refused a second one, a list, and any beside Transfer-Encoding.
                self.body_length = int(value)
            elif name == b"transfer-encoding":
                # RFC 9112, 6.1: no other coding is understood here, and in HTTP/1.0 the framing is faulty.
                codings += 1
                if value.lower() != b"chunked" or self.http_version == "1.0":
                    raise InvalidRequest("The Transfer-Encoding header is not supported.")
                self.body_length = None
            elif name == b"connection":
                if value == b"keep-alive":
                    continue  # what nearly every client says, and HTTP/1.1 anyway
                options += [option.strip(b" \t") for option in value.lower().split(b",")]
            elif name == b"expect":
                # RFC 9110, 10.1.1: to be ignored in an HTTP/1.0 request.
                self.expects_continue = value.lower() == b"100-continue" and self.http_version == "1.1"
            else:
                upgrade = value.lower()
        if hosts > 1 or (hosts == 0 and self.http_version == "1.1"):
            raise InvalidRequest("The request needs one Host header.")
        if codings > 1:
            raise InvalidRequest("The Transfer-Encoding header is not supported.")
        if options:
            self.keep_alive = self.keep_alive and b"close" not in options
            if b"upgrade" in options:
                self.upgrade = upgrade


def _refuse_line(data: bytes) -> NoReturn:
    if _OTHER_TARGET.match(data):
        raise InvalidRequest("The request target must be a path.")
    raise InvalidRequest("The request line is malformed.")


# Without the "bad whitespace" before an extension: parsers differ on it, and nobody sends it.
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
# RFC 9110, 6.5.1: fields that frame a message are no trailers.
_TRAILER_LINE = re.compile(rb"(?!(?i:content-length|transfer-encoding):)" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*")
_CHUNK_LINE_BYTES = 1024


class ChunkedDecoder:
    """
    Take the chunks apart (RFC 9112, 7.1). Chunk extensions and trailers are checked for their form, and dropped.

    Args:
        limits: `headers` and `head_bytes` bound the trailer section.
    """

    __slots__ = ("_left", "_limits", "_line", "_state", "_trailer_bytes", "_trailers", "done", "rest")

    def __init__(self, limits: Limits) -> None:
        self.done = False
        """Whether the body's end was seen."""
        self.rest = b""
        """What followed the body's end."""
        self._limits = limits
        self._line = b""  # an incomplete line
        self._left = 0  # bytes of the chunk's data still to come
        self._state = self._size
        self._trailers = 0
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """
        Take what arrived and return the part of the body that is in it.

        Raises:
            InvalidRequest: the framing is malformed, or a chunk's extensions are too long.
            HeadTooLarge: the trailer section is.
        """
        pieces: list[bytes] = []
        position = 0
        if self._line:
            data = self._line + data
            self._line = b""
        while position < len(data) and not self.done:
            if self._left:
                piece = data[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                continue
            end = data.find(b"\r\n", position)
            if end < 0:
                self._line = data[position:]
                self._check_line(self._line)
                break
            self._state(data[position:end])
            position = end + 2
        if self.done:
            self.rest = data[position:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _check_line(self, line: bytes) -> None:
        """Refuse an incomplete line as soon as it can't become a good one."""
        if b"\n" in line or b"\r" in line[:-1]:
            _refuse_chunks()
        if self._state == self._after_data:
            if line != b"\r":
                _refuse_chunks()
        elif self._state == self._size:
            if len(line) > _CHUNK_LINE_BYTES + 1:
                _refuse_chunks()
        elif self._trailer_bytes + len(line) > self._limits.head_bytes:
            raise HeadTooLarge

    def _size(self, line: bytes) -> None:
        match = _CHUNK_LINE.fullmatch(line)
        if match is None or len(line) > _CHUNK_LINE_BYTES:
            _refuse_chunks()
        self._left = int(match[1], 16)
        self._state = self._after_data if self._left else self._trailer

    def _after_data(self, line: bytes) -> None:
        if line:
            _refuse_chunks()
        self._state = self._size

    def _trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._trailers += 1
        self._trailer_bytes += len(line) + 2
        if self._trailers > self._limits.headers or self._trailer_bytes > self._limits.head_bytes:
            raise HeadTooLarge
        if not _TRAILER_LINE.fullmatch(line):
            _refuse_chunks()


def _refuse_chunks() -> NoReturn:
    raise InvalidRequest("The request's chunked framing is malformed.")


_FIELD_NAME = re.compile(_TOKEN)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


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


class ResponseCycle(RequestResponseCycle):
    """One request's `receive` and `send`, and the framing of its answer."""

    protocol: "HTTPProtocol"
    bodyless = False
    close_delimited = False
    """RFC 9112, 6.3: an answer to HTTP/1.0 without a Content-Length ends where the connection does."""

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
        self.transport.write(head)
        if self.access_log:
            self.access_logger.info(
                '%s - "%s %s HTTP/%s" %d',
                get_client_addr(self.scope),
                self.scope["method"],
                get_path_with_query_string(self.scope),
                self.scope["http_version"],
                status,
            )

    def _send_body(self, body: bytes, more_body: bool) -> None:
        if self.bodyless:
            pass
        elif self.chunked_encoding:
            if body:
                end = b"\r\n" if more_body else b"\r\n0\r\n\r\n"
                self.transport.write(b"".join((b"%x\r\n" % len(body), body, end)))
            elif not more_body:
                self.transport.write(b"0\r\n\r\n")
        else:
            if not self.close_delimited:
                self.expected_content_length -= len(body)
                if self.expected_content_length < 0:
                    raise RuntimeError("Response content longer than Content-Length")
                if self.expected_content_length > 0 and not more_body:
                    raise RuntimeError("Response content shorter than Content-Length")
            if body:
                self.transport.write(body)
        if not more_body:
            self.response_complete = True
            self.message_event.set()
            self.on_response()


def _is_interruption(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):  # what a task group makes of it
        return error.split(ResponseInterrupted)[1] is None
    return isinstance(error, ResponseInterrupted)


class HTTPProtocol(HttpToolsProtocol):
    """
    uvicorn's HTTP protocol, with the requests cut out and judged here.

    `limits` belongs to the class: a server with other limits runs a subclass.
    """

    limits = Limits()
    cycle: ResponseCycle

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # What arrived and is not read yet: an incomplete head, or requests after the one in flight.
        self._pending = b""
        self._scanned = 0  # where the search for the head's end goes on
        self._head_begun = True  # its time runs from the connection's opening
        # The body that is arriving: its decoder if it is chunked, else how much of it is to come.
        self._in_body = False
        self._decoder: ChunkedDecoder | None = None
        self._remaining = 0
        # Its rate: bytes and seconds of reading so far in this window, and since when it is read (None: not now).
        self._window_bytes = 0
        self._window_spent = 0.0
        self._reading_since: float | None = None
        # One timer, armed anew only when it fires, or when the deadline comes nearer.
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._closing = False

    # The connection's life, as asyncio and uvicorn tell it.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._context = contextvars.copy_context()
        self._set_deadline(self.loop.time() + self.limits.head_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()
        self._cancel_timer()

    def data_received(self, data: bytes) -> None:
        if self._in_body:
            data = self._receive_body(data)
            if not data:
                return
        if self._closing:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._receive_head(data)
        else:
            self._hold(data)

    def shutdown(self) -> None:
        """Close an idle connection; let an answer in flight finish within uvicorn's `timeout_graceful_shutdown`."""
        if self._closing or self.cycle is None or self.cycle.response_complete:
            self._stop()
            self.transport.close()
        else:
            cycle = self.cycle
            cycle.keep_alive = False
            grace = self.config.timeout_graceful_shutdown
            if grace is not None:
                # uvicorn waits a little longer before it cancels the app's tasks, so what they do then is not seen.
                self.loop.call_later(grace, self.give_up, cycle, ShuttingDown())

    # What arrives.

    def _receive_head(self, data: bytes) -> None:
        if self._pending:
            data = self._pending + data
            self._pending = b""
        end = data.find(_END_OF_HEAD, self._scanned) + 4
        if end < 4:
            self._pending = data
            self._await_head()
            return
        self._scanned = 0
        if end > self.limits.head_bytes:
            self._refuse(HeadTooLarge())
            return
        try:
            head = RequestHead(data if end == len(data) else data[:end], self.limits)
        except RequestError as error:
            self._refuse(error)
            return
        if head.upgrade == b"websocket" and self._should_upgrade_to_ws():
            self._hand_over(head)
            return
        cycle = self._begin(head)
        self.cycle = cycle
        length = head.body_length
        if length is not None and end + length <= len(data):
            # The whole request is here, as with most of them.
            cycle.body += data[end : end + length]
            cycle.more_body = False
            cycle.message_event.set()
            rest = data[end + length :]
        else:
            self._in_body = True
            self._remaining = length or 0
            self._decoder = ChunkedDecoder(self.limits) if length is None else None
            self._window_bytes = 0
            self._window_spent = 0.0
            self._reading_since = None
            rest = self._receive_body(data[end:])
            if self._closing:
                return
            if not head.expects_continue:
                self.resume_body()
        self._start(cycle)
        if rest:
            self._hold(rest)

    def _await_head(self) -> None:
        """Judge an incomplete head as far as can be, and give it time for the rest."""
        if len(self._pending) > self.limits.head_bytes:
            self._refuse(HeadTooLarge())
            return
        if _NO_HEAD.search(self._pending, self._scanned):
            self._refuse(InvalidRequest("The request's head is malformed."))
            return
        self._scanned = max(len(self._pending) - 3, 0)
        if not self._head_begun:
            self._head_begun = True
            self._set_deadline(self.loop.time() + self.limits.head_timeout)

    def _begin(self, head: RequestHead) -> ResponseCycle:
        """Make ready for a request's body and answer."""
        self._head_begun = False
        self._deadline = None
        raw_path, _, query = head.target.partition(b"?")
        path = raw_path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": head.http_version,
            "method": head.method,
            "scheme": self.scheme or "http",
            "path": self.root_path + path,
            "raw_path": self.root_path.encode("ascii") + raw_path,
            "query_string": query,
            "root_path": self.root_path,
            "headers": head.headers,
            "client": self.client,
            "server": self.server,
            "state": self.app_state.copy(),
        }
        cycle = ResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=head.expects_continue,
            keep_alive=head.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.protocol = self
        return cycle

    def _start(self, cycle: ResponseCycle) -> None:
        app = self.app
        if self.limit_concurrency is not None and self.limit_concurrency <= max(len(self.connections), len(self.tasks)):
            app = service_unavailable
            self.logger.warning("Exceeded concurrency limit.")
        self._start_asgi_task(cycle, app)

    def _receive_body(self, data: bytes) -> bytes:
        """Take the part of the body that arrived, and return what follows the body."""
        if self._decoder is not None:
            try:
                body = self._decoder.feed(data)
            except RequestError as error:
                self._refuse(error)
                return b""
            rest = self._decoder.rest
            done = self._decoder.done
        else:
            body = data if len(data) <= self._remaining else data[: self._remaining]
            rest = data[len(body) :]
            self._remaining -= len(body)
            done = not self._remaining
        self._window_bytes += len(body)
        cycle = self.cycle
        if done:
            self._in_body = False
            self._decoder = None
            self._deadline = None
            cycle.more_body = False
        if cycle.response_complete:
            if done and not rest:
                self._set_deadline(self.loop.time() + self.timeout_keep_alive)
        elif body or done:
            cycle.body += body
            cycle.message_event.set()
            if not done and len(cycle.body) > HIGH_WATER_LIMIT:
                self._pause_body()
        return rest

    def _pause_body(self) -> None:
        """Stop reading a body that the app does not take, and its clock."""
        self.flow.pause_reading()
        if self._reading_since is not None:
            self._window_spent += self.loop.time() - self._reading_since
            self._reading_since = None
            self._deadline = None

    def resume_body(self) -> None:
        """Read the body on, and let the client's time for it run."""
        if self._in_body:
            self.flow.resume_reading()
            if self._reading_since is None:
                self._reading_since = self.loop.time()
                self._set_deadline(self._reading_since + self.limits.body_grace - self._window_spent)

    def _hold(self, data: bytes) -> None:
        """Keep a pipelined request (RFC 9112, 9.3.2) until the answer before it is complete."""
        self._pending += data
        if len(self._pending) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def _next_head(self) -> None:
        if self._pending and not self._closing and self.cycle.response_complete:
            self.flow.resume_reading()
            self._receive_head(b"")

    def _hand_over(self, head: RequestHead) -> None:
        self._cancel_timer()
        self.url = head.target
        self.scope = {"method": head.method, "headers": head.headers}  # type: ignore[typeddict-item]
        self.handle_websocket_upgrade()

    # How an answer ends.

    def on_response_complete(self) -> None:
        """Make room for the next request."""
        self.server_state.total_requests += 1
        if self._closing or self.transport.is_closing():
            return
        if not self.cycle.keep_alive:
            if self._in_body or self._pending:
                self._linger()
            else:
                self._stop()
                self.transport.close()
        elif self._in_body:
            self.resume_body()
        elif self._pending:
            # Not from here: this is the app's task, and the next one would inherit its context variables.
            self.loop.call_soon(self._next_head, context=self._context)
        else:
            self._set_deadline(self.loop.time() + self.timeout_keep_alive)

    def give_up(self, cycle: ResponseCycle, error: RequestError) -> None:
        """End an answer that will not be completed: with `error` if it has not begun, else by cutting the connection."""
        if cycle.response_complete or cycle.disconnected:
            return
        cycle.disconnected = True
        cycle.message_event.set()
        if not cycle.response_started and not self.transport.is_closing():
            self._answer(error, bodyless=cycle.scope["method"] == "HEAD")
            return
        self._stop()
        if cycle.close_delimited:
            # Without framing only a reset tells that this is not the end.
            with contextlib.suppress(OSError):
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.transport.abort()
        else:
            self.transport.close()
            self._set_deadline(self.loop.time() + self.limits.linger)

    def _refuse(self, error: RequestError) -> None:
        """Refuse what arrived: instead of the answer in flight, or for want of one."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            self.give_up(cycle, error)
        elif self._in_body:
            self._linger()  # the request has had its answer
        else:
            self._answer(error)

    def _answer(self, error: RequestError, *, bodyless: bool = False) -> None:
        request_id = "req_" + token_hex(12)
        status, headers, body = error_answer(error, "openai", request_id)
        lines = [STATUS_LINE[status]]
        lines += [b"%b: %b\r\n" % header for header in (*self.server_state.default_headers, *headers)]
        lines += [b"connection: close\r\n\r\n", b"" if bodyless else body]
        self.transport.write(b"".join(lines))
        self._linger()
        host = self.client[0] if self.client else None
        _logger.info(LogFields({"request_id": request_id, "client": host, "status": status, "error": error.code}))

    def _linger(self) -> None:
        """
        Close, but go on reading for a moment.

        RFC 9112, 9.6: closing while the client still sends makes its TCP stack drop the answer, so the write side is
        closed first.
        """
        self._stop()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._set_deadline(self.loop.time() + self.limits.linger)

    def _stop(self) -> None:
        """Take no request any more."""
        self._closing = True
        self._in_body = False
        self._decoder = None
        self._pending = b""
        self._deadline = None

    # The timer.

    def _set_deadline(self, when: float) -> None:
        self._deadline = when
        if self._timer is None or when < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = when
            self._timer = self.loop.call_at(when, self._on_timer)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self.loop.time() < self._deadline:
            self._set_deadline(self._deadline)
        elif self._closing:
            self.transport.abort()
        elif self._in_body:
            self._judge_rate()
        elif self.cycle is not None and not self._pending:
            self._stop()
            self.transport.close()  # idle
        else:
            self._refuse(RequestTimeout())

    def _judge_rate(self) -> None:
        if self._window_bytes < self.limits.body_rate * self.limits.body_grace:
            self._refuse(RequestTimeout())
            return
        self._window_bytes = 0
        self._window_spent = 0.0
        self._reading_since = self.loop.time()
        self._set_deadline(self._reading_since + self.limits.body_grace)
