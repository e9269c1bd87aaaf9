"""
Responses of an upstream, decoded without I/O (RFC 9112).

Everything that could make two parties disagree about where a response ends is refused:

- anything before the status line; versions other than 1.0 and 1.1; status codes outside 100 to 599; control characters in the
  reason; and everything that `http1.heads` refuses
- Content-Length beside Transfer-Encoding, two of either, and a Transfer-Encoding that is not exactly `chunked`
- a head over 64 KiB; as many bytes of chunk extensions or trailers without a byte of body; more than 16 interim responses

llhttp decodes the chunks (behind httptools). Its strict mode refuses bare LF and CR, NUL, and malformed sizes. Bodies of known
length and bodies that end with the connection never pass through it.
"""

import re

import httptools
import httpx

from ...http1.fields import RawHeaders
from ...http1.heads import END_OF_HEAD, NO_HEAD, MalformedHead, by_name, read_fields, read_framing, read_options

MAX_HEAD = 65_536
"""Largest head, in bytes, status line and line ends included. Also the most that chunks may carry between two bytes of body."""

MAX_INTERIM = 16
"""Most 1xx responses before the final one."""

HEAD, SIZED, CHUNKED, UNTIL_CLOSE, COMPLETE = range(5)
"""States of a `ResponseReader`: the part that it reads next."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t -~\x80-\xff]*))?")
_CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
"""A head after which llhttp expects chunks."""


class ResponseReader:
    """
    Decodes one response out of the bytes of a connection.

    Interim responses (1xx) and the trailer section of a chunked response are read and dropped.

    Args:
        has_body: False for the response to HEAD. It has no body, whatever its head says (RFC 9112, 6.3).
    """

    # The parser looks up the names on_... as its callbacks.
    __slots__ = (
        "_has_body",
        "_head",
        "_interim",
        "_lines",
        "_overhead",
        "_parser",
        "_remaining",
        "_scanned",
        "_tail",
        "buffered",
        "fields",
        "keep_alive",
        "length",
        "on_body",
        "pieces",
        "reason",
        "state",
        "status",
        "surplus",
        "touched",
        "version",
    )

    def __init__(self, has_body: bool = True) -> None:
        self.state = HEAD
        self.status = 0
        self.version = ""
        self.reason = b""
        self.fields: RawHeaders = []
        """Headers in the order received, names in lower case."""
        self.length: int | None = None
        """Bytes of the body by Content-Length, or None without one."""
        self.pieces: list[bytes] = []
        """The part of the body that has arrived and was not taken yet."""
        self.buffered = 0
        """Bytes in `pieces`; for chunks, with their framing."""
        self.keep_alive = False
        self.surplus = False
        """Whether bytes came after the end of the response."""
        self.touched = False
        """Whether a byte has arrived."""
        self.on_body = self.pieces.append
        self._has_body = has_body
        self._head = b""
        self._scanned = 0
        self._lines: list[bytes] = []
        self._interim = 0
        self._overhead = 0
        self._remaining = 0
        self._tail = b""
        self._parser: httptools.HttpResponseParser | None = None

    @property
    def headers(self) -> RawHeaders:
        """Headers in the order and case received."""
        return [(line[: len(name)], value) for line, (name, value) in zip(self._lines, self.fields, strict=True)]

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request: the response is whole, and no byte is left over."""
        return self.state == COMPLETE and self.keep_alive and not self.surplus

    def receive(self, data: bytes) -> None:
        """
        Take bytes of the connection, at least one.

        Raises:
            httpx.RemoteProtocolError: they are no well-formed response. The connection must be closed.
        """
        state = self.state
        if state == CHUNKED:
            self._receive_chunks(data)
        elif state == SIZED:
            size = len(data)
            if size > self._remaining:
                data = data[: self._remaining]
                self.surplus = True
            self._remaining -= size
            self.buffered += size
            self.pieces.append(data)
            if self._remaining <= 0:
                self.state = COMPLETE
        elif state == HEAD:
            self.touched = True
            self._receive_head(data)
        elif state == UNTIL_CLOSE:
            self.buffered += len(data)
            self.pieces.append(data)
        else:
            self.surplus = True

    def receive_eof(self, clean: bool = True) -> None:
        """
        Take the end of the connection.

        Args:
            clean: False where TLS ended without its closing alert (RFC 9112, 9.8).

        Raises:
            httpx.RemoteProtocolError: the response is not whole.
        """
        if self.state == UNTIL_CLOSE and clean:
            self.state = COMPLETE
        elif self.state != COMPLETE:
            raise httpx.RemoteProtocolError(
                "the upstream closed the connection in the middle of its response"
                if self.touched
                else "the upstream closed the connection without a response"
            )

    def take(self) -> bytes:
        """Take the part of the body that has arrived since the last call. There must be some."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.buffered = 0
        return data

    def put_back(self, data: bytes) -> None:
        """Undo the last `take`."""
        self.pieces.append(data)
        self.buffered = len(data)

    def _receive_head(self, data: bytes) -> None:
        if self._head:
            data = self._head + data
            self._head = b""
        while data:
            end = data.find(END_OF_HEAD, self._scanned)
            if end < 0:
                self._await_head(data)
                return
            if end > MAX_HEAD - 4:
                raise httpx.RemoteProtocolError("the head of the upstream's response is too large")
            self._scanned = 0
            first, *lines = data[:end].split(b"\r\n")
            status_line = _STATUS_LINE.fullmatch(first)
            if status_line is None:
                raise httpx.RemoteProtocolError("the status line of the upstream's response is malformed")
            minor, code, reason = status_line.groups()
            try:
                self.fields = read_fields(lines)
            except MalformedHead:
                raise httpx.RemoteProtocolError("the head of the upstream's response is malformed") from None
            self._lines = lines
            self.status = status = int(code)
            self.version = "1.1" if minor == b"1" else "1.0"
            self.reason = reason or b""
            data = data[end + 4 :]
            if status >= 200:
                self._begin_body(data)
                return
            # RFC 9110, 15.2: any number of interim responses precedes the final one. 101 answers an Upgrade, which is not sent.
            self._interim += 1
            if status == 101 or self._interim > MAX_INTERIM:
                raise httpx.RemoteProtocolError("the upstream sent an interim response that was not asked for")

    def _await_head(self, data: bytes) -> None:
        """Keep the part of a head that has arrived, if it can still become a head."""
        if len(data) > MAX_HEAD:
            raise httpx.RemoteProtocolError("the head of the upstream's response is too large")
        if data[:7] != b"HTTP/1."[: len(data)] or NO_HEAD.search(data, self._scanned):
            raise httpx.RemoteProtocolError("the upstream's response is no HTTP/1.1")
        self._scanned = max(len(data) - 3, 0)
        self._head = data

    def _begin_body(self, data: bytes) -> None:
        """Learn where the body ends, by the numbered cases of RFC 9112, 6.3, in their order."""
        try:
            fields = by_name(self.fields)
            self.length, chunked = read_framing(fields)
            length = self.length
        except MalformedHead:
            raise httpx.RemoteProtocolError("the framing of the upstream's response is ambiguous or not supported") from None
        connection = fields.get(b"connection")
        options = () if connection is None else read_options(connection)
        version = self.version
        # RFC 9112, 9.3
        self.keep_alive = b"close" not in options and (version == "1.1" or b"keep-alive" in options)
        # 1.
        if not self._has_body or self.status in (204, 304):
            if self.status == 204 and (length or chunked):
                self.keep_alive = False  # RFC 9110, 8.6 forbids the field, so bytes of a body may follow
            self.state = COMPLETE
        # 4. By 6.1 the framing of a chunked HTTP/1.0 message is faulty, so the connection is not used again.
        elif chunked:
            self.keep_alive = self.keep_alive and version == "1.1"
            self.state = CHUNKED
            self._parser = httptools.HttpResponseParser(self)
            self._parser.feed_data(_CHUNKED_HEAD)
        # 6.
        elif length == 0:
            self.state = COMPLETE
        elif length is not None:
            self._remaining = length
            self.state = SIZED
        # 8.
        else:
            self.keep_alive = False
            self.state = UNTIL_CLOSE
        if data:
            self.receive(data)

    def _receive_chunks(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            return
        before = len(self.pieces)
        try:
            parser.feed_data(data)
        except httptools.HttpParserError:
            # After the last chunk the error is that of another message.
            self.surplus = True
            if self.state != COMPLETE:
                raise httpx.RemoteProtocolError("the chunks of the upstream's response are malformed") from None
        size = len(data)
        self._tail = data if size >= 5 else self._tail[-5:] + data
        if self.state == COMPLETE:
            self._parser = None
            # The parser skips line ends between two messages in silence. This message ends with exactly one empty line.
            tail = self._tail[-5:]
            if tail[-4:] != END_OF_HEAD or tail[:1] in b"\r\n":
                self.surplus = True
        if len(self.pieces) > before:
            self.buffered += size
            self._overhead = 0
        else:
            self._overhead += size
            if self._overhead > MAX_HEAD:
                raise httpx.RemoteProtocolError("the chunks of the upstream's response carry too much beside the body")

    def discard(self) -> None:
        """Let go of the parser, which refers back to this reader."""
        self._parser = None

    def on_message_begin(self) -> None:
        if self.state == COMPLETE:
            raise ValueError("a message after the last chunk")  # else the parser would read it

    def on_message_complete(self) -> None:
        if self.state == CHUNKED:
            self.state = COMPLETE
