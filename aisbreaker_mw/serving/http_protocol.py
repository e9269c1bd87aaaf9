"""
The server side of HTTP/1.1, as a protocol class for uvicorn (`uvicorn.Config(http=HTTPProtocol)`).

uvicorn feeds whatever arrives to one parser per connection. Here a request is cut out of the stream first, and only then read:

    bytes → a whole head → RequestHead → the app's task
                             ↘ its body, by Content-Length or ChunkedDecoder → the app's receive()
                                 ↘ what follows waits for the answer's end, and is the next head

So a request is the same in whatever segments it comes, one request is in flight at a time, and nothing after a head (body,
trailers, the next request) can become part of it.

A refusal is an error in the shape of OpenAI's API and closes the connection. It never quotes what was sent.
"""

import asyncio
import contextlib
import contextvars
import logging
import socket
import struct
from secrets import token_hex
from typing import Any
from urllib.parse import unquote

from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from ..client.responses import error_response
from ..exceptions import HeadTooLarge, InvalidRequest, RequestError, RequestTimeout, ShuttingDown
from ..http1.heads import END_OF_HEAD, NO_HEAD, write_head
from ..telemetry.logs import ACCESS_LOGGER, LogFields
from .base_protocol import BaseProtocol
from .cycle import ResponseCycle
from .request_head import ChunkedDecoder, Limits, RequestHead

__all__ = ["HTTPProtocol"]


_logger = logging.getLogger(ACCESS_LOGGER)

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

_LIMITS = Limits()


class HTTPProtocol(BaseProtocol):
    """
    One client's connection: its requests, one after the other.

    Args:
        config: see `BaseProtocol`, as for the next three.
        limits: what the client may take; `functools.partial` makes a protocol with others.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits = _LIMITS,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limits = limits
        self._asgi_version = config.asgi_version
        self._keep_alive = config.timeout_keep_alive
        self._grace = config.timeout_graceful_shutdown
        self.cycle: ResponseCycle | None = None  # the last one, under way or done
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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._context = contextvars.copy_context()
        self._set_deadline(self.loop.time() + self.limits.head_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self.leave()
        if self.cycle is not None:
            self.cycle.disconnect()
            self.cycle = None  # which refers to this: the two would wait for the garbage collector
        self.flow.resume_writing()
        self.transport.close()
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
            grace = self._grace
            if grace is not None:
                # uvicorn waits a little longer before it cancels the app's tasks, so what they do then is not seen.
                self.loop.call_later(grace, self.give_up, cycle, ShuttingDown())

    # What arrives.

    def _receive_head(self, data: bytes) -> None:
        if self._pending:
            data = self._pending + data
            self._pending = b""
        end = data.find(END_OF_HEAD, self._scanned) + 4
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
        if head.opens_websocket and self.config.ws_protocol_class is not None:
            if end < len(data):
                self._refuse(InvalidRequest("A WebSocket begins with the answer to its handshake."))
            else:
                self._hand_over(head)
            return
        cycle = self._begin(head)
        self.cycle = cycle
        length = head.body_length
        if length is not None and end + length <= len(data):
            # The whole request is here, as with most of them.
            cycle.take_body(data[end : end + length], False)
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
        self.start(cycle.run_asgi)
        if rest:
            self._hold(rest)

    def _await_head(self) -> None:
        """Judge an incomplete head as far as can be, and give it time for the rest."""
        if len(self._pending) > self.limits.head_bytes:
            self._refuse(HeadTooLarge())
            return
        if NO_HEAD.search(self._pending, self._scanned):
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
        root_path = self.config.root_path
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": self._asgi_version, "spec_version": "2.3"},
            "http_version": head.http_version,
            "method": head.method,
            "scheme": self.scheme,
            "path": root_path + path,
            "raw_path": root_path.encode("ascii") + raw_path,
            "query_string": query,
            "root_path": root_path,
            "headers": head.headers,
            "client": self.client,
            "server": self.server,
            "state": self.app_state.copy(),
        }
        return ResponseCycle(self, scope, keep_alive=head.keep_alive, expects_continue=head.expects_continue)

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
        cycle = self._current()
        if done:
            self._in_body = False
            self._decoder = None
            self._deadline = None
        if cycle.response_complete:
            if done and not rest:
                self._set_deadline(self.loop.time() + self._keep_alive)
        elif body or done:
            cycle.take_body(body, not done)
            if not done and cycle.buffered > HIGH_WATER_LIMIT:
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
        if self._pending and not self._closing and self._current().response_complete:
            self.flow.resume_reading()
            self._receive_head(b"")

    def _hand_over(self, head: RequestHead) -> None:
        self._cancel_timer()
        self.cycle = None  # of a request before this one; as above
        # A Content-Length can only be 0 here, and older versions of the library `websockets` take none at all.
        headers = [header for header in head.headers if header[0] != b"content-length"]
        self.hand_over(write_head(b"GET %b HTTP/1.1" % head.target, headers))

    def _current(self) -> ResponseCycle:
        assert self.cycle is not None  # noqa: S101 - asked where there was a head only
        return self.cycle

    # How an answer ends.

    def on_response_complete(self) -> None:
        """Make room for the next request."""
        self.server_state.total_requests += 1
        if self._closing or self.transport.is_closing():
            return
        if not self._current().keep_alive:
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
            self._set_deadline(self.loop.time() + self._keep_alive)

    def give_up(self, cycle: ResponseCycle, error: RequestError) -> None:
        """End an answer that will not be completed: with `error` if it has not begun, else by cutting the connection."""
        if cycle.response_complete or cycle.disconnected:
            return
        cycle.flush_head()
        cycle.disconnect()
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
        status, headers, body = error_response(error, "openai", request_id)
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
