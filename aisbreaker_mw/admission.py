"""
What the head of a request to a service decides: whose it is, where it goes, with which credential, and what it counts in.

All of that depends on a few fields of the head only, and a client asks for the same again and again. So what was decided is
remembered, and the next request with the same path, credential and client takes one look into a dictionary. What can change
meanwhile is not remembered: the token's expiry is looked at every time, and so are quotas and bodies.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.types import Scope

from .client.body import RequestBody, find_engine
from .client.exchange import Exchange
from .credentials import carriers as credentials
from .exceptions import InvalidToken, MissingCredential, NotFound
from .http1.fields import RawHeaders
from .quotas import Buckets
from .quotas.buckets import BucketPlan
from .services.service import RouteMatch, Service
from .tokens.claims import ServiceSecret, TokenClaims
from .tokens.sealer import TokenSealer

__all__ = ["Admission", "Admissions"]

_FOREIGN = "The API key is no aisbreaker_... token."
_MOST = 2048
"""Decisions that are remembered at once."""
_LONGEST = 10_000
"""Bytes of all that a remembered decision rests on: room for the longest token, and path, query and host beside it."""


@dataclass(frozen=True, slots=True)
class Admission:
    """
    A request that may go to its service, as far as its quotas have room for it. Its repr shows no secret.

    Attributes:
        route: what it does.
        target: path and query that the service is asked for.
        service_id: as far as it had to be known.
        token: that was presented; None: the caller's credential is its own.
        claims: of the token.
        secret: the token's, where its credential is more than the headers here.
        credential: headers that carry the service's credential.
        dropped: names of the headers that don't travel on.
        buckets: what it is counted in.
    """

    route: RouteMatch
    target: bytes
    service_id: str
    token: str | None
    claims: TokenClaims | None
    secret: ServiceSecret | None
    credential: RawHeaders
    dropped: frozenset[bytes]
    buckets: Buckets

    def __repr__(self) -> str:
        return f"Admission(service_id={self.service_id!r})"


class Admissions:
    """
    Decides about requests to services.

    Args:
        sealer: opens the tokens.
        plan: names the quotas.
        host_of: returns the host that the tokens of a request are bound to.
        default_token: of requests without a credential.
        forwards_foreign: whether credentials of others than us are passed on.
        not_forwarded: names of headers that never travel on.
        max_engine_scan_bytes: of a body that is read for the engine that it names.
    """

    def __init__(
        self,
        sealer: TokenSealer,
        plan: BucketPlan,
        *,
        host_of: Callable[[RawHeaders], str],
        default_token: str | None,
        forwards_foreign: bool,
        not_forwarded: frozenset[bytes],
        max_engine_scan_bytes: int,
    ) -> None:
        self._sealer = sealer
        self._plan = plan
        self._host_of = host_of
        self._default_token = default_token
        self._forwards_foreign = forwards_foreign
        self._not_forwarded = not_forwarded
        self._not_forwarded_with_token = not_forwarded | credentials.CARRIERS
        self._max_engine_scan_bytes = max_engine_scan_bytes
        self._known: dict[tuple[str | bytes, ...], Admission] = {}

    async def admit(
        self,
        scope: Scope,
        fields: Mapping[bytes, bytes],
        exchange: Exchange,
        service: Service,
        rest: bytes,
        client: str,
        body: RequestBody,
    ) -> Admission:
        """
        Decide about a request, and tell the exchange what is known of it.

        Args:
            scope: the request's.
            fields: the headers in the scope by name; of those that come more than once the first.
            exchange: the request's.
            service: that is asked for.
            rest: the raw path below the service's name.
            client: who asks (`ClientIdentifier.identify`).
            body: it is framed here, and read where a token names engines.

        Raises:
            RequestError: it may not go there.
        """
        if len(fields) != len(scope["headers"]):
            # Of a field that comes twice, a key would tell one value only.
            return await self._decide(None, scope, fields, exchange, service, rest, client, body)
        key = (
            service.name,
            scope["method"],
            rest,
            scope.get("query_string", b""),
            client,
            fields.get(b"host", b""),
            fields.get(b"authorization", b""),
            fields.get(b"x-api-key", b""),
            fields.get(b"api-key", b""),
            fields.get(b"x-goog-api-key", b""),
        )
        known = self._known.get(key)
        if known is None:
            return await self._decide(key, scope, fields, exchange, service, rest, client, body)
        exchange.dialect = known.route.errors
        exchange.service_id = known.service_id
        body.frame(scope, fields)
        if known.claims is not None:
            self._sealer.check_expiry(known.claims)
            exchange.claims = known.claims
        return known

    async def _decide(
        self,
        key: tuple[str | bytes, ...] | None,
        scope: Scope,
        fields: Mapping[bytes, bytes],
        exchange: Exchange,
        service: Service,
        rest: bytes,
        client: str,
        body: RequestBody,
    ) -> Admission:
        headers, query = scope["headers"], scope.get("query_string", b"")
        host = self._host_of(headers)
        route, target = service.resolve(scope["method"], rest)
        exchange.dialect = route.errors
        exchange.service_id = route.service_id
        if not service.available:
            raise NotFound("This service has no base URL on this server.")
        body.frame(scope, fields)

        found = credentials.find(headers, query)
        token = found.token or (None if found.foreign else self._default_token)
        if token is None:
            if not found.foreign:
                raise MissingCredential
            if not self._forwards_foreign:
                raise InvalidToken(_FOREIGN)
            target = target + b"?" + query if query else target
            buckets = self._plan.for_request(client, None)
            return Admission(route, target, route.service_id, None, None, None, [], self._not_forwarded, buckets)

        exchange.claims = claims = self._sealer.unseal(token, host)
        engine_was_read = False

        async def engine() -> str:
            nonlocal engine_was_read
            engine_was_read = True
            return await find_engine(route.engine_source or "", headers, query, body, self._max_engine_scan_bytes)

        secret, service_id = await credentials.choose(claims.secrets, route, engine)
        exchange.service_id = service_id
        by_headers = not secret.others and route.credential.strategy is None
        revealed = credentials.reveal(secret, token) if by_headers else ""
        query = credentials.replace_query_keys(query, route.credential, revealed)
        admission = Admission(
            route,
            target + b"?" + query if query else target,
            service_id,
            token,
            claims,
            None if by_headers else secret,
            route.credential.headers_for(revealed),
            self._not_forwarded_with_token | route.credential.header_names,
            self._plan.for_request(client, claims),
        )
        if key is not None and not engine_was_read and sum(map(len, key)) <= _LONGEST:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[key] = admission
        return admission
