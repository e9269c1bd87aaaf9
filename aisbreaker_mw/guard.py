"""Ways 2 and 3 of a request, to the wrapped app: with a token that is checked and counted, or untouched."""

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from .asgi import app_path, as_pairs
from .client.address import ClientIdentifier
from .client.exchange import Exchange, refuse
from .client.host import HostNames
from .credentials.authorizer import Authorizer
from .credentials.carriers import bearer_token, choose_for, replace_authorization
from .exceptions import InvalidRequest, RequestError
from .quotas.buckets import BucketPlan
from .quotas.gate import QuotaGate
from .tokens.sealer import TokenSealer

__all__ = ["Guard"]


@dataclass(frozen=True, slots=True)
class Guard:
    """
    Guards the paths of the wrapped app.

    Args:
        clients: tells who asks.
        hosts: tells the host that tokens are bound to.
        sealer: opens tokens.
        plan: names the buckets that a request is counted in.
        gate: counts it.
        authorizer: reveals the credential that an injected header carries.
        inject: serviceId by path of the app, of the paths that receive a credential.
    """

    clients: ClientIdentifier
    hosts: HostNames
    sealer: TokenSealer
    plan: BucketPlan
    gate: QuotaGate
    authorizer: Authorizer
    inject: Mapping[str, str]

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Run the app for a request.

        Way 2: with a Bearer token of ours, the app's scope has the token's claims as `aisbreaker`. Way 3: without one, the
        app gets the very scope, `receive` and `send` that came.

        Args:
            app: the wrapped app.
            scope: ASGI scope of the request.
            receive: ASGI callable.
            send: ASGI callable.
        """
        given = scope
        headers = as_pairs(scope)
        if headers is not scope["headers"]:
            scope = {**scope, "headers": headers}
        try:
            token = bearer_token(headers)
        except InvalidRequest as error:
            await refuse(scope, receive, Exchange(scope, send), error)
            return
        if token is None:
            await app(given, receive, send)
            return
        exchange = Exchange(scope, send)
        try:
            inner = await self._admit(scope, token, exchange)
        except RequestError as error:
            await refuse(scope, receive, exchange, error)
            return
        try:
            await app(inner, receive, exchange.send)
        finally:
            exchange.log()

    async def _admit(self, scope: Scope, token: str, exchange: Exchange) -> Scope:
        """Check and count a token, and return the scope that the app sees."""
        headers = scope["headers"]
        exchange.client = client = self.clients.identify(scope)
        exchange.claims = claims = self.sealer.unseal(token, self.hosts.resolve(headers))
        inner = {**scope, "aisbreaker": claims}
        credential = ""
        service_id = self.inject.get(app_path(scope))
        if service_id is not None:
            exchange.service_id = service_id
            secret = choose_for(claims.secrets, service_id)
            credential = self.authorizer.secret_in_turn(secret, token=token, jti=claims.jti)
        inner["headers"] = replace_authorization(headers, credential)
        await self.gate.admit(self.plan.for_request(client, claims), exchange)
        return inner
