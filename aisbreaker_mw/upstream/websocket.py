"""
WebSockets to AI services: one socket from the client, one to the service, message by message.

    handshake → the pipeline, as for any request → the service's handshake → our response → both directions, until one ends

The service's handshake comes first. So its refusal, and every one of ours, is an HTTP response to the client's handshake
(RFC 6455, 4.2.2), and behind every accepted socket there is a service.

Messages keep their kind, their boundaries and their order. They wait where the other side does not take them. Fragments, masks,
pings and extensions belong to one connection and end here. Both sides are pinged, and pings of both are answered here. No
extension is offered to the service: a compressed message would have to be inflated and deflated again here, and its size would
be unknown until then.
"""

import asyncio
import contextlib
import logging
import re
import ssl
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.types import Message, Receive
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from ..client.exchange import Exchange
from ..client.handshake import Handshake
from ..exceptions import (
    ClientDisconnected,
    InvalidRequest,
    InvalidToken,
    PayloadTooLarge,
    UpstreamCredentialRejected,
)
from .errors import upstream_failure
from .request import Timeouts, UpstreamRequest
from .service_connection import CLOSE_TIMEOUT, ServiceConnection, ServiceFrames
from .transport.tls import default_context
from .websocket_refusal import raw_headers, redact_refusal, relay_refusal, relayed_headers

__all__ = ["MAX_MESSAGE_BYTES", "WebSocketProxy"]

MAX_MESSAGE_BYTES = 16 << 20
"""Largest message, in bytes, by default: as large as uvicorn takes."""

_REALTIME = "realtime"
_TARGET = re.compile(rb"/[!-~]*")

_PING_INTERVAL = 20.0  # seconds
_MAX_QUEUE = 4  # messages of the service held for a slow client; more wait in the service's own buffers
_LONG = 1 << 20
"""Length of a message above which it is sent a turn of the loop after it is taken. 15 MB of text cost up to 30 ms in each."""
_SILENT = logging.Logger("websockets")  # the library's own logger logs headers and messages
_SILENT.disabled = True

# Close codes (RFC 6455, 7.4, and IANA's registry). Codes that are never sent are how a library says that none came.
_NORMAL, _GOING_AWAY, _POLICY, _TOO_BIG, _BAD_GATEWAY = 1000, 1001, 1008, 1009, 1014
_NO_STATUS, _ABNORMAL = 1005, 1006
_UNSENDABLE = frozenset({_NO_STATUS, _ABNORMAL, 1015})
_FAILURES = {1002: InvalidRequest.code, 1007: InvalidRequest.code, _TOO_BIG: PayloadTooLarge.code}
"""Error codes for the log, by close code: the server failed the client's connection, or the client failed its own."""


class _End(NamedTuple):
    """
    How a conversation ended. It decides what the other side is told.

    Attributes:
        code: close code; one that is never sent, where none came.
        reason: the peer's own words, or an empty text.
        error: error code for the log; None where a side closed properly.
        cause: class name for the log.
        by_client: whether the client ended it, and so is not told.
    """

    code: int
    reason: str = ""
    error: str | None = None
    cause: str | None = None
    by_client: bool = False


_GONE = _End(_ABNORMAL, error="client_gone", by_client=True)
_OVERSIZED = _End(_TOO_BIG, error=PayloadTooLarge.code)
_EXPIRED = _End(_POLICY, "The API key has expired.", error=InvalidToken.code)


