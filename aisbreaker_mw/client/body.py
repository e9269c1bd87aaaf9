"""The body of the client's request: streamed, bounded, and read only where a token names engines."""

from collections.abc import Callable, Mapping
from typing import Self

import httpx
from starlette.types import Message, Receive, Scope

from ..exceptions import ClientDisconnected, InvalidRequest, PayloadTooLarge, RequestError
from ..http1.heads import MalformedHead, read_length

_PIECE = 256 * 1024  # bytes of a collected body that are passed on at once
SHORT_BODY = 16 * 1024
"""Bytes up to which a body is collected before a connection to its service is taken: it fits into one write, and a client that
sends it slowly holds no connection meanwhile."""


class RequestBody(httpx.AsyncByteStream):
    """
    The body of the client's request: passed on piece by piece, as it comes.

    Args:
        receive: of the request's ASGI call.
        limit: bytes; one more is 413.
    """

    __slots__ = (
        "_buffered",
        "_kept",
        "_kept_limit",
        "_length",
        "_limit",
        "_receive",
        "_received",
        "_whole",
        "exhausted",
        "present",
        "reading",
    )

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._received = 0
        self._length = 0
        self._whole: bytes | None = None
        self._buffered = bytearray()
        self._kept: bytearray | None = None
        self._kept_limit = 0
        self.present = True
        """Whether the request has a body, be it received or not."""
        self.exhausted = False
        """Whether the last byte has been received."""
        self.reading = False
        """Whether what is still to come is the upstream's, which takes it or will: from the sending to the answer's head."""

    def frame(self, scope: Scope, fields: Mapping[bytes, bytes]) -> None:
        """
        Learn from a request's head what of a body is to come; it is exhausted from the start where there is none.

        Args:
            scope: the request's.
            fields: its headers by name.

        Raises:
            InvalidRequest: the Content-Length is malformed.
            PayloadTooLarge: it is over the limit.
        """
        length = fields.get(b"content-length")
        if length is not None:
            try:
                self._length = read_length(length)
            except MalformedHead:
                raise InvalidRequest("The Content-Length is malformed.") from None
            if self._length > self._limit:
                raise PayloadTooLarge
            self.exhausted = self._length == 0
        elif b"transfer-encoding" not in fields:
            # From HTTP/2 on a body needs neither header.
            self.exhausted = scope.get("http_version", "1.1") < "2" or scope["method"] in ("GET", "HEAD", "OPTIONS")
        self.present = not self.exhausted

    async def receive(self) -> Message:
        """
        Return the next ASGI message, as `receive` would.

        Raises:
            PayloadTooLarge: the body has passed the limit.
        """
        if self._buffered:
            body = bytes(self._buffered[:_PIECE])
            del self._buffered[:_PIECE]
            return {"type": "http.request", "body": body, "more_body": bool(self._buffered) or not self.exhausted}
        message = await self._receive()
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > self._limit:
                raise PayloadTooLarge
            self.exhausted = not message.get("more_body", False)
        return message

    async def whole(self) -> bytes | None:
        """
        Return all of the body where it is short and its length is known, which can be asked for again; None for any other.

        Raises:
            InvalidRequest: it has not that length.
            PayloadTooLarge: the body has passed the limit.
            ClientDisconnected: the client went away.
        """
        if self._whole is None and 0 < self._length <= SHORT_BODY and (self._buffered or not self.exhausted):
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            self._whole = bytes(message.get("body", b""))  # the same object, where it is bytes
            if self._buffered or not self.exhausted:  # mostly it comes in one piece
                self._whole += b"".join([piece async for piece in self])
            if len(self._whole) != self._length:
                raise InvalidRequest("The body is not as long as its Content-Length.")
        return self._whole

    async def collect(self, limit: int, too_large: Callable[[], RequestError]) -> bytearray:
        """
        Return the whole body, which can still be streamed afterwards: it is this very object, and shrinks while it is.

        Args:
            limit: bytes.
            too_large: makes the error for a body that has more.

        Raises:
            RequestError: what `too_large` made.
            ClientDisconnected: the client went away.
        """
        collected, self._buffered = self._buffered, bytearray()
        while not self.exhausted:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            collected += message.get("body", b"")
            if len(collected) > limit:
                raise too_large()
        self._buffered = collected
        return collected

    def keep(self, limit: int) -> None:
        """
        Hold on to what is passed on from now, so that it can be sent again.

        Args:
            limit: bytes; a longer body is not held.
        """
        self._kept, self._kept_limit = bytearray(), limit

    def rewind(self) -> bool:
        """Begin anew, where the body is complete and all of it was held; otherwise return False."""
        if self._whole is not None:
            self._buffered[:], self._whole = self._whole, None
            return True
        if self._kept is None or not self.exhausted or self.reading:
            return False
        self._buffered[:0] = self._kept
        self._kept.clear()
        return True

    # Not a generator: asyncio keeps a list of those, and a request has to get along without them.

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while self._buffered or not self.exhausted:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            body = bytes(message.get("body", b""))  # the same object, where it is bytes
            if body:
                if self._kept is not None:
                    self._hold(body)
                return body
        raise StopAsyncIteration

    def _hold(self, piece: bytes) -> None:
        assert self._kept is not None  # noqa: S101 - asked by the caller
        if len(self._kept) + len(piece) > self._kept_limit:
            self._kept = None
        else:
            self._kept += piece
