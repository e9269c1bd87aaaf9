"""
The server side of HTTP/1.1, as a protocol class for uvicorn (`uvicorn.Config(http=HTTPProtocol)`).

uvicorn feeds all bytes of a connection to one parser. Here a request is first cut out of the stream, and then read:

    bytes → a whole head → RequestHead → the app's task
                             ↘ its body, by Content-Length or ChunkedDecoder → the app's receive()
                                 ↘ the rest waits for the end of the response, and is the next head

So it makes no difference in which segments a request comes. One request is in flight at a time. Nothing after a head (body,
trailers, the next request) can become part of it.

A refusal is an error in the shape of OpenAI's API and closes the connection. It never quotes what was sent.
"""

import asyncio
import contextlib
import contextvars
import socket
import struct
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.server import ServerState

from ..deadline import NEVER, DeadlineTimer
from ..exceptions import HeadTooLarge, InvalidRequest, RequestError, RequestTimeout, ServerBusy, ShuttingDown
from ..http1.heads import END_OF_HEAD, NO_HEAD, write_head
from .base_protocol import BaseProtocol
from .cycle import ResponseCycle
from .open_files import OPEN_FILES
from .refusal import write_refusal
from .request_head import ChunkedDecoder, Limits, RequestHead

__all__ = ["HTTPProtocol"]


_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

_LIMITS = Limits()


