"""
HTTP/1.1 messages (RFC 9112) without I/O: a request is encoded, an answer is decoded.

llhttp (behind httptools) splits a head into its fields and takes chunks apart. In its strict mode it refuses bare LF, bare CR,
NUL, obs-fold, space before a colon, malformed chunk sizes and Content-Length beside Transfer-Encoding. Everything it still lets
through that could make two parties disagree about where an answer ends is refused here:

- anything before the status line; versions other than 1.0 and 1.1; status codes outside 100 to 599; control characters in the
  reason
- a Transfer-Encoding that is not exactly `chunked`
- a head over 64 KiB, as many bytes of chunk extension or trailer section without a byte of body, more than 16 interim answers

Bodies of known length and bodies that end with the connection never pass through the parser.
"""

import re
from collections.abc import AsyncIterator

import httptools
import httpx

RawHeaders = list[tuple[bytes, bytes]]

MAX_HEAD = 65_536
"""Bytes of an answer's head, status line and line ends included; of what a chunked body may carry between two bytes of body."""

MAX_INTERIM = 16
"""1xx answers before the final one."""

_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"[!-~\x80-\xff]+")
_TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CONTROLS = bytes(range(9)) + bytes(range(10, 32)) + b"\x7f"

HEAD, SIZED, CHUNKED, UNTIL_CLOSE, COMPLETE = range(5)
"""What an `AnswerReader` reads next."""


