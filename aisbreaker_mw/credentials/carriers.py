"""Carriers: the places where an SDK puts its API key. The token is found there, and replaced by the service's credential."""

from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple
from urllib.parse import quote_plus, unquote_plus

from ..exceptions import InvalidRequest, ServiceNotAllowed
from ..http1.fields import RawHeaders
from ..services.patterns import covers_vendor, matches, needs_engine
from ..services.service import CredentialStyle, RouteMatch
from ..tokens.claims import PRESENTED_TOKEN, ServiceSecret
from ..tokens.sealer import TOKEN_PREFIX

_PREFIX = TOKEN_PREFIX.encode("ascii")
KEY_HEADERS = frozenset({b"x-api-key", b"api-key", b"x-goog-api-key"})
"""Headers whose whole value is an API key."""
CARRIERS = KEY_HEADERS | {b"authorization"}
"""Headers that may carry the client's credential. The query parameter `key` is the only other carrier."""


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


def find(headers: Iterable[tuple[bytes, bytes]], query: bytes) -> PresentedCredential:
    """
    Return the credential of a request to a service.

    Args:
        headers: names in lower case.
        query: raw query string.

    Raises:
        InvalidRequest: there are two different tokens, or the Authorization header is a token without Bearer, or Bearer without
            exactly one value (RFC 6750, 2.1).
    """
    tokens: set[bytes] = set()
    foreign = False
    for name, value in headers:
        if name not in CARRIERS:
            continue
        credential = _bearer(value) if name == b"authorization" else value.strip()
        if credential is not None and credential.startswith(_PREFIX):
            tokens.add(credential)
        elif _PREFIX in value:
            # A token in the wrong place must not be forwarded as a foreign credential.
            raise InvalidRequest("The token must be the whole API key, behind nothing but Bearer.")
        elif credential != b"":
            foreign = True
    if b"key" in query or b"%" in query:
        for key in query_keys(query):
            if key.startswith(TOKEN_PREFIX):
                tokens.add(key.encode("latin-1"))
            elif key:
                foreign = True
    if len(tokens) > 1:
        raise InvalidRequest("The request carries two different tokens.")
    return PresentedCredential(tokens.pop().decode("latin-1") if tokens else None, foreign)


def bearer_token(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """
    Return the `aisbreaker_` token in `Authorization: Bearer`, or None.

    It is the only carrier on the wrapped app's own paths.

    Raises:
        InvalidRequest: there are two different tokens.
    """
    found: bytes | None = None
    for name, value in headers:
        if name != b"authorization":
            continue
        scheme, _, credential = value.partition(b" ")
        credential = credential.strip()
        if scheme.lower() != b"bearer" or not credential.startswith(_PREFIX):
            continue
        if found is not None and found != credential:
            raise InvalidRequest("The request carries two different tokens.")
        found = credential
    return None if found is None else found.decode("latin-1")


def _bearer(value: bytes) -> bytes | None:
    """Return the Bearer token in an Authorization header, or None for another scheme."""
    parts = value.split()
    if not parts:
        return b""
    if parts[0].lower() == b"bearer":
        if len(parts) != 2:
            raise InvalidRequest("The Authorization header must be: Bearer, one space, the token.")
        return parts[1]
    if parts[0].startswith(_PREFIX):
        raise InvalidRequest("The Authorization header must be: Bearer, one space, the token.")
    return None


def query_keys(query: bytes) -> list[str]:
    """Return the decoded values of every `key` parameter of a raw query string."""
    return [_decoded(pair[2]) for pair in _pairs(query) if _decoded(pair[0]) == "key"]


def replace_query_keys(query: bytes, style: CredentialStyle, credential: str) -> bytes:
    """
    Return a raw query string without its `key` parameters, and with the credential if the service wants it there.

    Args:
        query: query string as received; the other parameters stay byte for byte.
        style: the service's credential style.
        credential: the credential; empty for none.
    """
    wanted = style.query
    if wanted is None:
        if b"key" not in query and b"%" not in query:
            return query
        return b"&".join(b"".join(pair) for pair in _pairs(query) if _decoded(pair[0]) != "key")
    kept = [b"".join(pair) for pair in _pairs(query) if query and _decoded(pair[0]) not in ("key", wanted)]
    if credential:
        kept.append(f"{quote_plus(wanted)}={quote_plus(credential)}".encode("ascii"))
    return b"&".join(kept)


def _pairs(query: bytes) -> list[tuple[bytes, bytes, bytes]]:
    return [pair.partition(b"=") for pair in query.split(b"&")]


def _decoded(text: bytes) -> str:
    return unquote_plus(text.decode("latin-1"), encoding="latin-1")


async def choose(
    secrets: Iterable[ServiceSecret], route: RouteMatch, read_engine: Callable[[], Awaitable[str]]
) -> tuple[ServiceSecret, str]:
    """
    Return the first secret that covers a request, and the request's serviceId, with the engine if that had to be read.

    Args:
        secrets: secrets in the order in which they are tried.
        route: what the request does.
        read_engine: returns the engine, or "" if the request names none. Awaited at most once, and only when a secret's pattern
            names engines.

    Raises:
        ServiceNotAllowed: no secret covers the request. The message names the serviceId.
    """
    service_id = route.service_id_with(route.engine)
    engine_known = route.engine_source is None or bool(route.engine)
    for secret in secrets:
        pattern = secret.service_id
        if matches(pattern, service_id) or (route.listing and covers_vendor(pattern, route.vendor)):
            return secret, service_id
        if not engine_known and needs_engine(pattern, service_id):
            engine_known = True
            service_id = route.service_id_with(await read_engine())
            if matches(pattern, service_id):
                return secret, service_id
    raise ServiceNotAllowed(f"The token holds no secret for {service_id}.")


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
