"""Way 1 of a request, to an AI service: admit, count, authorize, send."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

from .admission import Admissions, ServiceRequest
from .client.address import ClientIdentifier
from .client.body import BodyMemory, RequestBody
from .client.exchange import Exchange, conclude
from .client.handshake import from_allowed_page, read_handshake
from .credentials.authorizer import Authorizer
from .exceptions import ClientDisconnected, NotFound, ServiceNotAllowed
from .http1.fields import forwardable, get
from .quotas.gate import QuotaGate
from .services.service import Service
from .upstream.proxy import UpstreamProxy
from .upstream.request import UpstreamRequest
from .upstream.websocket import WebSocketProxy

__all__ = ["Relay"]


@dataclass(frozen=True, slots=True)
class Relay:
    """
    Relays requests to AI services.

    Args:
        clients: tells who asks.
        admissions: decides whether a request may go to its service, and how.
        gate: counts it.
        authorizer: makes credentials that are more than a header.
        embedded: apps of the services that are answered in this process, by name.
        proxy: streams a request to its service.
        websockets: carries a WebSocket to its service.
        origins: pages that may open a WebSocket, or `*`.
        max_body_bytes: largest request body, in bytes.
        body_memory: memory for the request bodies that are held.
    """

    clients: ClientIdentifier
    admissions: Admissions
    gate: QuotaGate
    authorizer: Authorizer
    embedded: Mapping[str, ASGIApp]
    proxy: UpstreamProxy
    websockets: WebSocketProxy
    origins: Sequence[str]
    max_body_bytes: int
    body_memory: BodyMemory

    async def __call__(self, scope: Scope, receive: Receive, send: Send, service: Service, path: bytes) -> None:
        """
        Answer a request to a service.

        Args:
            scope: ASGI scope of the request, its headers a list of tuples.
            receive: ASGI callable.
            send: ASGI callable.
            service: the service that the path names.
            path: raw path below the mount point.
        """
        exchange = Exchange(scope, send, service.errors)
        relay = self._relay_websocket if scope["type"] == "websocket" else self._relay
        await conclude(exchange, relay(scope, receive, exchange, service, path[1 + len(service.name) :]))

    async def _relay(self, scope: Scope, receive: Receive, exchange: Exchange, service: Service, rest: bytes) -> None:
        body = RequestBody(receive, self.max_body_bytes, self.body_memory)
        request = await self._prepare(scope, exchange, service, rest, body)
        if not service.embedded:
            await self.proxy(request, body, receive, exchange)
            return
        target = request.target.partition(b"?")[0]
        inner = {**scope, "path": unquote(target), "raw_path": target, "root_path": "", "headers": request.headers}
        await self.embedded[service.name](inner, body.receive, exchange.send)

    async def _relay_websocket(self, scope: Scope, receive: Receive, exchange: Exchange, service: Service, rest: bytes) -> None:
        if (await receive())["type"] != "websocket.connect":
            raise ClientDisconnected
        exchange.client = self.clients.identify(scope)
        if service.embedded:
            raise NotFound("This service has no WebSockets here.")
        if not from_allowed_page(scope["headers"], self.origins):
            raise ServiceNotAllowed("This server's services are not open to pages of this origin.")
        handshake = read_handshake(scope["headers"])
        scope = {**scope, "method": "GET", "headers": handshake.headers}
        request = await self._prepare(
            scope, exchange, service, rest, RequestBody(receive, self.max_body_bytes, self.body_memory)
        )
        await self.websockets(request, handshake, receive, exchange)

    async def _prepare(
        self, scope: Scope, exchange: Exchange, service: Service, rest: bytes, body: RequestBody
    ) -> UpstreamRequest:
        """Admit, count and authorize a request, and return what is to be sent to the service."""
        exchange.client = client = self.clients.identify(scope)
        headers = scope["headers"]
        fields = dict(reversed(headers))
        admission = await self.admissions.admit(ServiceRequest(service, rest, scope, fields, client), body, exchange)
        await self.gate.admit(admission.buckets, exchange)

        forwarded = forwardable(headers, admission.dropped)
        if b"_" in b"".join(fields):
            # Some servers read X_Original_URL as X-Original-URL, so a name with an underscore could be any header.
            forwarded = [header for header in forwarded if b"_" not in header[0]]
        outgoing = [(b"host", service.host_header), *forwarded, *admission.credential]
        defaults = admission.route.default_headers
        if defaults:
            outgoing += [default for default in defaults if get(outgoing, default[0]) is None]
        if body.present and b"content-length" not in fields:
            outgoing.append((b"transfer-encoding", b"chunked"))
        request = UpstreamRequest(
            scope["method"],
            service.origin,
            admission.target,
            outgoing,
            relay_unauthorized=admission.foreign,
            counted=bool(exchange.headers),
            credential=admission.revealed,
            rejections=service.rejections,
        )
        if admission.secret is not None:
            request = await self.authorizer.authorize(request, body, admission.secret)
        return request