class OutgoingRequest:
    """
    One request, encoded: its head, and how its body is framed.

    Args:
        method: a token; CONNECT is refused.
        target: request target, written byte for byte.
        headers: written in order, case as given; nothing is added.
        stream: the body. It is read only where the headers frame one (RFC 9112, 6.3): by `Content-Length` or by
            `Transfer-Encoding: chunked`.

    Raises:
        httpx.LocalProtocolError: the request cannot be written so that it is read as it is meant.
    """

    __slots__ = ("_remaining", "answer_has_body", "body", "chunked", "close", "head", "pending", "pending_bytes", "sent")

    def __init__(self, method: str, target: bytes, headers: RawHeaders, stream: httpx.AsyncByteStream) -> None:
        if method == "CONNECT" or not _METHOD.fullmatch(method):
            raise httpx.LocalProtocolError("the method cannot be sent")
        if not _TARGET.fullmatch(target):
            raise httpx.LocalProtocolError("the request target cannot be sent")
        self.chunked = False
        self.close = False
        length: int | None = None
        lines = [b"%b %b HTTP/1.1" % (method.encode("ascii"), target)]
        for name, value in headers:
            lines.append(b"%b: %b" % (name, value))
            size = len(name)
            if size == 14 and name.lower() == b"content-length":
                if length is not None or self.chunked or not value.isdigit():
                    raise httpx.LocalProtocolError("the request's framing is ambiguous")
                length = int(value)
            elif size == 17 and name.lower() == b"transfer-encoding":
                if length is not None or self.chunked or value.lower() != b"chunked":
                    raise httpx.LocalProtocolError("the request's framing is ambiguous")
                self.chunked = True
            elif size == 10 and name.lower() == b"connection":
                self.close = self.close or b"close" in _tokens(value)
        lines += (b"", b"")
        self.head = head = b"\r\n".join(lines)
        breaks = len(lines) - 1
        if (
            head.count(b"\r") != breaks
            or head.count(b"\n") != breaks
            or b"\0" in head
            or b"" in (names := [name for name, _ in headers])
            or b"".join(names).translate(None, _TOKEN_BYTES)
        ):
            raise httpx.LocalProtocolError("a header cannot be sent")
        self.answer_has_body = method != "HEAD"
        self._remaining = length
        self.body: AsyncIterator[bytes] | None = aiter(stream) if self.chunked or length is not None else None
        self.pending = [head]
        """Bytes that have not been handed to a connection yet."""
        self.pending_bytes = 0
        self.sent = False
        """Whether bytes of the body have been handed to a connection."""

    @property
    def fulfilled(self) -> bool:
        """Whether the last byte that Content-Length promised is pending or sent."""
        return self._remaining == 0

    def add(self, piece: bytes) -> None:
        """
        Frame a piece of the body.

        Raises:
            httpx.LocalProtocolError: it goes beyond Content-Length.
        """
        size = len(piece)
        if not size:
            return  # an empty chunk would end the body
        if self._remaining is None:
            self.pending += (b"%x\r\n" % size, piece, b"\r\n")
        else:
            self._remaining -= size
            if self._remaining < 0:
                raise httpx.LocalProtocolError("the request's body is longer than its Content-Length")
            self.pending.append(piece)
        self.pending_bytes += size

    def finish(self) -> None:
        """
        Frame the end of the body.

        Raises:
            httpx.LocalProtocolError: it is short of its Content-Length.
        """
        if self._remaining is None:
            self.pending.append(b"0\r\n\r\n")
        elif self._remaining:
            raise httpx.LocalProtocolError("the request's body is shorter than its Content-Length")

    def take(self) -> list[bytes]:
        """Return what is to be written now."""
        pending, self.pending = self.pending, []
        self.sent = self.sent or self.pending_bytes > 0
        self.pending_bytes = 0
        return pending

    def rewind(self) -> None:
        """Write the head anew, for another connection. Only a request of whose body nothing has been sent can do so."""
        if not self.pending or self.pending[0] is not self.head:
            self.pending.insert(0, self.head)

    async def aclose(self) -> None:
        """Let the body's iterator clean up."""
        aclose = getattr(self.body, "aclose", None)
        if aclose is not None:
            await aclose()


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
            if not self._head_bytes and data[0] != 72:  # llhttp skips line ends, and knows protocols that don't begin with H
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
            self.status = parser.get_status_code()
            if self.status >= 200:
                self.version = parser.get_http_version()
                self._begin_body(rest)
                return
            # RFC 9110, 15.2: any number of interim answers precedes the final one. 101 answers an Upgrade, which nobody sent.
            self._interim += 1
            if self.status < 100 or self.status == 101 or self._interim > MAX_INTERIM:
                raise httpx.RemoteProtocolError("the upstream sent an interim answer that was not asked for")
            self.headers.clear()
            self.reason = b""
            self._head_bytes = 0
            self._head_read = False
            data = rest

    def _begin_body(self, data: bytes) -> None:
        """RFC 9112, 6.3, in its order."""
        if self.status > 599 or self.version not in ("1.1", "1.0") or self.reason.translate(None, _CONTROLS) != self.reason:
            raise httpx.RemoteProtocolError("the head of the upstream's answer is malformed")
        self.keep_alive = self.version == "1.1"
        length: int | None = None
        chunked = False
        for index, (name, value) in enumerate(self.headers):
            if value.endswith((b" ", b"\t")):
                value = value.rstrip(b" \t")  # llhttp leaves it; RFC 9112, 5.1: not part of the value
                self.headers[index] = (name, value)
            size = len(name)
            if size == 14 and name.lower() == b"content-length":
                if length is not None or chunked or not value.isdigit():
                    raise httpx.RemoteProtocolError("the framing of the upstream's answer is ambiguous")
                length = int(value)
            elif size == 17 and name.lower() == b"transfer-encoding":
                if length is not None or chunked or value.lower() != b"chunked":
                    raise httpx.RemoteProtocolError("the framing of the upstream's answer is ambiguous")
                chunked = True
            elif size == 10 and name.lower() == b"connection":
                tokens = _tokens(value)
                if b"close" in tokens:
                    self.keep_alive = False
                elif self.version == "1.0" and b"keep-alive" in tokens:
                    self.keep_alive = True
        # 1.
        if not self._has_body or self.status in (204, 304):
            if self.status == 204 and (length or chunked):
                self.keep_alive = False  # RFC 9110, 8.6 forbids the field; bytes of a body may be on their way
            self._complete()
        # 4., and 6.1: chunked in a message of HTTP/1.0 has faulty framing
        elif chunked:
            self.keep_alive = self.keep_alive and self.version == "1.1"
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
        self.buffered += len(data)
        self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
        if self.state == COMPLETE:
            self._parser = None
            # Between two messages the parser skips line ends in silence, but there is only one empty line at the end of this.
            if self._tail[-4:] != b"\r\n\r\n" or self._tail[:1] in b"\r\n":
                self.surplus = True
        elif len(self.pieces) > pieces:
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
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._head_read = True

    def on_message_complete(self) -> None:
        if self.state == CHUNKED:
            self.state = COMPLETE


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip().lower() for token in value.split(b",")]