class HTTPProtocol(BaseProtocol, DeadlineTimer):
    """
    One client's connection: its requests, one after the other.

    Args:
        config: see `BaseProtocol`, as for the next three.
        limits: the limits of one client. `functools.partial` makes a protocol with others.
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
        BaseProtocol.__init__(self, config, server_state, app_state, _loop)
        DeadlineTimer.__init__(self, self.loop)
        self.limits = limits
        self._keep_alive = config.timeout_keep_alive
        self._grace = config.timeout_graceful_shutdown
        self.cycle: ResponseCycle | None = None  # the last request, under way or done
        # Bytes that are not read yet: an incomplete head, or requests after the one in flight.
        self._pending = b""
        self._scanned = 0  # where the search for the head's end continues
        self._head_begun = True  # the first head's time runs from the connection's opening
        # The body that is arriving: its decoder if it is chunked, else the bytes still to come.
        self._in_body = False
        self._decoder: ChunkedDecoder | None = None
        self._remaining = 0
        # The body's rate: bytes and seconds of reading in this window, and since when the server reads (None: not now).
        self._window_bytes = 0
        self._window_spent = 0.0
        self._reading_since: float | None = None
        self._closing = False

    # The connection's life, called by asyncio and uvicorn.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._context = contextvars.copy_context()
        self.set_deadline(self.loop.time() + self.limits.head_timeout)
        if OPEN_FILES.run_short(self.transport):
            OPEN_FILES.tell()
            if OPEN_FILES.run_out(self.transport):
                self._stop()
                self.transport.abort()
            else:
                self._send_refusal(ServerBusy())

    def connection_lost(self, exc: Exception | None) -> None:
        self.leave()
        if self.cycle is not None:
            self.cycle.disconnect()
            self.cycle = None  # it refers back to this, and both would wait for the garbage collector
        self.flow.resume_writing()
        self.transport.close()
        self._stop()
        self.stop_timer()

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
        """Close an idle connection. A response in flight may finish within uvicorn's `timeout_graceful_shutdown`."""
        if self._closing or self.cycle is None or self.cycle.response_complete:
            self._stop()
            self.transport.close()
        else:
            cycle = self.cycle
            cycle.keep_alive = False
            grace = self._grace
            if grace is not None:
                # uvicorn waits a little longer before it cancels the app's tasks, so the client sees nothing of that.
                self.loop.call_later(grace, self.give_up, cycle, ShuttingDown())

    # Bytes that arrive.

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
                self._refuse(InvalidRequest("A WebSocket begins with the response to its handshake."))
            else:
                self._hand_over(head)
            return
        cycle = self._begin(head)
        self.cycle = cycle
        length = head.body_length
        if length is not None and end + length <= len(data):
            # The whole request is here, as most requests are.
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
        """Refuse an incomplete head that cannot become a good one, else wait for the rest."""
        if len(self._pending) > self.limits.head_bytes:
            self._refuse(HeadTooLarge())
            return
        if NO_HEAD.search(self._pending, self._scanned):
            self._refuse(InvalidRequest("The request's head is malformed."))
            return
        self._scanned = max(len(self._pending) - 3, 0)
        if not self._head_begun:
            self._head_begun = True
            self.set_deadline(self.loop.time() + self.limits.head_timeout)

    def _begin(self, head: RequestHead) -> ResponseCycle:
        """Make ready for a request's body and response."""
        self._head_begun = False
        self.deadline = NEVER
        return ResponseCycle(self, self.make_scope(head), keep_alive=head.keep_alive, expects_continue=head.expects_continue)

    def _receive_body(self, data: bytes) -> bytes:
        """Take the part of the body that arrived, and return the bytes after the body."""
        if self._decoder is not None:
            try:
                body = self._decoder.feed(data)
            except RequestError as error:
                self._refuse(error)
                return b""
            rest = self._decoder.rest
            done = self._decoder.done
            if self._decoder.more:
                self.flow.pause_reading()
                self.loop.call_soon(self._take_turn, context=self._context)
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
            self.deadline = NEVER
        if cycle.response_complete:
            if done and not rest:
                self.set_deadline(self.loop.time() + self._keep_alive)
        elif body or done:
            cycle.take_body(body, not done)
            if not done and cycle.buffered > HIGH_WATER_LIMIT:
                self._pause_body()
        return rest

    def _take_turn(self) -> None:
        """Decode the chunks that wait, and read on after the last of them."""
        if self._chunks_wait():
            self.data_received(b"")
            cycle = self.cycle
            if self._in_body and cycle is not None and (cycle.response_complete or cycle.buffered <= HIGH_WATER_LIMIT):
                self.resume_body()
            elif not (self._in_body or self._pending or self._closing):
                self.flow.resume_reading()

    def _chunks_wait(self) -> bool:
        return self._decoder is not None and self._decoder.more

    def _pause_body(self) -> None:
        """Stop reading a body that the app does not take, and stop its clock."""
        self.flow.pause_reading()
        if self._reading_since is not None:
            self._window_spent += self.loop.time() - self._reading_since
            self._reading_since = None
            self.deadline = NEVER

    def resume_body(self) -> None:
        """Read on in the body, and let the client's time for it run."""
        if self._in_body and not self._chunks_wait():
            self.flow.resume_reading()
            if self._reading_since is None:
                self._reading_since = self.loop.time()
                self.set_deadline(self._reading_since + self.limits.body_grace - self._window_spent)

    def _hold(self, data: bytes) -> None:
        """Keep a pipelined request (RFC 9112, 9.3.2) until the response before it is complete."""
        self._pending += data
        if len(self._pending) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def _next_head(self) -> None:
        if self._pending and not self._closing and self._current().response_complete:
            self.flow.resume_reading()
            self._receive_head(b"")

    def _hand_over(self, head: RequestHead) -> None:
        self.stop_timer()
        self.cycle = None  # that of an earlier request; as in connection_lost()
        # A Content-Length can only be 0 here. Older versions of the library `websockets` refuse any.
        headers = [header for header in head.headers if header[0] != b"content-length"]
        self.hand_over(write_head(b"GET %b HTTP/1.1" % head.target, headers))

    def _current(self) -> ResponseCycle:
        assert self.cycle is not None  # noqa: S101 - called only after a head
        return self.cycle

    # The end of a response.

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
            # Not directly: this runs in the app's task, and the next one would inherit its context variables.
            self.loop.call_soon(self._next_head, context=self._context)
        else:
            self.set_deadline(self.loop.time() + self._keep_alive)

    def give_up(self, cycle: ResponseCycle, error: RequestError) -> None:
        """End a response that will not be completed: with `error` if it has not begun, else by cutting the connection."""
        if cycle.response_complete or cycle.disconnected:
            return
        cycle.flush_head()
        cycle.disconnect()
        if not cycle.response_started and not self.transport.is_closing():
            self._send_refusal(error, bodyless=cycle.scope["method"] == "HEAD")
            return
        self._stop()
        if cycle.close_delimited:
            # Without framing, only a reset tells the client that the body is not whole.
            with contextlib.suppress(OSError):
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.transport.abort()
        else:
            self.transport.close()
            self.set_deadline(self.loop.time() + self.limits.linger)

    def _refuse(self, error: RequestError) -> None:
        """Refuse the bytes that arrived. The error ends the response in flight, or is a response of its own."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            self.give_up(cycle, error)
        elif self._in_body:
            self._linger()  # the request has had its response
        else:
            self._send_refusal(error)

    def _send_refusal(self, error: RequestError, *, bodyless: bool = False) -> None:
        self.transport.write(write_refusal(error, self.server_state.default_headers, self.client, bodyless=bodyless))
        self._linger()

    def _linger(self) -> None:
        """
        Close, but go on reading for a moment.

        RFC 9112, 9.6: if the server closed while the client still sends, the client's TCP stack could drop the response. So the
        write side is closed first.
        """
        self._stop()
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError):  # asyncio's, of a client that has reset the connection
                self.transport.write_eof()
        self.flow.resume_reading()
        self.set_deadline(self.loop.time() + self.limits.linger)

    def _stop(self) -> None:
        """Take no more requests."""
        self._closing = True
        self._in_body = False
        self._decoder = None
        self._pending = b""
        self.deadline = NEVER

    # The deadline.

    def on_deadline(self) -> None:
        """Close where a head, a body, the next request or the end of a closing connection took too long."""
        if self._closing:
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
        self.set_deadline(self._reading_since + self.limits.body_grace)
