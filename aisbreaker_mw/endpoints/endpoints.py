"""The server's own endpoints by path; ping, version and health themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from starlette.types import Receive, Scope

from ..client.address import ClientIdentifier
from ..client.body import RequestBody
from ..client.exchange import Exchange
from ..client.host import HostNames
from ..client.responses import Response, json_response
from ..exceptions import MethodNotAllowed, NotFound
from ..quotas.buckets import BucketPlan
from ..quotas.gate import QuotaGate
from .token import MAX_TOKEN_REQUEST_BYTES, TokenEndpoint

__all__ = ["Endpoints"]

_TOKEN = b"/api/v1/oauth/token"
_PING = b"/api/v1/ping"
_VERSION = b"/api/v1/version"
_HEALTH = b"/api/v1/health"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """
    Serves the requests to this server's own endpoints.

    Args:
        token: mints tokens.
        clients: finds the client's address.
        hosts: finds the host that tokens are bound to.
        plan: names the buckets that a token request is counted in.
        gate: counts token requests.
        storage_state: returns the state of the quota storage (`QuotaLimiter.health`).
    """

    token: TokenEndpoint
    clients: ClientIdentifier
    hosts: HostNames
    plan: BucketPlan
    gate: QuotaGate
    storage_state: Callable[[], str]

    @staticmethod
    def has(path: bytes) -> bool:
        """Return whether a path is ours: an endpoint, or anything below `/api/v1/oauth/`, where the rest is 404."""
        return path.startswith(b"/api/v1/oauth/") or path in (_PING, _VERSION, _HEALTH)

    async def __call__(self, path: bytes, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        """
        Serve a request.

        Args:
            path: raw path below the mount point.
            scope: ASGI scope of the request.
            receive: ASGI callable.
            exchange: exchange that sends the response.

        Raises:
            RequestError: the request is refused.
        """
        exchange.client = client = self.clients.identify(scope)
        host = self.hosts.resolve(scope["headers"])
        response: Response
        if path == _TOKEN:
            require_method(scope, "POST")
            self.hosts.refuse_rebound(scope)
            await self.gate.admit(self.plan.for_minting(client), exchange)
            response = await self.token(scope["headers"], RequestBody(receive, MAX_TOKEN_REQUEST_BYTES), host)
        elif path in (_PING, _VERSION, _HEALTH):
            require_method(scope, "GET", "HEAD")
            response = ping() if path == _PING else show_version() if path == _VERSION else health(self.storage_state())
        else:
            raise NotFound
        await exchange.respond(response)


def ping() -> Response:
    """Return the response of `GET /api/v1/ping`."""
    return json_response(200, {"message": "api-pong"}, [(b"cache-control", b"no-store")])


def show_version() -> Response:
    """Return the response of `GET /api/v1/version`."""
    return json_response(200, {"name": "aisbreaker-mw", "version": version("aisbreaker-mw")})


def health(quota_storage: str) -> Response:
    """
    Return the response of `GET /api/v1/health`: 200 while the process can serve.

    Args:
        quota_storage: state of the quota storage (`QuotaLimiter.health`), shown to the operator.
    """
    content = {"status": "ok", "quota_storage": quota_storage}
    return json_response(200, content, [(b"cache-control", b"no-store")])


def require_method(scope: Scope, *allowed: str) -> None:
    """
    Refuse a request whose method is not allowed.

    Raises:
        MethodNotAllowed: with the allowed methods.
    """
    if scope["method"] not in allowed:
        raise MethodNotAllowed(*allowed)
