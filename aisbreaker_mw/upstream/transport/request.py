"""Requests, encoded without I/O (RFC 9112, 3)."""

from collections.abc import AsyncIterator
from functools import lru_cache

import httpx

from ...http1.fields import RawHeaders
from ...http1.heads import MalformedHead, by_name, is_token, lower_names, read_framing, read_options, write_head

_VISIBLE = bytes(range(0x21, 0x7F)) + bytes(range(0x80, 0x100))


@lru_cache(maxsize=64)
def encode_method(method: str) -> bytes:
    """
    Return a method as it is written.

    Raises:
        httpx.LocalProtocolError: it is no token (RFC 9110, 9.1), or CONNECT, whose answer has no end.
    """
    encoded = method.encode("utf-8", "replace")
    if not is_token(encoded) or method.upper() == "CONNECT":
        raise httpx.LocalProtocolError("the method cannot be sent")
    return encoded


class OutgoingRequest:
    """
    One request, encoded: its head, and how its body is framed.

    Args:
        method: a token; CONNECT is refused.
        target: request target, written byte for byte.
        headers: written in order, case as given; nothing is added.
        body: the body, whole or as it comes. It is read only where the headers frame one (RFC 9112, 6.3): by `Content-Length`
            or by `Transfer-Encoding: chunked`.

    Raises:
        httpx.LocalProtocolError: the request cannot be written so that it is read as it is meant.
    """

    __slots__ = ("_remaining", "answer_has_body", "body", "close", "head", "pending", "pending_bytes", "sent")

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
        self.answer_has_body = method != "HEAD"
        self._remaining = length
        self.body: AsyncIterator[bytes] | None = None
        """What of the body is still to come, if any is."""
        self.pending = [self.head]
        """Bytes that have not been handed to a connection yet."""
        self.pending_bytes = 0
        self.sent = False
        """Whether bytes of the body have been handed to a connection."""
        if length is None and not chunked:
            return
        if isinstance(body, bytes):
            self.add(body)
            self.finish()
        else:
            self.body = aiter(body)

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
