"""
WebSockets to AI services: one socket from the client, one to the service, message by message.

    handshake → the pipeline, as for any request → the service's handshake → our answer → both directions, until one ends

The service is asked first. So its refusal, and every one of ours, is an answer to the client's handshake, as HTTP knows it
(RFC 6455, 4.2.2), and an accepted socket is one that has somebody at its other end.

Messages keep their kind, their boundaries and their order, and wait where the other side does not take them. What belongs to
one connection ends here: fragments, masks, pings (each side's are answered by who sees them, and both are pinged), and
extensions. None is offered to the service: a message that is compressed on one connection would have to be inflated and
deflated again here, and its size would be unknown until then.
"""

import asyncio
import logging
import re
import ssl
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from starlette.types import Message, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.http11 import Response
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from .exceptions import InvalidRequest, InvalidToken, RequestError, UpstreamCredentialRejected, UpstreamError, UpstreamTimeout
from .exchange import Exchange
from .headers import RawHeaders, get
from .proxy import ClientDisconnected, Timeouts, UpstreamRequest, answer_headers
from .tokens import PREFIX

__all__ = ["MAX_MESSAGE_BYTES", "Handshake", "WebSocketProxy", "answering", "from_allowed_page", "read_handshake"]

MAX_MESSAGE_BYTES = 16 << 20
"""Bytes of a message, at most, where nothing else is said: as many as uvicorn takes."""

_KEY_SUBPROTOCOL = "openai-insecure-api-key."
_REALTIME = "realtime"
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_TARGET = re.compile(rb"/[!-~]*")

_PING_INTERVAL = 20.0  # seconds
_CLOSE_TIMEOUT = 1.0  # seconds for the other side's part in closing; then the connection is cut
_MAX_QUEUE = 4  # messages from the service that wait for a slow client; more wait in the service's own buffers
_NOT_ANSWERED = frozenset({b"content-length", b"date", b"server"})

_SILENT = logging.Logger("websockets")  # the library's own logger tells headers and messages
_SILENT.disabled = True

# Close codes (RFC 6455, 7.4, and IANA's registry). Those that never travel are how a library tells that none came.
_NORMAL, _POLICY, _TOO_BIG, _BAD_GATEWAY = 1000, 1008, 1009, 1014
_NO_STATUS, _ABNORMAL = 1005, 1006
_UNSENDABLE = frozenset({_NO_STATUS, _ABNORMAL, 1015})


class Handshake(NamedTuple):
    """
    What a client's opening handshake says (RFC 6455, 4.1).

    Attributes:
        headers: without those of the handshake itself; a key among the subprotocols is an `authorization` here.
        subprotocols: that are offered, in order, without keys.
        key_among_subprotocols: whether there was one, as there is from browsers.
    """

    headers: RawHeaders
    subprotocols: list[str]
    key_among_subprotocols: bool


def read_handshake(headers: RawHeaders) -> Handshake:
    """
    Take an opening handshake apart.

    A page can set no header on a WebSocket, so OpenAI's SDK sends the key as a subprotocol, `openai-insecure-api-key.<key>`.
    A token of ours is a key in that place with or without the prefix.

    Args:
        headers: names in lower case.

    Raises:
        InvalidRequest: a subprotocol is no token (RFC 6455, 4.1, 10).
    """
    kept: RawHeaders = []
    subprotocols: list[str] = []
    keys: RawHeaders = []
    for name, value in headers:
        if name == b"sec-websocket-protocol":
            for item in value.decode("latin-1").split(","):
                subprotocol = item.strip(" \t")
                if not _TOKEN.fullmatch(subprotocol):
                    raise InvalidRequest("The Sec-WebSocket-Protocol header is malformed.")
                key = subprotocol.removeprefix(_KEY_SUBPROTOCOL)
                if key != subprotocol or key.startswith(PREFIX):
                    keys.append((b"authorization", b"Bearer " + key.encode("ascii")))
                else:
                    subprotocols.append(subprotocol)
        elif not name.startswith(b"sec-websocket-") and name != b"content-length":
            kept.append((name, value))
    return Handshake(kept + keys, subprotocols, bool(keys))


def from_allowed_page(headers: RawHeaders, origins: Sequence[str]) -> bool:
    """
    Return whether a handshake comes from no page, from one of this host, or from one whose origin is allowed.

    Browsers let every page open a WebSocket to everywhere, so it is on the server to look (RFC 6455, 10.2).

    Args:
        headers: names in lower case.
        origins: the allowed ones, or `*`.
    """
    origin = get(headers, b"origin")
    if origin is None or "*" in origins or origin.decode("latin-1") in origins:
        return True
    return origin.partition(b"://")[2] == get(headers, b"host")


