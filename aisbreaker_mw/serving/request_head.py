"""Requests of HTTP/1.1, decoded without I/O (RFC 9112): whole heads, and chunked bodies."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from ..exceptions import HeadTooLarge, InvalidRequest, MethodUnknown, VersionUnsupported
from ..http1.grammar import TOKEN
from ..http1.heads import FRAMING, MalformedHead, by_name, read_fields, read_framing, read_options

__all__ = ["ChunkedDecoder", "Limits", "RequestHead"]


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Limits of one client, before the app is asked.

    Args:
        headers: most fields in a request's head, and most in its trailer section.
        head_bytes: largest head, in bytes, request line and line ends included; also the largest trailer section.
        head_timeout: seconds from a head's first byte to its last. The first head's time runs from the connection's opening.
        body_rate: least bytes of body per second, on average over each `body_grace`.
        body_grace: seconds over which the rate is averaged. Only time in which the server reads counts.
        linger: seconds for which the bytes of a refused client are still read and dropped, so that the refusal reaches it.
    """

    headers: int = 100
    head_bytes: int = 65_536
    head_timeout: float = 10.0
    body_rate: float = 1024.0
    body_grace: float = 30.0
    linger: float = 2.0


_REQUEST_LINE = re.compile(rb"([A-Z][A-Z-]*) (/[!\"$-~]*) HTTP/1\.([01])")
_ANY_LINE = re.compile(rb"(" + TOKEN.encode("ascii") + rb") [!-~]+ HTTP/([0-9]\.[0-9])")
# RFC 9112, 3.2.2, the absolute-form, without user information and fragment.
_ABSOLUTE_LINE = re.compile(rb"([A-Z][A-Z-]*) (?i:https?)://([A-Za-z0-9_.:\[\]-]+)([/?][!\"$-~]*)? HTTP/1\.([01])")
# RFC 3986, 3.2.2, without percent-encoding and sub-delims, which no name in DNS has.
_HOST = re.compile(rb"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]*)|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ONCE = (b"host", *FRAMING)
# The HTTP Method Registry (RFC 9110, 16.1.1) without CONNECT, whose target is no path.
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
        data: bytes of the head, including the empty line.
        limits: the limits; only `headers` is checked here.

    Raises:
        InvalidRequest: the head is malformed, its framing is ambiguous, or its target is no path and no URL of this Host.
        MethodUnknown: the method is no registered one.
        VersionUnsupported: the version is above 1.1.
        HeadTooLarge: the head has too many fields.
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
        authority = None
        if line is not None and line[1] in _METHODS:
            method, self.target, minor = line.groups()
        else:
            method, authority, self.target, minor = _read_absolute_line(first)
        """Path and query as sent; begins with a slash."""
        self.method = _METHODS[method]
        """Upper case."""
        self.http_version = "1.1" if minor == b"1" else "1.0"
        self.keep_alive = minor == b"1"
        self.expects_continue = False
        self.upgrade: bytes | None = None
        """Protocol that the client asks to change to, in lower case (RFC 9110, 7.8)."""
        self.body_length: int | None = 0
        """Bytes of the body, or None for a chunked one."""
        if len(lines) > limits.headers:
            raise HeadTooLarge
        try:
            self.headers = read_fields(lines)
            """Names in lower case, in the order sent."""
            self._read_special()
            if authority is not None:
                self._check_authority(authority)
        except MalformedHead:
            raise InvalidRequest("The request's head is malformed.") from None

    @property
    def opens_websocket(self) -> bool:
        """
        Whether this is a WebSocket's opening handshake (RFC 6455, 4.1: GET and HTTP/1.1), which has no body.

        In any other request the Upgrade header may be ignored (RFC 9110, 7.8).
        """
        return self.upgrade == b"websocket" and self.method == "GET" and self.http_version == "1.1" and self.body_length == 0

    def _read_special(self) -> None:
        """Read the fields that are for the server: Host, the body's framing, Expect, Connection."""
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
            raise InvalidRequest("HTTP/1.0 has no chunked bodies.")  # RFC 9112, 6.1: such framing is faulty
        self.body_length = None if chunked else length or 0
        if b"expect" in fields:
            # RFC 9110, 10.1.1: ignored in an HTTP/1.0 request.
            self.expects_continue = fields[b"expect"].lower() == b"100-continue" and self.http_version == "1.1"
        connection = fields.get(b"connection")
        if connection is not None and connection != b"keep-alive":  # sent by nearly every client, and HTTP/1.1's default
            options = read_options(connection)
            self.keep_alive = self.keep_alive and b"close" not in options
            if b"upgrade" in options and b"upgrade" in fields:
                self.upgrade = fields[b"upgrade"].lower()

    def _check_authority(self, authority: bytes) -> None:
        # RFC 9112, 3.2.2, lets the authority replace Host. Two that differ would be read in two ways.
        hosts = [value for name, value in self.headers if name == b"host"]
        if not hosts or hosts[0].lower() != authority.lower():
            raise InvalidRequest("The request target must be a path, or a URL with the Host header's authority.")


def _read_absolute_line(line: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return method, authority, path with query, and minor version of a request line in absolute-form (RFC 9112, 3.2.2)."""
    read = _ANY_LINE.fullmatch(line)
    if read is None or read[2] < b"1.0":
        raise InvalidRequest("The request line is malformed.")
    if read[2] > b"1.1":
        raise VersionUnsupported
    if read[1] not in _METHODS and read[1] != b"CONNECT":
        raise MethodUnknown
    absolute = _ABSOLUTE_LINE.fullmatch(line)
    # RFC 9112, 3.2.4: OPTIONS with a URL without a path asks about the server as a whole.
    if absolute is None or read[1] == b"CONNECT" or (read[1] == b"OPTIONS" and not absolute[3]):
        raise InvalidRequest("The request target must be a path, or a URL with the Host header's authority.")
    method, authority, target, minor = absolute.groups()
    if not target or target[:1] == b"?":
        target = b"/" + (target or b"")  # RFC 9112, 3.2.1: an empty path is sent as "/"
    return method, authority, target, minor


# RFC 9112, 7.1.1, without the "bad whitespace" around names and values: parsers differ on it, and nobody sends it.
_EXTENSION_VALUE = rb"(?:%b|\"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*\")" % TOKEN.encode("ascii")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;%b(?:=%b)?)*" % (TOKEN.encode("ascii"), _EXTENSION_VALUE))
# RFC 9110, 6.5.1: fields that frame a message must not be trailers.
_TRAILER_LINE = re.compile(
    rb"(?!(?i:content-length|transfer-encoding):)" + TOKEN.encode("ascii") + rb":[\t\x20-\x7e\x80-\xff]*"
)
_CHUNK_LINE_BYTES = 1024
"""Longest line, in bytes, of a chunk's size and extensions."""
_LINES_PER_TURN = 1024
"""Most lines read at once. A body in chunks of one byte would keep the event loop busy for half a second."""


class ChunkedDecoder:
    """
    Decodes a chunked body (RFC 9112, 7.1). The form of chunk extensions and trailers is checked; then they are dropped.

    Args:
        limits: the limits; `headers` and `head_bytes` bound the trailer section.
    """

    __slots__ = ("_left", "_limits", "_line", "_state", "_trailer_bytes", "_trailers", "done", "more", "rest")

    def __init__(self, limits: Limits) -> None:
        self.done = False
        """Whether the body has ended."""
        self.rest = b""
        """Bytes after the body's end."""
        self.more = False
        """Whether bytes wait for another turn, `feed(b"")`."""
        self._limits = limits
        self._line = b""  # an incomplete line
        self._left = 0  # bytes of the chunk's data still to come
        # The class's function: a bound method would refer back to this object, and only the garbage collector would free it.
        self._state: Callable[[ChunkedDecoder, bytes], None] = ChunkedDecoder._size
        self._trailers = 0
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """
        Take bytes that arrived and return the part of the body in them, up to 1024 lines of framing at a time.

        Raises:
            InvalidRequest: the framing is malformed, or a chunk's extensions are too long.
            HeadTooLarge: the trailer section is too large.
        """
        pieces: list[bytes] = []
        position = lines = 0
        if self._line:
            data = self._line + data
            self._line = b""
        self.more = False
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
            if lines == _LINES_PER_TURN:
                self._line = data[position:]
                self.more = True
                break
            lines += 1
            self._state(self, data[position:end])
            position = end + 2
        if self.done:
            self.rest = data[position:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _check_line(self, line: bytes) -> None:
        """Refuse an incomplete line that can't become a good one."""
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
