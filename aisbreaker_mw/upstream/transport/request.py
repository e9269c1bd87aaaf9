"""Requests to an upstream, encoded without I/O (RFC 9112, 3)."""

from collections.abc import AsyncIterator
from functools import lru_cache
from typing import TypeAlias

import httpx

from ...http1.fields import RawHeaders
from ...http1.grammar import is_token
from ...http1.heads import MalformedHead, by_name, lower_names, read_framing, read_options, write_head

TimeoutExtension: TypeAlias = dict[str, float | None]
"""Seconds by httpx's names: `connect`, `pool`, `read`, `write`. Missing or None means no limit. It is read for every wait."""

_VISIBLE = bytes(range(0x21, 0x7F)) + bytes(range(0x80, 0x100))


@lru_cache(maxsize=64)
def encode_method(method: str) -> bytes:
    """
    Return the bytes of a method.

    Raises:
        httpx.LocalProtocolError: it is no token (RFC 9110, 9.1), or it is CONNECT, whose response has no end.
    """
    encoded = method.encode("utf-8", "replace")
    if not is_token(encoded) or method.upper() == "CONNECT":
        raise httpx.LocalProtocolError("the method cannot be sent")
    return encoded


class OutgoingRequest:
    """
    One request, encoded: its head, and the framing of its body.

    Args:
        method: HTTP method, but CONNECT.
        target: request target, written byte for byte.
        headers: headers, written in their order and case. Nothing is added.
        body: body, whole or as it comes. It is read only where the headers frame one (RFC 9112, 6.3): by `Content-Length` or by
            `Transfer-Encoding: chunked`.

    Raises:
        httpx.LocalProtocolError: the request cannot be written so that the upstream reads it as meant.
    """

    __slots__ = ("_remaining", "body", "close", "head", "pending", "pending_bytes", "response_has_body", "sent")

    def __init__(self, method: str, target: bytes, headers: RawHeaders, body: bytes | httpx.AsyncByteStream) -> None:
        if not target or target.translate(None, _VISIBLE):
            raise httpx.LocalProtocolError("the request target cannot be sent")
        try:
            self.head = write_head(b"%b %b HTTP/1.1" % (encode_method(method), target), headers)
            fields = by_name(lower_names(headers))
            length, chunked = read_framing(fields)
        except MalformedHead:
            raise httpx.LocalProtocolError("a header cannot be sent, or the framing is ambiguous or not supported") from None
        connection = fields.get(b"connection")
        self.close = connection is not None and b"close" in read_options(connection)
        self.response_has_body = method != "HEAD"
        self._remaining = length
        self.body: AsyncIterator[bytes] | None = None
        """The rest of a body that comes piece by piece, else None."""
        self.pending = [self.head]
        """Bytes that the connection has not been given yet."""
        self.pending_bytes = 0
        """Bytes of the body in `pending`, without framing."""
        self.sent = False
        """Whether the connection has been given bytes of the body."""
        if length is None and not chunked:
            return
        if isinstance(body, bytes):
            self.add(body)
            self.finish()
        else:
            self.body = aiter(body)

    @property
    def fulfilled(self) -> bool:
        """Whether every byte that Content-Length promises is pending or sent."""
        return self._remaining == 0

    def add(self, piece: bytes) -> None:
        """
        Frame a piece of the body.

        Raises:
            httpx.LocalProtocolError: the body is longer than its Content-Length.
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
            httpx.LocalProtocolError: the body is shorter than its Content-Length.
        """
        if self._remaining is None:
            self.pending.append(b"0\r\n\r\n")
        elif self._remaining:
            raise httpx.LocalProtocolError("the request's body is shorter than its Content-Length")

    def take(self) -> list[bytes]:
        """Take the pending bytes, to write them now."""
        pending, self.pending = self.pending, []
        self.sent = self.sent or self.pending_bytes > 0
        self.pending_bytes = 0
        return pending

    def rewind(self) -> None:
        """Make the head pending again, for another connection. None of the body may have been sent."""
        if not self.pending or self.pending[0] is not self.head:
            self.pending.insert(0, self.head)

    async def aclose(self) -> None:
        """Let the body's iterator clean up."""
        aclose = getattr(self.body, "aclose", None)
        if aclose is not None:
            await aclose()