def answering(scope: Scope, send: Send) -> Send:
    """
    Return a `send` of a WebSocket that also takes the messages of an HTTP answer, which refuses the handshake.

    Where the server can't send one (it lacks the ASGI extension `websocket.http.response`), the socket is closed instead,
    with 1008, which before it is accepted most servers tell as 403.
    """
    can_answer = "websocket.http.response" in (scope.get("extensions") or {})

    async def send_or_refuse(message: Message) -> None:
        kind = message["type"]
        if not kind.startswith("http."):
            await send(message)
        elif can_answer:
            await send({**message, "type": f"websocket.{kind}"})
        elif kind == "http.response.start":
            await send({"type": "websocket.close", "code": _POLICY, "reason": ""})

    return send_or_refuse


class _End(NamedTuple):
    """
    How a conversation ended, and so what the other side is told.

    Attributes:
        code: close code; one that never travels, where none was said.
        reason: the peer's own words, or none.
        error: for the log; None where a side closed as it should.
        cause: for the log; a class name.
        client_gone: whether there is nobody to tell on the client's side.
    """

    code: int
    reason: str = ""
    error: str | None = None
    cause: str | None = None
    client_gone: bool = False


_GONE = _End(_ABNORMAL, error="client_gone", client_gone=True)
_OVERSIZED = _End(_TOO_BIG, error="payload_too_large")
_EXPIRED = _End(_POLICY, "The API key has expired.", error=InvalidToken.code)


