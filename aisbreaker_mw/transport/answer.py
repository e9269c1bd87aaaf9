"""
Answers, decoded without I/O (RFC 9112).

llhttp (behind httptools) splits a head into its fields and takes chunks apart. In its strict mode it refuses bare LF, bare CR,
NUL, obs-fold, space before a colon, malformed chunk sizes and Content-Length beside Transfer-Encoding. Everything it still lets
through that could make two parties disagree about where an answer ends is refused here:

- anything before the status line; versions other than 1.0 and 1.1; status codes outside 100 to 599; control characters in the
  reason
- a Transfer-Encoding that is not exactly `chunked`
- a head over 64 KiB, as many bytes of chunk extension or trailer section without a byte of body, more than 16 interim answers

Bodies of known length and bodies that end with the connection never pass through the parser.
"""

import httptools
import httpx

from .fields import CODING, CONNECTION, LENGTH, OTHER, ROLES, RawHeaders, split_list

MAX_HEAD = 65_536
"""Bytes of an answer's head, status line and line ends included; of what a chunked body may carry between two bytes of body."""

MAX_INTERIM = 16
"""1xx answers before the final one."""

HEAD, SIZED, CHUNKED, UNTIL_CLOSE, COMPLETE = range(5)
"""What an `AnswerReader` reads next."""

_CONTROLS = bytes(range(9)) + bytes(range(10, 32)) + b"\x7f"


