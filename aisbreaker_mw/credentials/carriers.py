"""Carriers: the places where an SDK puts its API key. The token is found there, and replaced by the service's credential."""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple
from urllib.parse import quote_plus, unquote_plus

from ..exceptions import InvalidRequest, ServiceNotAllowed
from ..http1.fields import RawHeaders
from ..services.key_places import KeyPlaces
from ..services.patterns import covers_vendor, matches, names_engines, needs_engine
from ..services.second_models import NamedModels
from ..services.service import CredentialStyle, RouteMatch
from ..tokens.claims import PRESENTED_TOKEN, ServiceSecret
from ..tokens.sealer import TOKEN_PREFIX

_PREFIX = TOKEN_PREFIX.encode("ascii")
BARE_TOKEN = b"\n" + _PREFIX
"""Start of a header value that begins as a token does, where the values are joined by line ends."""
_MALFORMED = "The Authorization header must be: Bearer, one space, the token."
_MISPLACED = (
    "An aisbreaker_... token is in a header or parameter where this service takes no API key. "
    "Send it where the SDK puts its API key."
)
# Cookies are never forwarded, and a cookie's name may begin like a token. A client may call itself as it likes.
_UNCHECKED = frozenset({b"user-agent", b"cookie"})

_RESOURCE = re.compile(r"(?:(?:projects/[^/]+/locations/[^/]+/)?publishers/[^/]+/)?models/([^/]+)")


class PresentedCredential(NamedTuple):
    """
    The client's credential.

    Attributes:
        token: an `aisbreaker_` token, or None.
        foreign: whether there is a credential that is no such token.
    """

    token: str | None
    foreign: bool

    def __repr__(self) -> str:
        return f"PresentedCredential(token={'***' if self.token else None}, foreign={self.foreign})"


def find(headers: RawHeaders, query: bytes, places: KeyPlaces) -> PresentedCredential:
    """
    Return the credential of a request to a service.

    Args:
        headers: headers of the request, names in lower case.
        query: raw query.
        places: where the service's API key may be.

    Raises:
        InvalidRequest: there are two different tokens; a token is where no API key belongs; or Authorization comes twice, or
            is Bearer with no or several values (RFC 6750, 2.1).
    """
    tokens: set[bytes] = set()
    foreign = False
    authorizations = 0
    for name, value in headers:
        schemes = places.headers.get(name)
        if schemes is None:
            if value.startswith(_PREFIX) and name not in _UNCHECKED:
                raise InvalidRequest(_MISPLACED)
            continue
        authorizations += name == b"authorization"
        credential = _read_header(name, value, schemes)
        if credential.startswith(_PREFIX):
            tokens.add(credential)
        elif _PREFIX in value:
            # A token in the wrong place must not be forwarded as a foreign credential.
            raise InvalidRequest("The token must be the whole API key, behind nothing but Bearer.")
        elif credential:
            foreign = True
    if authorizations > 1:
        raise InvalidRequest("The request has more than one Authorization header.")
    for parameter, text in parse_query(query):
        is_token = text.startswith(TOKEN_PREFIX)
        if parameter not in places.queries:
            if is_token:
                raise InvalidRequest(_MISPLACED)
        elif is_token:
            tokens.add(text.encode("latin-1"))
        elif text:
            foreign = True
    if len(tokens) > 1:
        raise InvalidRequest("The request carries two different tokens.")
    return PresentedCredential(tokens.pop().decode("latin-1") if tokens else None, foreign)


def has_unchecked_token(headers: RawHeaders) -> bool:
    """Return whether a header that is not searched for tokens begins as a token does."""
    return any(value.startswith(_PREFIX) for name, value in headers if name in _UNCHECKED)


def bearer_token(headers: RawHeaders) -> str | None:
    """
    Return the `aisbreaker_` token in `Authorization: Bearer`, or None.

    It is the only carrier on the wrapped app's own paths.

    Raises:
        InvalidRequest: a token is beside another Authorization header, or beside another value.
    """
    values = [value for name, value in headers if name == b"authorization"]
    for value in values:
        scheme, *credentials = value.split() or [b""]
        if scheme.lower() != b"bearer" or not any(credential.startswith(_PREFIX) for credential in credentials):
            continue
        if len(values) > 1:
            raise InvalidRequest("The request has more than one Authorization header.")
        if len(credentials) > 1:
            raise InvalidRequest(_MALFORMED)
        return credentials[0].decode("latin-1")
    return None


