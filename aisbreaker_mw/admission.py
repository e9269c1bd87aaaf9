"""
Admission: decides from a request's head where it goes, with which credential, and in which quotas it counts.

A decision depends on a few fields of the head, and clients repeat them. So it is remembered, and the next request with the
same path, credential and client costs one look into a dictionary. The token's expiry, the quotas and the body are checked
every time.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from starlette.types import Scope

from .client.body import RequestBody
from .client.exchange import Exchange
from .client.host import HostNames, requested_host
from .client.loopback import comes_from_this_machine
from .client.loops import PASSED_HEADER, LoopGuard
from .client.page import from_own_page
from .credentials import carriers
from .credentials.authorizer import SecretInUse
from .exceptions import InvalidToken, MethodNotAllowed, MissingCredential, NotFound, ServiceNotAllowed
from .http1.fields import RawHeaders, get
from .memo import WeighedMemo
from .quotas import Buckets
from .quotas.buckets import BucketPlan
from .services.engine_reader import EngineReader
from .services.service import RouteMatch, Service
from .tokens.claims import TokenClaims
from .tokens.sealer import TokenSealer, weigh

__all__ = ["Admission", "AdmissionPolicy", "Admissions", "ServiceRequest"]

# Not TRACE, whose response would repeat the credential, nor CONNECT, which would make a tunnel.
_REFUSED_METHODS = frozenset({"TRACE", "TRACK", "CONNECT"})
_USUAL_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_FOREIGN = "The API key is no aisbreaker_... token."
_KEYLESS = "The token has no credential for this service, which takes no requests without one (services.<name>.keyless)."
_STRANGERS = "A token that anybody can mint reaches this service only on the server's own machine (services.<name>.strangers)."
_MAX_DECISION_BYTES = 32 * 1024 * 1024
"""Most bytes of decisions remembered at once."""
_LEAST_WEIGHT = 16 * 1024
"""Bytes that a decision is taken for at least. It is less for most. So no more than 2,048 are remembered."""
_MAX_KEY_BYTES = 10_000
"""Longest cache key, in bytes: room for the longest token, with path, query and host."""

_Key: TypeAlias = tuple[Any, ...]


class ServiceRequest(NamedTuple):
    """
    A request to a service, as received.

    Attributes:
        service: the service.
        rest: raw path below the service's name.
        scope: ASGI scope.
        fields: headers by name; the first of those that come more than once.
        client: who asks (`ClientIdentifier.identify`).
    """

    service: Service
    rest: bytes
    scope: Scope
    fields: Mapping[bytes, bytes]
    client: str


@dataclass(frozen=True, slots=True)
class Admission:
    """
    The decision about a request that may go to its service, if its quotas have room. Its repr shows no secret.

    Attributes:
        route: what the request does.
        target: path and query that the service is asked for.
        service_id: serviceId, with the engine where a pattern of the token needed it.
        claims: claims of the token; None where the client's own credential is forwarded.
        secret: the token's secret, where the credential is more than the headers here.
        credential: headers that carry the service's credential.
        revealed: the credential itself, which no response may quote; "" where there is none, or `secret` has it.
        dropped: names of the headers that are not forwarded.
        buckets: buckets that the request is counted in.
        checks: what has to be checked for each request; they raise a RequestError.
        lasting: whether the decision holds for every request with the same key.
    """

    route: RouteMatch
    target: bytes
    service_id: str
    claims: TokenClaims | None
    secret: SecretInUse | None
    credential: RawHeaders
    revealed: str
    dropped: frozenset[bytes]
    buckets: Buckets
    checks: tuple[Callable[[Scope], None], ...] = ()
    lasting: bool = True

    @property
    def foreign(self) -> bool:
        """Whether the client's own credential is forwarded."""
        return self.claims is None

    def __repr__(self) -> str:
        return f"Admission(service_id={self.service_id!r})"


@dataclass(frozen=True, slots=True)
class AdmissionPolicy:
    """
    What the configuration says about requests to services. Its repr shows no token.

    Args:
        default_token: token of requests without a credential, or None.
        origins: pages that may use the default token, beside this host's own.
        forwards_foreign: whether credentials that are not ours are forwarded.
        not_forwarded: names of headers that are never forwarded.
        max_engine_scan_bytes: largest body, in bytes, that is read for its engine.
    """

    default_token: str | None
    origins: frozenset[bytes]
    forwards_foreign: bool
    not_forwarded: frozenset[bytes]
    max_engine_scan_bytes: int

    def __repr__(self) -> str:
        return f"AdmissionPolicy(forwards_foreign={self.forwards_foreign})"