class WebSocketProxy:
    """
    Carries WebSockets to AI services. No proxy of the environment is used, no redirect followed.

    Args:
        timeouts: `connect` and `header` bound the service's handshake; a service that answers no ping for `idle` is gone.
        clock: returns seconds since the epoch.
        max_message_bytes: of one message from the service, or, where the server below us has no limit of its own, from the
            client; a longer one closes both sides with 1009.
    """

    def __init__(
        self, timeouts: Timeouts, *, clock: Callable[[], float] = time.time, max_message_bytes: int = MAX_MESSAGE_BYTES
    ) -> None:
        self._timeouts = timeouts
        self._clock = clock
        self._max_message_bytes = max_message_bytes
        self._tls: ssl.SSLContext | None = None

    async def __call__(self, request: UpstreamRequest, handshake: Handshake, receive: Receive, exchange: Exchange) -> None:
        """
        Connect a client to a service until one of them ends it, or the token that was presented expires.

        Args:
            request: the service's handshake, but for what every WebSocket handshake has.
            handshake: the client's.
            receive: of the ASGI call, its `websocket.connect` taken.
            exchange: takes the answer to the handshake, and the messages.

        Raises:
            RequestError: nothing has been answered yet, and this is to be.
            ClientDisconnected: the client did not wait for the answer.
        """
        # Before it is accepted, all that a client can do is to go away. Later this is its first message.
        first = asyncio.ensure_future(receive())
        opening = asyncio.create_task(self._open(request, handshake.subprotocols, exchange))
        try:
            await asyncio.wait((first, opening), return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                raise ClientDisconnected
            connection = opening.result()
        except InvalidStatus as refusal:
            await _cancel(first)
            await _relay_refusal(refusal.response, request, exchange)
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

    async def _open(self, request: UpstreamRequest, subprotocols: list[str], exchange: Exchange) -> ClientConnection:
        if not _TARGET.fullmatch(request.target):
            raise InvalidRequest("The query has a character that is not allowed.")
        scheme, host, port = request.origin
        secure = scheme == "https"

        def make() -> ClientConnection:
            protocol = ClientProtocol(
                # Not parsed from a URL, which would change some paths. The query is part of what is sent as it is.
                WebSocketURI(secure, host, port, request.target.decode("ascii"), ""),
                subprotocols=[Subprotocol(each) for each in subprotocols] or None,
                max_size=self._max_message_bytes,
                logger=_SILENT,
            )
            return ClientConnection(
                protocol,
                ping_interval=_PING_INTERVAL,
                ping_timeout=self._timeouts.idle,
                close_timeout=_CLOSE_TIMEOUT,
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
        except TimeoutError as error:
            raise _failure(exchange, error, UpstreamTimeout()) from None
        except (OSError, WebSocketException) as error:
            raise _failure(exchange, error, UpstreamError()) from None
        connection.start_keepalive()
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            from .transport.tls import default_context

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
                async with asyncio.timeout(None if claims is None else claims.expires_at - self._clock()):
                    end = await _wait_for_end(up, down)
            except TimeoutError:
                end = _EXPIRED
            exchange.error, exchange.cause = end.error, end.cause
            closing = [asyncio.create_task(_close_upstream(connection, end))]
            if not end.client_gone:
                closing.append(asyncio.create_task(_close_client(exchange, end)))
            await asyncio.wait(closing, timeout=2 * _CLOSE_TIMEOUT)
            await _cancel(*closing)
            exchange.complete = end.error is None
        finally:
            await _cancel(up, down)

    async def _carry_up(
        self, first: asyncio.Future[Message], receive: Receive, connection: ClientConnection
    ) -> _End | None:
        """Pass the client's messages on; return how it ended, or None when the service takes no more."""
        message = await first
        while message["type"] != "websocket.disconnect":
            text: str | None = message.get("text")
            data: str | bytes = message.get("bytes") or b"" if text is None else text
            if len(data) > self._max_message_bytes:
                return _OVERSIZED
            try:
                await connection.send(data)
            except ConnectionClosed:
                return None
            message = await receive()
        code = message.get("code") or _NO_STATUS
        if code == _ABNORMAL:
            return _GONE
        return _End(code, message.get("reason") or "", client_gone=True)

    async def _carry_down(self, connection: ClientConnection, exchange: Exchange) -> _End | None:
        """Pass the service's messages on; return how it ended, or None when the client takes no more."""
        while True:
            try:
                message = await connection.recv()
            except ConnectionClosed as closed:
                return _ended_by_service(closed)
            try:
                await exchange.send({"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message})
            except (OSError, RuntimeError):
                # OSError: ASGI 2.4, the client has gone. RuntimeError: uvicorn's, where it has closed the socket itself.
                return None


async def _wait_for_end(up: "asyncio.Task[_End | None]", down: "asyncio.Task[_End | None]") -> _End:
    await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
    for task in (up, down):
        if task.done() and (end := task.result()) is not None:
            return end
    # A side takes no more. How that came about is known to the one who reads from it.
    if up.done():
        await asyncio.wait((down,))  # which first delivers what the service has said last
        return down.result() or _GONE
    await asyncio.wait((up,), timeout=_CLOSE_TIMEOUT)
    return (up.result() if up.done() else None) or _GONE


def _ended_by_service(closed: ConnectionClosed) -> _End:
    received, sent = closed.rcvd, closed.sent
    if received is not None and (sent is None or closed.rcvd_then_sent):
        return _End(_NORMAL if received.code in _UNSENDABLE else received.code, received.reason)
    if sent is not None and sent.code == _TOO_BIG:
        return _OVERSIZED
    # Lost, silent, or no WebSocket any more. Why exactly is between us and the service.
    return _End(_BAD_GATEWAY, "The AI service broke off.", error="response_interrupted", cause=type(closed).__name__)


async def _accept(connection: ClientConnection, request: UpstreamRequest, handshake: Handshake, exchange: Exchange) -> None:
    subprotocol: str | None = connection.subprotocol
    if subprotocol is None and handshake.key_among_subprotocols and _REALTIME in handshake.subprotocols:
        # Browsers give a socket up whose server selects none of the offered subprotocols, and a service need not select one
        # where the key comes in a header.
        subprotocol = _REALTIME
    response = connection.response
    headers = [] if response is None else _response_headers(response, request)
    try:
        await exchange.send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})
    except OSError:
        raise ClientDisconnected from None


def _response_headers(response: Response, request: UpstreamRequest) -> RawHeaders:
    received = [
        # The library decodes as ISO-8859-1; before version 17, with surrogate escapes.
        (name.lower().encode("ascii"), value.encode("latin-1", "surrogateescape"))
        for name, value in response.headers.raw_items()
    ]
    return [
        header
        for header in answer_headers(received, counted=request.counted)
        if header[0] not in _NOT_ANSWERED and not header[0].startswith(b"sec-websocket-")
    ]


async def _relay_refusal(response: Response, request: UpstreamRequest, exchange: Exchange) -> None:
    status = response.status_code
    if status == 401 and not request.relay_unauthorized:
        raise UpstreamCredentialRejected
    if status < 200:
        raise UpstreamError
    body = bytes(response.body or b"")
    headers = _response_headers(response, request)
    await exchange.answer((status, [*headers, (b"content-length", b"%d" % len(body))], body))


def _failure(exchange: Exchange, cause: Exception, error: RequestError) -> RequestError:
    exchange.cause = type(cause).__name__
    return error


async def _close_upstream(connection: ClientConnection, end: _End) -> None:
    # None: a close frame without a code, which is how a client's looks that gave none.
    code = None if end.code in _UNSENDABLE else end.code
    await connection.close(code, end.reason if code else "")  # type: ignore[arg-type]


async def _close_client(exchange: Exchange, end: _End) -> None:
    try:
        await exchange.send({"type": "websocket.close", "code": end.code, "reason": end.reason})
    except (OSError, RuntimeError):
        pass  # gone, see above


async def _cancel(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
