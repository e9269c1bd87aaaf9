"""The body of the client's request: streamed, and bounded."""

from collections.abc import Callable, Mapping
from typing import Self

import httpx
from starlette.types import Message, Receive, Scope

from ..exceptions import ClientDisconnected, InvalidRequest, PayloadTooLarge, RequestError, TooMuchBuffered
from ..http1.heads import MalformedHead, read_length
from .body_memory import BodyMemory, HeldBytes, ReadAhead
from .exchange import Asker, Exchange

_PIECE = 256 * 1024
"""Bytes of a collected body that are passed on at once."""
SHORT_BODY = 16 * 1024
"""
Longest body, in bytes, that is collected before a connection to its service is taken. It fits into one write, and a client that
sends it slowly holds no connection.
"""
_MOST_AHEAD = 16 << 20
"""Most bytes of one body that are received before anybody takes them."""


class RequestBody(httpx.AsyncByteStream):
    """
    The body of the client's request, passed on piece by piece.

    Args:
        receive: `receive` of the request's ASGI call.
        limit: largest body, in bytes; a longer one is 413.
        memory: memory for the parts of it that are held; unbounded where None.
        exchange: the request's exchange, which tells who holds them; nobody in particular where None.
    """

    __slots__ = (
        "_ahead",
        "_buffered",
        "_exchange",
        "_held",
        "_kept",
        "_kept_limit",
        "_length",
        "_limit",
        "_memory",
        "_receive",
        "_whole",
        "exhausted",
        "present",
        "reading",
        "received",
        "waiting",
    )

    def __init__(
        self, receive: Receive, limit: int, memory: BodyMemory | None = None, exchange: Exchange | None = None
    ) -> None:
        self._receive = receive
        self._limit = limit
        self.received = 0
        """Bytes received."""
        self._length = 0
        self._whole: bytes | None = None
        self._buffered = bytearray()
        self._kept: bytearray | None = None
        self._kept_limit = 0
        self._ahead: ReadAhead | None = None
        self._memory = memory
        self._exchange = exchange
        self._held: HeldBytes | None = None
        self.present = True
        """Whether the request has a body, received or not."""
        self.exhausted = False
        """Whether the last byte has been received."""
        self.reading = False
        """True while the transport owns `receive`: from sending the request to the head of the response."""
        self.waiting = False
        """Whether somebody waits for the client to send more."""

    def frame(self, scope: Scope, fields: Mapping[bytes, bytes]) -> None:
        """
        Read the body's framing from the head. A request without a body is exhausted at once.

        Args:
            scope: ASGI scope of the request.
            fields: headers of the request by name.

        Raises:
            InvalidRequest: the Content-Length is malformed.
            PayloadTooLarge: the Content-Length is over the limit.
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
            # Since HTTP/2 a body needs neither header.
            self.exhausted = scope.get("http_version", "1.1") < "2" or scope["method"] in ("GET", "HEAD", "OPTIONS")
        self.present = not self.exhausted

    async def receive(self) -> Message:
        """
        Return the next ASGI message, from the collected body or from the client.

        Raises:
            PayloadTooLarge: the body is over the limit.
        """
        if self._buffered:
            return self._take()
        if self._ahead is not None:
            return await self._receive_ahead(self._ahead)
        self.waiting = True
        try:
            message = await self._receive()
        finally:
            self.waiting = False
        if message["type"] == "http.request":  # as in _account, without the call
            self.received += len(message.get("body", b""))
            if self.received > self._limit:
                raise PayloadTooLarge
            self.exhausted = not message.get("more_body", False)
        return message

    def _account(self, message: Message) -> None:
        """Count the bytes of a message from the client."""
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            if self.received > self._limit:
                raise PayloadTooLarge
            self.exhausted = not message.get("more_body", False)

    def _take(self) -> Message:
        body = bytes(self._buffered[:_PIECE])
        del self._buffered[:_PIECE]
        if self._ahead is not None:
            self._ahead.count(-len(body))
        return {"type": "http.request", "body": body, "more_body": bool(self._buffered) or not self.exhausted}

    @property
    def short(self) -> bool:
        """Whether the body is collected before a connection is taken."""
        return 0 < self._length <= SHORT_BODY

    @property
    def client_gone(self) -> bool:
        """Whether `read_ahead` has seen the client disconnect."""
        return self._ahead is not None and self._ahead.client_gone

    async def read_ahead(self) -> None:
        """
        Receive the body before it is asked for, to see whether the client is still there.

        From now on `receive` gives what arrives here. Returns when the client has gone (`client_gone`), when the body is whole,
        or when the service wants no more of it.
        """
        if not self.reading or self.exhausted:
            return
        ahead = self._ahead = ReadAhead(self._memory or BodyMemory(2 * _MOST_AHEAD), self._asker)
        while self.reading and not self.exhausted and not ahead.client_gone and ahead.failure is None:
            if self._buffered and (len(self._buffered) >= _MOST_AHEAD or not ahead.has_room):
                ahead.changed.clear()
                await ahead.changed.wait()
                continue
            try:
                message = await self._receive()
                self._account(message)
            except Exception as error:
                ahead.failure = error
            else:
                ahead.client_gone = message["type"] == "http.disconnect"
                self._buffered += message.get("body", b"")
                ahead.count(len(message.get("body", b"")))
            ahead.changed.set()

    async def _receive_ahead(self, ahead: ReadAhead) -> Message:
        """Return the next message of what `read_ahead` receives."""
        self.waiting = True
        try:
            while not (self._buffered or self.exhausted or ahead.client_gone or ahead.failure):
                ahead.changed.clear()
                await ahead.changed.wait()
        finally:
            self.waiting = False
        if self._buffered:
            return self._take()
        if ahead.failure is not None:
            raise ahead.failure
        return {"type": "http.disconnect"} if ahead.client_gone else {"type": "http.request", "body": b"", "more_body": False}

    def stop_reading_ahead(self) -> None:
        """Have `read_ahead` look whether the body is still wanted."""
        if self._ahead is not None:
            self._ahead.changed.set()

    def discard(self) -> None:
        """Let go of what was read ahead, as the request has ended."""
        if self._ahead is not None:
            self.reading = False
            self._buffered.clear()
            self._ahead.count(-self._ahead.held)

    async def whole(self) -> bytes | None:
        """
        Return the whole body if it is short and has a Content-Length, else None. Can be called again.

        Raises:
            InvalidRequest: the body is not as long as its Content-Length.
            PayloadTooLarge: the body is over the limit.
            ClientDisconnected: the client disconnected.
        """
        if self._whole is None and 0 < self._length <= SHORT_BODY and (self._buffered or not self.exhausted):
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            self._whole = bytes(message.get("body", b""))  # no copy where it is bytes
            if self._buffered or not self.exhausted:  # rare: most bodies come in one piece
                self._whole += b"".join([piece async for piece in self])
            if len(self._whole) != self._length:
                raise InvalidRequest("The body is not as long as its Content-Length.")
        return self._whole

    async def collect(self, limit: int, too_large: Callable[[], RequestError]) -> bytearray:
        """
        Return the whole body. It can still be streamed; the returned object shrinks then.

        Args:
            limit: largest body, in bytes.
            too_large: makes the error for a longer body.

        Raises:
            RequestError: the body is over `limit`; the error is the one that `too_large` made.
            TooMuchBuffered: the memory for bodies is used up.
            ClientDisconnected: the client disconnected.
        """
        collected, self._buffered = self._buffered, bytearray()
        while not self.exhausted:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            piece = message.get("body", b"")
            collected += piece
            if len(collected) > limit:
                raise too_large()
            if not self._hold(len(piece)):
                raise TooMuchBuffered
        self._buffered = collected
        return collected

    def keep(self, limit: int) -> None:
        """
        Keep the body that is passed on from now, for a retry.

        Args:
            limit: largest body, in bytes, kept for a retry.
        """
        self._kept, self._kept_limit = bytearray(), limit

    def rewind(self) -> bool:
        """Go back to the start of the body. Returns False, and does nothing, unless it is complete and all of it was kept."""
        if self._whole is not None:
            self._buffered[:], self._whole = self._whole, None
            return True
        if self._kept is None or not self.exhausted or self.reading:
            return False
        self._buffered[:0] = self._kept
        self._kept.clear()
        return True

    # Not an asynchronous generator, because asyncio registers each of those: a cost for every request.

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while self._buffered or not self.exhausted:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            body = bytes(message.get("body", b""))  # no copy where it is bytes
            if body:
                if self._kept is not None:
                    self._keep_piece(body)
                return body
        raise StopAsyncIteration

    def _keep_piece(self, piece: bytes) -> None:
        assert self._kept is not None  # noqa: S101 - the caller has checked it
        if len(self._kept) + len(piece) > self._kept_limit or not self._hold(len(piece)):
            self._kept = None
        else:
            self._kept += piece

    def _hold(self, size: int) -> bool:
        """Count bytes that are held until the request has ended. Return False where there is no memory for them."""
        if self._memory is None:
            return True
        if self._held is None:
            self._held = HeldBytes(self._memory, self._asker)
        return self._held.grow(size)

    @property
    def _asker(self) -> Asker:
        return (None, None) if self._exchange is None else self._exchange.asker