class AnswerReader:
    """
    Decodes one answer out of the bytes of a connection.

    Args:
        has_body: False where the request was HEAD: then no body follows, whatever the head says (RFC 9112, 6.3).

    Interim answers (1xx) are read and dropped, and so is the trailer section of a chunked answer.
    """

    # The names on_... are the callbacks that the parser looks up.
    __slots__ = (
        "_has_body",
        "_head_bytes",
        "_head_read",
        "_interim",
        "_overhead",
        "_parser",
        "_remaining",
        "_tail",
        "buffered",
        "headers",
        "keep_alive",
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
        self.headers: RawHeaders = []
        self.pieces: list[bytes] = []
        """Body that has arrived and was not taken yet."""
        self.buffered = 0
        """Bytes in `pieces`, at most."""
        self.keep_alive = False
        self.surplus = False
        """Whether bytes came after the end of the answer."""
        self.touched = False
        """Whether a byte has arrived."""
        self.on_body = self.pieces.append
        self._has_body = has_body
        self._head_bytes = 0
        self._head_read = False
        self._interim = 0
        self._overhead = 0
        self._remaining = 0
        self._tail = b""
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request: the answer is whole, and nothing is left over."""
        return self.state == COMPLETE and self.keep_alive and not self.surplus

    def receive(self, data: bytes) -> None:
        """
        Take bytes of the connection, at least one.

        Raises:
            httpx.RemoteProtocolError: no answer can be read from them. The connection is of no more use.
        """
        if self.state == SIZED:
            size = len(data)
            if size > self._remaining:
                data = data[: self._remaining]
                self.surplus = True
            self._remaining -= size
            self.buffered += size
            self.pieces.append(data)
            if self._remaining <= 0:
                self.state = COMPLETE
        elif self.state == HEAD:
            self.touched = True
            self._receive_head(data)
        elif self.state == CHUNKED:
            self._receive_chunks(data)
        elif self.state == UNTIL_CLOSE:
            self.buffered += len(data)
            self.pieces.append(data)
        else:
            self.surplus = True

    def receive_eof(self, clean: bool = True) -> None:
        """
        Take the end of the connection.

        Args:
            clean: False where TLS was cut off without its closing alert (RFC 9112, 9.8).

        Raises:
            httpx.RemoteProtocolError: the answer was not whole.
        """
        if self.state == UNTIL_CLOSE and clean:
            self.state = COMPLETE
        elif self.state != COMPLETE:
            raise httpx.RemoteProtocolError(
                "the upstream closed the connection in the middle of its answer"
                if self.touched
                else "the upstream closed the connection without an answer"
            )

    def take(self) -> bytes:
        """Return all of the body that has arrived since the last call, of which there must be some."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.buffered = 0
        return data

    def _receive_head(self, data: bytes) -> None:
        parser = self._parser
        while parser is not None and data:
            if not self._head_bytes and data[:1] != b"H":  # llhttp skips line ends, and knows protocols that don't begin with H
                raise httpx.RemoteProtocolError("the upstream's answer is no HTTP/1.1")
            # Parsing what has arrived of a head finds its errors at once; only the empty line may hand on to the body.
            tail = self._tail
            window = tail + data if tail else data
            end = window.find(b"\r\n\r\n")
            if end < 0:
                head, rest = data, b""
                self._tail = window[-3:]
            else:
                end += 4 - len(tail)
                head, rest = data[:end], data[end:]
                self._tail = b""
            self._head_bytes += len(head)
            if self._head_bytes > MAX_HEAD:
                raise httpx.RemoteProtocolError("the head of the upstream's answer is too large")
            try:
                parser.feed_data(head)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                raise httpx.RemoteProtocolError("the head of the upstream's answer is malformed") from None
            if self._head_read != (end >= 0):
                raise httpx.RemoteProtocolError("the head of the upstream's answer is malformed")
            if end < 0:
                return
            self.status = status = parser.get_status_code()
            self.version = version = parser.get_http_version()
            if (
                not 100 <= status <= 599
                or version not in ("1.1", "1.0")
                or self.reason.translate(None, _CONTROLS) != self.reason
            ):
                raise httpx.RemoteProtocolError("the status line of the upstream's answer is malformed")
            if status >= 200:
                self._begin_body(rest)
                return
            # RFC 9110, 15.2: any number of interim answers precedes the final one. 101 answers an Upgrade, which nobody sent.
            self._interim += 1
            if status == 101 or self._interim > MAX_INTERIM:
                raise httpx.RemoteProtocolError("the upstream sent an interim answer that was not asked for")
            self.headers.clear()
            self.reason = b""
            self._head_bytes = 0
            self._head_read = False
            data = rest

    def _begin_body(self, data: bytes) -> None:
        """RFC 9112, 6.3, in its order."""
        version = self.version
        options: list[bytes] = []
        length: int | None = None
        chunked = False
        for name, value in self.headers:
            kind = ROLES[name]
            if kind == OTHER:
                continue
            if kind == CONNECTION:
                options += split_list(value)
            elif length is not None or chunked:
                raise httpx.RemoteProtocolError("the framing of the upstream's answer is ambiguous")
            elif kind == LENGTH and value.isdigit():
                length = int(value)
            elif kind == CODING and value.lower() == b"chunked":
                chunked = True
            else:
                raise httpx.RemoteProtocolError("the framing of the upstream's answer is not supported")
        # RFC 9112, 9.3
        self.keep_alive = b"close" not in options and (version == "1.1" or b"keep-alive" in options)
        # 1.
        if not self._has_body or self.status in (204, 304):
            if self.status == 204 and (length or chunked):
                self.keep_alive = False  # RFC 9110, 8.6 forbids the field; bytes of a body may be on their way
            self._complete()
        # 4., and 6.1: chunked in a message of HTTP/1.0 has faulty framing
        elif chunked:
            self.keep_alive = self.keep_alive and version == "1.1"
            self.state = CHUNKED
            if data:
                self._receive_chunks(data)
            return
        # 6.
        elif length == 0:
            self._complete()
        elif length is not None:
            self._parser = None
            self._remaining = length
            self.state = SIZED
        # 8.
        else:
            self._parser = None
            self.keep_alive = False
            self.state = UNTIL_CLOSE
        if data:
            self.receive(data)

    def _receive_chunks(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            return
        pieces = len(self.pieces)
        try:
            parser.feed_data(data)
        except httptools.HttpParserError:
            # After the last chunk it is another message that does not belong here.
            self.surplus = True
            if self.state != COMPLETE:
                raise httpx.RemoteProtocolError("the chunks of the upstream's answer are malformed") from None
        self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
        if self.state == COMPLETE:
            self._parser = None
            # Between two messages the parser skips line ends in silence, but there is only one empty line at the end of this.
            if self._tail[-4:] != b"\r\n\r\n" or self._tail[:1] in b"\r\n":
                self.surplus = True
        if len(self.pieces) > pieces:
            self.buffered += len(data)
            self._overhead = 0
        else:
            self._overhead += len(data)
            if self._overhead > MAX_HEAD:
                raise httpx.RemoteProtocolError("the chunks of the upstream's answer carry too much beside the body")

    def _complete(self) -> None:
        self.state = COMPLETE
        self._parser = None

    def discard(self) -> None:
        """Let go of the parser, which refers back to this object."""
        self._parser = None

    def on_message_begin(self) -> None:
        if self.state == COMPLETE:
            raise ValueError("a message after the last chunk")  # or the parser would go on with it

    def on_status(self, reason: bytes) -> None:
        if self.state == HEAD:
            self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.state == HEAD:
            if value[-1:] <= b" ":  # llhttp leaves blanks at the end; RFC 9112, 5.1: they are not part of the value
                value = value.rstrip(b" \t")
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._head_read = True

    def on_message_complete(self) -> None:
        if self.state == CHUNKED:
            self.state = COMPLETE
