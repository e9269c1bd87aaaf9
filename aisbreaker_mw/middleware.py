"""The pipeline: from a request to a service, an endpoint of ours, or the wrapped app."""

import asyncio
import time
from collections.abc import Callable
from urllib.parse import unquote

import httpx
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .admission import Admissions
from .asgi import is_endpoint, route_path
from .client.address import ClientIdentifier
from .client.body import RequestBody
from .client.exchange import Exchange, conclude
from .client.handshake import from_allowed_page, read_handshake
from .client.responses import Answer, rate_limit_headers
from .credentials import carriers as credentials
from .credentials.authorizer import Authorizer
from .endpoints import endpoints
from .exceptions import (
    ClientDisconnected,
    ConfigurationError,
    InvalidRequest,
    MisdirectedRequest,
    NotFound,
    RateLimitExceeded,
    RequestError,
    ServiceNotAllowed,
)
from .http1.fields import (
    CLIENT_ADDRESS,
    HOP_BY_HOP,
    METHOD_OVERRIDES,
    PAGE,
    RawHeaders,
    as_pairs,
    forwardable,
    get,
    get_all,
    host_name,
)
from .quotas import Buckets, QuotaLimiter
from .quotas.buckets import BucketPlan
from .services.catalog import ServiceCatalog
from .services.dummy import DummyService
from .services.service import Service
from .settings import Settings, load_settings
from .telemetry.logs import hush_libraries
from .tokens.sealer import TokenSealer
from .upstream.proxy import Timeouts, UpstreamProxy, UpstreamRequest, open_transport
from .upstream.websocket import WebSocketProxy

# The Host is the upstream's, and the server below us has met an expectation already (RFC 9110, 10.1.1).
_NOT_FORWARDED = HOP_BY_HOP | METHOD_OVERRIDES | PAGE | {b"host", b"expect"}
_EXPOSED = (
    "*",
    "request-id",
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "ratelimit",
    "ratelimit-policy",
)