class WebSocketProxy:
    """
    Carries WebSockets to AI services. No proxy of the environment is used, and no redirect followed.

    Args:
        timeouts: `connect` and `header` bound the service's handshake. A service that answers no ping for `idle` is cut off.
        slot: returns a context in which a connection to a service counts among all of them. It raises `UpstreamBusy`.
        clock: function that returns seconds since the epoch.
        max_message_bytes: largest message, in bytes, from the service, and from the client where the server has no limit of its
            own. A longer one closes both sides with 1009.
    """

    def __init__(
        self,
        timeouts: Timeouts,
        slot: Callable[[UpstreamRequest, Exchange], contextlib.AbstractAsyncContextManager[None]],
        *,
        clock: Callable[[], float] = time.time,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._timeouts = timeouts
        self._slot = slot
        self._clock = clock
        self._max_message_bytes = max_message_bytes
        self._tls: ssl.SSLContext | None = None

    async def __call__(self, request: UpstreamRequest, handshake: Handshake, receive: Receive, exchange: Exchange) -> None:
        """
        Connect a client to a service until one of them ends it, or the presented token expires.

        Args:
            request: the service's handshake, without the headers that every WebSocket handshake has.
            handshake: the client's handshake.
            receive: the ASGI call's `receive`, whose `websocket.connect` has been taken.
            exchange: takes the response to the handshake, and the messages.

        Raises:
            RequestError: no response has begun; the client is to be told this error.
            ClientDisconnected: the client did not wait for the response.
        """
        async with contextlib.AsyncExitStack() as held:
            await self._connect(request, handshake, receive, exchange, held)

    async def _connect(
        self,
        request: UpstreamRequest,
        handshake: Handshake,
        receive: Receive,
        exchange: Exchange,
        held: contextlib.AsyncExitStack,
    ) -> None:
        """Connect them. The slot is put into `held`."""

        async def open_in_slot() -> ClientConnection:
            await held.enter_async_context(self._slot(request, exchange))
            return await self._open_with_any_secret(request, handshake.subprotocols, exchange)

        # Before the socket is accepted, a client can only go away. After that, this is its first message.
        first = asyncio.ensure_future(receive())
        opening = asyncio.create_task(open_in_slot())
        try:
            await asyncio.wait((first, opening), return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                raise ClientDisconnected
            connection = opening.result()
        except InvalidStatus as refusal:
            await _cancel(first)
            await relay_refusal(refusal.response, request, exchange)
            return
        except BaseException:
            await _cancel(first, opening)
            raise
        try:
            await _accept(connection, request, handshake, exchange)
            await self._converse(connection, first, receive, exchange)
        finally:
            await _cancel(first)
            connection.transport.abort()

    # The service's handshake

    async def _open_with_any_secret(
        self, request: UpstreamRequest, subprotocols: list[str], exchange: Exchange
    ) -> ClientConnection:
        while True:
            try:
                return await self._open(request, subprotocols, exchange)
            except InvalidStatus as refusal:
                status, attempts = refusal.response.status_code, request.attempts
                told = redact_refusal(refusal.response, request)
                if attempts is None:
                    rejected = told or (status == 401 and not request.relay_unauthorized)
                else:
                    rejected = attempts.rejects(status, raw_headers(refusal.response), told=told)
                    if (rejected or status == 429) and (another := await attempts.another()) is not None:
                        request = another
                        continue
                if rejected:
                    raise UpstreamCredentialRejected from None
                raise

    async def _open(self, request: UpstreamRequest, subprotocols: list[str], exchange: Exchange) -> ClientConnection:
        if not _TARGET.fullmatch(request.target):
            raise InvalidRequest("The query has a character that is not allowed.")
        scheme, host, port = request.origin
        secure = scheme == "https"

        def make() -> ServiceConnection:
            protocol = ServiceFrames(
                # Not parsed from a URL, which would change some paths. The target is sent unchanged, with its query.
                WebSocketURI(secure, host, port, request.target.decode("ascii"), ""),
                subprotocols=[Subprotocol(each) for each in subprotocols] or None,
                max_size=self._max_message_bytes,
                logger=_SILENT,
            )
            return ServiceConnection(
                protocol,
                ping_interval=_PING_INTERVAL,
                ping_timeout=self._timeouts.idle,
                close_timeout=CLOSE_TIMEOUT,
                max_queue=_MAX_QUEUE,
            )

        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers if name != b"host"]
        try:
            async with asyncio.timeout(self._timeouts.connect):
                loop = asyncio.get_running_loop()
                tls = self._tls_context() if secure else None
                _, connection = await loop.create_connection(
                    make, host, port, ssl=tls, server_hostname=host if secure else None
                )
            try:
                async with asyncio.timeout(self._timeouts.header):
                    await connection.handshake(headers, None)
            except BaseException:
                connection.transport.abort()
                raise
        except InvalidStatus:
            raise
        except (OSError, WebSocketException) as error:  # asyncio's TimeoutError is an OSError
            exchange.cause = type(error).__name__
            raise upstream_failure(error) from None
        connection.start_keepalive()
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    # Both directions

    async def _converse(
        self, connection: ClientConnection, first: asyncio.Future[Message], receive: Receive, exchange: Exchange
    ) -> None:
        claims = exchange.claims
        up = asyncio.create_task(self._carry_up(first, receive, connection))
        down = asyncio.create_task(self._carry_down(connection, exchange))
        try:
            try:
                async with asyncio.timeout(None if claims is None else claims.exp - self._clock()):
                    end = await _wait_for_end(up, down)
            except TimeoutError:
                end = _EXPIRED
            exchange.error, exchange.cause = end.error, end.cause
            await _cancel(up, down)
            closing = [asyncio.create_task(_close_upstream(connection, end))]
            if not end.by_client:
                closing.append(asyncio.create_task(_close_client(exchange, end)))
            await asyncio.wait(closing, timeout=2 * CLOSE_TIMEOUT)
            await _cancel(*closing)
            exchange.complete = end.error is None
        finally:
            await _cancel(up, down)

    async def _carry_up(self, first: asyncio.Future[Message], receive: Receive, connection: ClientConnection) -> _End | None:
        """Pass the client's messages on. Return how it ended, or None when the service takes no more."""
        message = await first
        while message["type"] != "websocket.disconnect":
            text: str | None = message.get("text")
            data: str | bytes = message.get("bytes") or b"" if text is None else text
            if len(data) > self._max_message_bytes:
                return _OVERSIZED
            if len(data) > _LONG:
                await asyncio.sleep(0)
            try:
                await connection.send(data)
            except ConnectionClosed:
                return None
            message = await receive()
        code = message.get("code") or _NO_STATUS
        if code == _ABNORMAL or (code == _NO_STATUS and "reason" not in message):
            # Without a reason, uvicorn means that the connection was lost. For a close frame it always gives one.
            return _GONE
        return _End(code, message.get("reason") or "", error=_FAILURES.get(code), by_client=True)

    async def _carry_down(self, connection: ClientConnection, exchange: Exchange) -> _End | None:
        """Pass the service's messages on. Return how it ended, or None when the client takes no more."""
        while True:
            try:
                message = await connection.recv()
            except ConnectionClosed as closed:
                return _ended_by_service(closed)
            if len(message) > _LONG:
                await asyncio.sleep(0)
            try:
                await exchange.send({"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message})
            except (OSError, RuntimeError):
                # OSError: the client has gone (ASGI 2.4). RuntimeError: uvicorn has closed the socket itself.
                return None


async def _wait_for_end(up: "asyncio.Task[_End | None]", down: "asyncio.Task[_End | None]") -> _End:
    await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
    for task in (up, down):
        if task.done() and (end := task.result()) is not None:
            return end
    # One side takes no more messages. The task that reads from that side knows why.
    if up.done():
        await asyncio.wait((down,))  # it first delivers the service's last messages
        return down.result() or _GONE
    await asyncio.wait((up,), timeout=CLOSE_TIMEOUT)
    return (up.result() if up.done() else None) or _GONE


def _ended_by_service(closed: ConnectionClosed) -> _End:
    received, sent = closed.rcvd, closed.sent
    if received is not None and (sent is None or closed.rcvd_then_sent):
        return _End(_NORMAL if received.code in _UNSENDABLE else received.code, received.reason)
    if sent is not None and sent.code == _TOO_BIG:
        return _OVERSIZED
    # The connection was lost, silent or malformed. The client is not told which.
    return _End(_BAD_GATEWAY, "The AI service broke off.", error="response_interrupted", cause=type(closed).__name__)


async def _accept(connection: ClientConnection, request: UpstreamRequest, handshake: Handshake, exchange: Exchange) -> None:
    subprotocol: str | None = connection.subprotocol
    if subprotocol is None and handshake.key_among_subprotocols and _REALTIME in handshake.subprotocols:
        # A browser closes a socket whose server selects none of the offered subprotocols. A service need not select one, as it
        # gets the key in a header.
        subprotocol = _REALTIME
    response = connection.response
    headers = [] if response is None else relayed_headers(response, request)
    try:
        await exchange.send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})
    except OSError:
        raise ClientDisconnected from None


async def _close_upstream(connection: ClientConnection, end: _End) -> None:
    # Messages that come meanwhile are read and dropped. The service's close frame comes after them.
    draining = asyncio.create_task(_drain(connection))
    try:
        await _send_close(connection, end)
    finally:
        await _cancel(draining)


async def _drain(connection: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await connection.recv()


async def _send_close(connection: ClientConnection, end: _End) -> None:
    if not end.by_client:
        await connection.close(_GOING_AWAY)
    elif end.code in _UNSENDABLE:
        await connection.close(None)  # type: ignore[arg-type]  # a close frame without a code, like the client's
    else:
        await connection.close(end.code, end.reason)


async def _close_client(exchange: Exchange, end: _End) -> None:
    with contextlib.suppress(OSError, RuntimeError):  # see _carry_down
        await exchange.send({"type": "websocket.close", "code": end.code, "reason": end.reason})


async def _cancel(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
