"""The pipeline: a request goes to a service, to an endpoint of this server, or to the wrapped app."""

import time
from collections.abc import Callable

import httpx
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .asgi import as_pairs, route_path
from .assembly import assemble
from .client.exchange import Exchange, conclude, refuse
from .exceptions import NotFound
from .http1.fields import get
from .settings import Settings, load_settings
from .telemetry.logs import hush_libraries

_EXPOSED_HEADERS = (
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
    its `TokenClaims`. Every other request reaches the app untouched.

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
        self._parts = parts = assemble(settings, transport, clock)
        self._services = parts.services
        self._relay = parts.relay
        self._endpoints = parts.endpoints
        self._guard = parts.guard
        self._cors = CORSMiddleware(
            self._serve_page,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
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
        headers = as_pairs(scope)
        if headers is not scope["headers"]:
            scope = {**scope, "headers": headers}
        path = route_path(scope)

        # Way 1: a service, or an endpoint of ours
        service = self._services.at(path)
        if service is not None:
            if kind == "http" and get(headers, b"origin") is not None:
                await self._cors(scope, receive, send)
            else:
                await self._relay(scope, receive, send, service, path)
        elif kind == "http" and self._endpoints.has(path):
            exchange = Exchange(scope, send)
            await conclude(exchange, self._endpoints(path, scope, receive, exchange))

        # Ways 2 and 3: the wrapped app, with a token or without
        elif self.app is not None:
            await self._guard(self.app, given, receive, send)
        else:
            await refuse(scope, receive, Exchange(scope, send), NotFound())

    async def _serve_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that a page in a browser makes to a service."""
        path = route_path(scope)
        service = self._services.at(path)
        assert service is not None  # noqa: S101 - this way is taken by requests to services only
        await self._relay(scope, receive, send, service, path)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)

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

    async def aclose(self) -> None:
        """Close the connections to AI services and to the quota storage. A later request opens new ones."""
        await self._parts.aclose()