class AIsBreakerMiddleware:
    """
    Serves the AI services and token endpoints, and guards the app behind them with tokens.

    A request takes one of three ways. A path of ours (a service's, `/api/v1/oauth/...`, ping, version, health) is answered
    here. On any other path, a Bearer token of ours is checked and counted, and the app runs with `scope["aisbreaker"]` set to
    its `TokenClaims`. Everything else is the app's alone.

    Args:
        app: the ASGI app to wrap; None: every other path is 404.
        settings: the configuration; read from the environment when not given.
        transport: carries the requests to AI services; made from the settings when not given.
        clock: returns seconds since the epoch, for tokens.

    Raises:
        ConfigurationError: the settings are unusable; one line that names the key.
    """

    def __init__(
        self,
        app: ASGIApp | None,
        settings: Settings | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        settings = load_settings() if settings is None else settings
        hush_libraries()
        self.app = app
        self._hosts = settings.hosts
        self._clients = ClientIdentifier(settings.trusted_proxies)
        self._sealer = TokenSealer(settings.keyring(), clock=clock)

        self._catalog = ServiceCatalog.load(settings.services)
        self._inject = settings.inject
        self._embedded = {each.name: DummyService(each.delay) for each in self._catalog if each.embedded}
        for service_id in self._inject.values():
            if self._catalog.by_vendor(service_id.partition(":")[2].partition("/")[0]) is None:
                raise ConfigurationError("inject: takes serviceIds of vendors that the catalogue knows")

        minting = settings.minting
        self._token_endpoint = endpoints.TokenEndpoint(
            self._sealer,
            mode=minting.mode,
            secret=minting.secret,
            default_lifetime=minting.default_lifetime,
            max_lifetime=minting.max_lifetime,
            clock=clock,
        )
        quotas = settings.quotas
        self._plan = BucketPlan(quotas.server, minting=minting.requests_per_minute)
        self._limiter = QuotaLimiter(
            quotas.storage.get_secret_value(),
            on_storage_error=quotas.on_storage_error,
            timeout=quotas.storage_timeout,
            max_clients=quotas.max_clients,
        )

        upstream = settings.upstream
        self._upstream = upstream
        self._admissions = Admissions(
            self._sealer,
            self._plan,
            host_of=self._host,
            default_token=settings.default_api_key.get_secret_value() if settings.default_api_key else None,
            forwards_foreign=settings.foreign_credentials == "forward",
            not_forwarded=_NOT_FORWARDED if upstream.forward_client_address else _NOT_FORWARDED | CLIENT_ADDRESS,
            max_engine_scan_bytes=upstream.max_engine_scan_bytes,
        )
        self._given_transport = transport
        self._timeouts = Timeouts(
            connect=upstream.connect_timeout,
            header=upstream.header_timeout,
            idle=upstream.idle_timeout,
            pool=upstream.pool_timeout,
        )
        self._websockets = WebSocketProxy(self._timeouts, clock=clock)
        self._authorizer = Authorizer(
            lambda: self._upstream_proxy().transport, clock=clock, max_signed_bytes=upstream.max_engine_scan_bytes
        )
        self._proxy: UpstreamProxy | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

        self._origins = settings.cors_origins
        self._cors = CORSMiddleware(
            self._serve_service,
            allow_origins=self._origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._run_lifespan(scope, receive, send)
            return
        if kind not in ("http", "websocket"):
            await self._pass_on(scope, receive, send)
            return
        given = scope
        headers = as_pairs(scope["headers"])
        if headers is not scope["headers"]:
            scope = {**scope, "headers": headers}
        path = route_path(scope)
        service = self._service_at(path)
        if service is not None:
            if kind == "http" and get(headers, b"origin") is not None:
                await self._cors(scope, receive, send)
            else:
                await self._serve_at(path, service, scope, receive, send)
        elif kind == "http" and is_endpoint(path):
            exchange = Exchange(scope, send)
            await conclude(exchange, self._serve_endpoint(path, scope, receive, exchange))
        elif self.app is None:
            await self._refuse(scope, receive, Exchange(scope, send), NotFound())
        else:
            await self._serve_app(path, scope, given, receive, send)

    # Way 1: a service

    def _service_at(self, path: bytes) -> Service | None:
        name = path[1:].partition(b"/")[0]
        return self._catalog.get(name.decode("latin-1"))

    async def _serve_service(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope)
        service = self._service_at(path)
        assert service is not None  # noqa: S101 - that is why this way was taken
        await self._serve_at(path, service, scope, receive, send)

    async def _serve_at(self, path: bytes, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, send, service.errors)
        relay = self._relay_websocket if scope["type"] == "websocket" else self._relay
        await conclude(exchange, relay(scope, receive, exchange, service, path[1 + len(service.name) :]))

    async def _relay(self, scope: Scope, receive: Receive, exchange: Exchange, service: Service, rest: bytes) -> None:
        request, body = await self._prepare(scope, receive, exchange, service, rest)
        embedded = self._embedded.get(service.name)
        if embedded is not None:
            target = request.target.partition(b"?")[0]
            inner = {**scope, "path": unquote(target), "raw_path": target, "root_path": "", "headers": request.headers}
            await embedded(inner, body.receive, exchange.send)
            return
        await self._upstream_proxy()(request, body, receive, exchange)

    async def _relay_websocket(self, scope: Scope, receive: Receive, exchange: Exchange, service: Service, rest: bytes) -> None:
        if (await receive())["type"] != "websocket.connect":
            raise ClientDisconnected
        exchange.client = self._clients.identify(scope)
        if service.embedded:
            raise NotFound("This service has no WebSockets here.")
        if not from_allowed_page(scope["headers"], self._origins):
            raise ServiceNotAllowed("This server's services are not open to pages of this origin.")
        handshake = read_handshake(scope["headers"])
        scope = {**scope, "method": "GET", "headers": handshake.headers}
        request, _ = await self._prepare(scope, receive, exchange, service, rest)
        await self._websockets(request, handshake, receive, exchange)

    async def _prepare(
        self, scope: Scope, receive: Receive, exchange: Exchange, service: Service, rest: bytes
    ) -> tuple[UpstreamRequest, RequestBody]:
        """Check and count a request to a service, and return what is to be sent there, and its body."""
        exchange.client = client = self._clients.identify(scope)
        fields = dict(reversed(scope["headers"]))
        body = RequestBody(receive, self._upstream.max_body_bytes)
        admission = await self._admissions.admit(scope, fields, exchange, service, rest, client, body)
        await self._consume(admission.buckets, exchange)

        route, token, claims = admission.route, admission.token, admission.claims
        outgoing = [
            (b"host", service.host_header),
            *forwardable(scope["headers"], admission.dropped),
            *admission.credential,
        ]
        if route.default_headers:
            outgoing += [default for default in route.default_headers if get(outgoing, default[0]) is None]
        if body.present and b"content-length" not in fields:
            outgoing.append((b"transfer-encoding", b"chunked"))
        request = UpstreamRequest(
            scope["method"],
            (service.scheme, service.host, service.port),
            admission.target,
            outgoing,
            relay_unauthorized=token is None,
            counted=bool(exchange.headers),
        )
        if admission.secret is not None and token is not None and claims is not None:
            request = await self._authorizer.authorize(
                request, body, route.credential, admission.secret, token=token, jti=claims.jti
            )
        return request, body

    # Way 1: an endpoint of ours

    async def _serve_endpoint(self, path: bytes, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        exchange.client = client = self._clients.identify(scope)
        host = self._host(scope["headers"])
        method = scope["method"]
        answer: Answer
        match path:
            case endpoints.TOKEN_PATH:
                endpoints.require_method(method, "POST")
                await self._consume(self._plan.for_minting(client), exchange)
                body = RequestBody(receive, endpoints.MAX_TOKEN_REQUEST_BYTES)
                answer = await self._token_endpoint(scope["headers"], body, host)
            case b"/api/v1/ping":
                endpoints.require_method(method, "GET", "HEAD")
                answer = endpoints.ping()
            case b"/api/v1/version":
                endpoints.require_method(method, "GET", "HEAD")
                answer = endpoints.show_version()
            case b"/api/v1/health":
                endpoints.require_method(method, "GET", "HEAD")
                answer = endpoints.health(self._limiter.health)
            case _:
                raise NotFound
        await exchange.answer(answer)

    # Ways 2 and 3: the wrapped app

    async def _serve_app(self, path: bytes, scope: Scope, given: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None  # noqa: S101 - asked by the caller
        try:
            token = credentials.bearer_token(scope["headers"])
        except InvalidRequest as two_tokens:
            await self._refuse(scope, receive, Exchange(scope, send), two_tokens)
            return
        if token is None:
            await self.app(given, receive, send)
            return
        exchange = Exchange(scope, send)
        try:
            inner = await self._admit(path, scope, token, exchange)
        except RequestError as refusal:
            await self._refuse(scope, receive, exchange, refusal)
            return
        try:
            await self.app(inner, receive, exchange.send)
        finally:
            exchange.log()

    async def _admit(self, path: bytes, scope: Scope, token: str, exchange: Exchange) -> Scope:
        """Check and count a token on a path of the app, and return the scope that the app sees."""
        headers = scope["headers"]
        exchange.client = client = self._clients.identify(scope)
        exchange.claims = claims = self._sealer.unseal(token, self._host(headers))
        inner = {**scope, "aisbreaker": claims}
        service_id = self._inject.get(path.decode("latin-1"))
        if service_id is not None:
            exchange.service_id = service_id
            secret = credentials.choose_for(claims.secrets, service_id)
            revealed = self._authorizer.secret_in_turn(secret, token=token, jti=claims.jti)
            inner["headers"] = credentials.replace_authorization(headers, revealed)
        await self._consume(self._plan.for_request(client, claims), exchange)
        return inner

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)

    # What the ways share

    def _host(self, headers: RawHeaders) -> str:
        """Return the host that tokens of this request are bound to."""
        values = get_all(headers, b"host")
        if len(values) > 1:
            raise InvalidRequest("The request has more than one Host header.")
        host = host_name(values[0]) if values else ""
        if not self._hosts:
            return host
        if host not in self._hosts:
            raise MisdirectedRequest
        return self._hosts[0]

    async def _consume(self, buckets: Buckets, exchange: Exchange) -> None:
        """Count a request, or refuse it; either way its answer tells the window nearest its limit."""
        limiter = self._limiter
        decision = limiter.consume_now(buckets) if limiter.local else await limiter.consume(buckets)
        if decision is None:
            return
        exchange.headers = rate_limit_headers(decision)
        if not decision.admitted:
            raise RateLimitExceeded(retry_after=decision.reset_after)

    def _upstream_proxy(self) -> UpstreamProxy:
        loop = asyncio.get_running_loop()
        if self._proxy is None or loop is not self._loop:
            # Connections belong to an event loop. An app under test may see a new one with every request.
            self._loop = loop
            upstream = self._upstream
            self._proxy = UpstreamProxy(
                self._given_transport
                or open_transport(upstream.transport, max_connections=upstream.max_connections, http2=upstream.http2),
                self._timeouts,
            )
        return self._proxy

    async def aclose(self) -> None:
        """Close the connections to AI services and to the quota storage."""
        if self._proxy is not None:
            await self._proxy.aclose()
            self._proxy = None
        await self._limiter.aclose()

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing_send(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self.aclose()
            await send(message)

        if self.app is not None:
            await self.app(scope, receive, closing_send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await closing_send({"type": "lifespan.shutdown.complete"})

    @staticmethod
    async def _refuse(scope: Scope, receive: Receive, exchange: Exchange, error: RequestError) -> None:
        try:
            if scope["type"] == "websocket":
                await receive()  # websocket.connect
            await exchange.refuse(error)
        finally:
            exchange.log()