class Admissions:
    """
    Decides about requests to services.

    Args:
        sealer: opens tokens.
        hosts: tells the host that tokens are bound to.
        plan: names the buckets that a request is counted in.
        policy: what the configuration says.
        clock: returns seconds since the epoch.
    """

    def __init__(
        self,
        sealer: TokenSealer,
        hosts: HostNames,
        plan: BucketPlan,
        policy: AdmissionPolicy,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sealer = sealer
        self._hosts = hosts
        self._plan = plan
        self._policy = policy
        self._loops = LoopGuard()
        self._decisions: WeighedMemo[_Key | None, Admission] = WeighedMemo(_MAX_DECISION_BYTES, _weigh, _expiry, clock)

    async def admit(self, request: ServiceRequest, body: RequestBody, exchange: Exchange) -> Admission:
        """
        Decide about a request, and tell the exchange what is known of it.

        Args:
            request: the request.
            body: its body. The framing is read here; the content only where a token names engines.
            exchange: its exchange.

        Raises:
            RequestError: the request may not go to its service.
        """
        service, rest, scope, fields, client = request
        # A key tells one value of a field, so a request with a repeated field has none.
        key: _Key | None = None
        if len(fields) == len(scope["headers"]):
            key = (
                (b"\n" + b"\n".join(fields.values())).count(carriers.BARE_TOKEN),
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
            if service.places.own_headers:
                key += tuple([fields.get(name, b"") for name in service.places.own_headers])
        admission = self._decisions[key]
        if admission is None:
            route, target = service.resolve(scope["method"], rest)
            service_id = route.service_id
        else:
            route, service_id = admission.route, admission.service_id
        exchange.dialect = route.errors
        exchange.service_id = service_id
        body.frame(scope, fields)
        if admission is None:
            admission = await self._decide(request, route, target, body, exchange)
            self._remember(key, admission)
        claims = admission.claims
        if claims is not None:
            self._sealer.check_expiry(claims)
            exchange.claims = claims
        for check in admission.checks:
            check(scope)
        return admission

    async def _decide(
        self, request: ServiceRequest, route: RouteMatch, target: bytes, body: RequestBody, exchange: Exchange
    ) -> Admission:
        """Decide about a request that is not remembered: find its credential, and the token's secret for it."""
        service, scope, client, policy = request.service, request.scope, request.client, self._policy
        if scope["method"] in _REFUSED_METHODS:
            raise MethodNotAllowed(*_USUAL_METHODS)
        if not service.available:
            raise NotFound("This service has no base URL on this server.")
        headers, query = scope["headers"], scope.get("query_string", b"")
        host = self._hosts.resolve(headers)
        found = carriers.find(headers, query, service.places)
        lasting = not carriers.has_unchecked_token(headers)
        checks: list[Callable[[Scope], None]] = []
        passed: RawHeaders = []
        dropped = policy.not_forwarded
        if service.is_network:
            checks.append(self._loops.check)
            passed.append(self._loops.header)
        else:
            dropped |= {PASSED_HEADER}
        token = found.token
        if token is None and not found.foreign and policy.default_token is not None:
            self._check_default_token(scope)
            checks.append(self._check_default_token)
            token = policy.default_token
        if token is None:
            if not found.foreign:
                raise MissingCredential
            if not policy.forwards_foreign:
                raise InvalidToken(_FOREIGN)
            return Admission(
                route=route,
                target=_with_query(target, query),
                service_id=route.service_id,
                claims=None,
                secret=None,
                credential=passed,
                revealed="",
                dropped=dropped,
                buckets=self._plan.for_request(client, None),
                checks=tuple(checks),
                lasting=lasting,
            )

        exchange.claims = claims = self._sealer.unseal(token, host)
        engine = EngineReader(route.engine_source or "", headers, query, body, policy.max_engine_scan_bytes)
        secret, exchange.service_id = await carriers.choose(claims.secrets, route, engine.read)
        if secret.keyless and not service.keyless:
            raise ServiceNotAllowed(_KEYLESS)
        if claims.open and service.closed_to_strangers:
            checks.append(self._check_stranger)
        style = route.credential
        by_headers = not secret.others and style.strategy is None
        credential = carriers.reveal(secret, token) if by_headers else ""
        return Admission(
            route=route,
            target=carriers.with_credential(
                _with_query(target, carriers.without_keys(query, service.places)), style, credential
            ),
            service_id=exchange.service_id,
            claims=claims,
            secret=None if by_headers else SecretInUse(secret, style, token, claims.jti),
            credential=[*style.headers_for(credential), *passed],
            revealed=credential,
            dropped=dropped | service.places.header_names,
            buckets=self._plan.for_request(client, claims),
            checks=tuple(checks),
            lasting=lasting and not engine.used,
        )

    def _check_default_token(self, scope: Scope) -> None:
        """Refuse the default token to a page of another origin, and to a page on a name that resolves to this machine."""
        headers = scope["headers"]
        if not from_own_page(headers) and get(headers, b"origin") not in self._policy.origins:
            raise MissingCredential("A page of another origin can't use this server's default token. Send an API key.")
        self._hosts.refuse_rebound(scope)

    def _check_stranger(self, scope: Scope) -> None:
        """Refuse a token that anybody can mint, unless it is used on this machine."""
        if not comes_from_this_machine(scope, requested_host(scope["headers"])):
            raise ServiceNotAllowed(_STRANGERS)

    def _remember(self, key: _Key | None, admission: Admission) -> None:
        if key is None or not admission.lasting or sum(map(len, key[1:])) > _MAX_KEY_BYTES:
            return
        self._decisions.remember(key, admission)


def _weigh(key: _Key | None, admission: Admission) -> int:
    # The key and what is made of it, and the claims, which are shared only as long as the sealer remembers them.
    size = 2 * sum(map(len, key[1:] if key else ()))
    if admission.claims is not None:
        size += weigh(admission.claims)
    return max(size, _LEAST_WEIGHT)


def _expiry(admission: Admission) -> float | None:
    return None if admission.claims is None else admission.claims.exp


def _with_query(target: bytes, query: bytes) -> bytes:
    return target + b"?" + query if query else target
