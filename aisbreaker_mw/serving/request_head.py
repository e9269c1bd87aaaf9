"""Requests of HTTP/1.1 without I/O (RFC 9112): a whole head is read strictly, a chunked body is taken apart."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from ..exceptions import HeadTooLarge, InvalidRequest
from ..http1.heads import FRAMING, MalformedHead, by_name, read_fields, read_framing, read_options

__all__ = ["ChunkedDecoder", "Limits", "RequestHead"]


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


_REQUEST_LINE = re.compile(rb"([A-Z][A-Z-]*) (/[!\"$-~]*) HTTP/1\.([01])")
_OTHER_TARGET = re.compile(rb"[A-Z][A-Z-]* [!-~]+ HTTP/1\.[01]")
# RFC 3986, 3.2.2, without the percent-encoding and sub-delims that no name in DNS has.
_HOST = re.compile(rb"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]*)|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ONCE = (b"host", *FRAMING)
# The HTTP Method Registry (RFC 9110, 16.1.1), without CONNECT, which is no request for a path.
_METHODS = {
    name.encode("ascii"): name
    for name in (
        *("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "ACL", "BASELINE-CONTROL", "BIND"),
        *("CHECKIN", "CHECKOUT", "COPY", "LABEL", "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL"),
        *("MKREDIRECTREF", "MKWORKSPACE", "MOVE", "ORDERPATCH", "PROPFIND", "PROPPATCH", "REBIND", "REPORT", "SEARCH"),
        *("UNBIND", "UNCHECKOUT", "UNLINK", "UNLOCK", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL"),
    )
}


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
        # RFC 9112, 2.2: "SHOULD ignore at least one empty line (CRLF) received prior to the request-line".
        if data[:2] == b"\r\n":
            data = data[2:]
        first, *lines = data[:-4].split(b"\r\n")
        line = _REQUEST_LINE.fullmatch(first)
        if line is None or line[1] not in _METHODS:
            _refuse_line(first)
        method, self.target, minor = line.groups()
        """Path and query as sent; begins with a slash."""
        self.method = _METHODS[method]
        """Upper case."""
        self.http_version = "1.1" if minor == b"1" else "1.0"
        self.keep_alive = minor == b"1"
        self.expects_continue = False
        self.upgrade: bytes | None = None
        """Protocol that the client would like to change to, in lower case (RFC 9110, 7.8)."""
        self.body_length: int | None = 0
        """Bytes of body; None for a chunked one."""
        if len(lines) > limits.headers:
            raise HeadTooLarge
        try:
            self.headers = read_fields(lines)
            """Names in lower case, in the order sent."""
            self._read_special()
        except MalformedHead:
            raise InvalidRequest("The request's head is malformed.") from None

    @property
    def opens_websocket(self) -> bool:
        """
        Whether this is an opening handshake (RFC 6455, 4.1: GET, and HTTP/1.1 at least), which has no body.

        The Upgrade header of any other request may be ignored (RFC 9110, 7.8).
        """
        return self.upgrade == b"websocket" and self.method == "GET" and self.http_version == "1.1" and self.body_length == 0

    def _read_special(self) -> None:
        """Read what the server itself has to know: that there is one Host, and where the body ends."""
        fields = by_name(self.headers, _ONCE)
        host = fields.get(b"host")
        if host is None:
            if self.http_version == "1.1":
                raise InvalidRequest("The request needs one Host header.")
        elif not _HOST.fullmatch(host):
            # RFC 9112, 3.2: 400 for a request "that contains more than one Host header field line or a Host header field
            # with an invalid field value".
            raise InvalidRequest("The Host header is malformed.")
        length, chunked = read_framing(fields)
        if chunked and self.http_version == "1.0":
            raise InvalidRequest("HTTP/1.0 has no chunked bodies.")  # RFC 9112, 6.1: the framing is faulty
        self.body_length = None if chunked else length or 0
        if b"expect" in fields:
            # RFC 9110, 10.1.1: to be ignored in an HTTP/1.0 request.
            self.expects_continue = fields[b"expect"].lower() == b"100-continue" and self.http_version == "1.1"
        connection = fields.get(b"connection")
        if connection is not None and connection != b"keep-alive":  # what nearly every client says, and HTTP/1.1 anyway
            options = read_options(connection)
            self.keep_alive = self.keep_alive and b"close" not in options
            if b"upgrade" in options and b"upgrade" in fields:
                self.upgrade = fields[b"upgrade"].lower()


def _refuse_line(line: bytes) -> NoReturn:
    if _OTHER_TARGET.fullmatch(line):
        raise InvalidRequest("The request target must be a path.")
    raise InvalidRequest("The request line is malformed.")


# Without the "bad whitespace" before an extension: parsers differ on it, and nobody sends it.
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110, 5.6.2
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
        # Of the class: a method of its own would refer back to this, and only the garbage collector free it.
        self._state: Callable[[ChunkedDecoder, bytes], None] = ChunkedDecoder._size
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
            self._state(self, data[position:end])
            position = end + 2
        if self.done:
            self.rest = data[position:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _check_line(self, line: bytes) -> None:
        """Refuse an incomplete line as soon as it can't become a good one."""
        if b"\n" in line or b"\r" in line[:-1]:
            _refuse_chunks()
        if self._state == ChunkedDecoder._after_data:
            if line != b"\r":
                _refuse_chunks()
        elif self._state == ChunkedDecoder._size:
            if len(line) > _CHUNK_LINE_BYTES + 1:
                _refuse_chunks()
        elif self._trailer_bytes + len(line) > self._limits.head_bytes:
            raise HeadTooLarge

    def _size(self, line: bytes) -> None:
        match = _CHUNK_LINE.fullmatch(line)
        if match is None or len(line) > _CHUNK_LINE_BYTES:
            _refuse_chunks()
        self._left = int(match[1], 16)
        self._state = ChunkedDecoder._after_data if self._left else ChunkedDecoder._trailer

    def _after_data(self, line: bytes) -> None:
        if line:
            _refuse_chunks()
        self._state = ChunkedDecoder._size

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