def _read_header(name: bytes, value: bytes, schemes: frozenset[bytes]) -> bytes:
    """
    Return the API key in a header: the value without its scheme, or all of it where the scheme is none of these.

    Raises:
        InvalidRequest: Authorization has a scheme with no or several values.
    """
    parts = value.split()
    if not parts:
        return b""
    if parts[0].lower() in schemes:
        if len(parts) == 2:
            return parts[1]
        if name == b"authorization":
            raise InvalidRequest(_MALFORMED)
    if parts[0].startswith(_PREFIX) and len(parts) > 1:
        raise InvalidRequest(_MALFORMED)
    return value.strip()


def parse_query(query: bytes) -> list[tuple[str, str]]:
    """Return the decoded names and values of a raw query."""
    return [(_decoded(name), _decoded(value)) for name, _, value in _pairs(query)] if query else []


def without_keys(query: bytes, places: KeyPlaces) -> bytes:
    """
    Return a raw query without the client's API key. What stays, stays byte for byte.

    Args:
        query: raw query as received.
        places: where the service's API key may be.
    """
    if b"%" not in query and b"+" not in query and not any(name.encode("latin-1") in query for name in places.queries):
        return query
    return b"&".join(b"".join(pair) for pair in _pairs(query) if _decoded(pair[0]) not in places.queries)


def with_credential(target: bytes, style: CredentialStyle, credential: str) -> bytes:
    """Return a request target whose query carries the credential, where the service wants it there."""
    if style.query is None or not credential:
        return target
    separator = b"&" if b"?" in target else b"?"
    return target + separator + f"{quote_plus(style.query)}={quote_plus(credential)}".encode("ascii")


def _pairs(query: bytes) -> list[tuple[bytes, bytes, bytes]]:
    return [pair.partition(b"=") for pair in query.split(b"&")]


def _decoded(text: bytes) -> str:
    return unquote_plus(text.decode("latin-1"), encoding="latin-1")


async def choose(
    secrets: Iterable[ServiceSecret], route: RouteMatch, read_models: Callable[[], Awaitable[NamedModels]]
) -> tuple[ServiceSecret, str]:
    """
    Return the first secret that covers a request, and the request's serviceId, with the engine if that had to be read.

    The secret must cover every other model that the request names, too.

    Args:
        secrets: secrets in the order in which they are tried.
        route: what the request does.
        read_models: returns the models that the request names outside its path. Awaited at most once, and only when a secret's
            pattern names engines.

    Raises:
        ServiceNotAllowed: no secret covers the request, or the one that does leaves out a model that it also names. The message
            names the serviceId.
        InvalidRequest: the request could name a model where it can't be checked.
    """
    service_id = route.service_id_with(route.engine)
    engine_known = route.engine_source is None or bool(route.engine)
    named: NamedModels | None = None
    for secret in secrets:
        pattern = secret.service_id
        if not engine_known and needs_engine(pattern, service_id):
            engine_known = True
            named = await read_models()
            service_id = route.service_id_with(named.engine)
        if not matches(pattern, service_id):
            if route.listing and covers_vendor(pattern, route.vendor):
                return secret, service_id
            continue
        if route.engine_source is not None and names_engines(pattern, route.service_id):
            _check_others(pattern, route, named or await read_models())
        return secret, service_id
    raise ServiceNotAllowed(f"The token holds no secret for {service_id}.")


def _check_others(pattern: str, route: RouteMatch, named: NamedModels) -> None:
    """Refuse a request that names a further model which the chosen secret's pattern doesn't cover."""
    if named.unchecked:
        raise InvalidRequest("The token names models, and the request names one in a place where it can't be checked.")
    for model in sorted(named.others):
        # Google's APIs call a model by its resource's name.
        found = _RESOURCE.fullmatch(model) if route.engine else None
        service_id = route.service_id_with(found[1] if found else model)
        if not model or not matches(pattern, service_id):
            raise ServiceNotAllowed(
                f"The request also names {service_id}, which the token's secret for its model doesn't cover."
            )


def choose_for(secrets: Iterable[ServiceSecret], service_id: str) -> ServiceSecret:
    """
    Return the first secret that covers a serviceId.

    Raises:
        ServiceNotAllowed: no secret covers it. The message names the serviceId.
    """
    for secret in secrets:
        if matches(secret.service_id, service_id):
            return secret
    raise ServiceNotAllowed(f"The token holds no secret for {service_id}.")


def reveal(secret: ServiceSecret, token: str) -> str:
    """Return the credential of a secret, the first where it has several; empty where none is sent."""
    value = secret.auth_secret.get_secret_value()
    return token if value == PRESENTED_TOKEN else value


def replace_authorization(headers: RawHeaders, credential: str) -> RawHeaders:
    """Return a copy of `headers` whose only Authorization is `Bearer credential`; it has none if `credential` is empty."""
    replaced = [header for header in headers if header[0] != b"authorization"]
    if credential:
        replaced.append((b"authorization", b"Bearer " + credential.encode("ascii")))
    return replaced
