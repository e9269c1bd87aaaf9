"""What a service answers to a WebSocket's handshake: its headers, and its refusal as a response to the client's handshake."""

from websockets.datastructures import Headers
from websockets.http11 import Response

from ..client.exchange import Exchange
from ..exceptions import ClientDisconnected, UpstreamError
from ..http1.fields import RawHeaders
from .redaction import OF_THE_BODY, redact_body, redact_headers
from .request import UpstreamRequest, response_headers

__all__ = ["raw_headers", "redact_refusal", "relay_refusal", "relayed_headers"]

_NOT_RELAYED = frozenset({b"content-length", b"date", b"server"})


def raw_headers(response: Response) -> RawHeaders:
    """Return the headers of a response to a handshake, names in lower case."""
    return [
        # The library decodes as ISO-8859-1; before version 17, with surrogate escapes.
        (name.lower().encode("ascii"), value.encode("latin-1", "surrogateescape"))
        for name, value in response.headers.raw_items()
    ]


def relayed_headers(response: Response, request: UpstreamRequest) -> RawHeaders:
    """Return the headers of a response to a handshake that reach the client."""
    return [
        header
        for header in response_headers(raw_headers(response), counted=request.counted)
        if header[0] not in _NOT_RELAYED and not header[0].startswith(b"sec-websocket-")
    ]


def redact_refusal(response: Response, request: UpstreamRequest) -> bool:
    """Take the credential out of a response, and return whether its body says that the credential is refused."""
    if not request.credential:
        return False
    headers = redact_headers(raw_headers(response), request.credential)
    clean, refused = redact_body(bytes(response.body or b""), response.status_code, headers, request)
    if clean is not None:
        response.body = clean
        headers = [header for header in headers if header[0] not in OF_THE_BODY]
    response.headers = Headers([(name.decode("ascii"), value.decode("latin-1")) for name, value in headers])
    return refused


async def relay_refusal(response: Response, request: UpstreamRequest, exchange: Exchange) -> None:
    """
    Answer the client's handshake with the service's refusal.

    Raises:
        UpstreamError: the service's response is no refusal.
        ClientDisconnected: the client went away.
    """
    status = response.status_code
    if status < 200:
        raise UpstreamError
    body = bytes(response.body or b"")
    headers = relayed_headers(response, request)
    try:
        await exchange.respond((status, [*headers, (b"content-length", b"%d" % len(body))], body))
    except OSError:
        raise ClientDisconnected from None
