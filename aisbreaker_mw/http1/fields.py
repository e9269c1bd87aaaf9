"""Raw header lists: `[(name, value), ...]`, bytes, names in lower case as in ASGI."""

from collections.abc import Iterable
from functools import lru_cache

RawHeaders = list[tuple[bytes, bytes]]
"""Header fields in order."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that an intermediary must not forward (RFC 9110, 7.6.1), and those for proxies (RFC 9110, 11.7; Proxy-Connection)."""

CLIENT_ADDRESS = frozenset(
    {
        b"cf-connecting-ip",
        b"fastly-client-ip",
        b"forwarded",
        b"true-client-ip",
        b"via",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-envoy-external-address",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-forwarded-server",
        b"x-real-ip",
    }
)
"""Headers that tell who the client is and how it came here. An AI service does not need to know."""

RATE_LIMIT_HEADERS = frozenset({b"ratelimit", b"ratelimit-policy"})
"""Headers that tell a rate limit (draft-ietf-httpapi-ratelimit-headers-10)."""

PAGE = frozenset({b"cookie", b"origin", b"referer", b"sec-fetch-dest", b"sec-fetch-mode", b"sec-fetch-site", b"sec-fetch-user"})
"""Headers in which a browser describes the calling page. They are for this origin; the service's caller is this server."""

OVERRIDES = frozenset(
    {
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-original-url",
        b"x-override-url",
        b"x-rewrite-url",
    }
)
"""Headers that some servers take for the true method or path. A token's permission was checked by those that were sent."""


# Values of Connection that nearly every message has. They name no header, and need not be split.
_ORDINARY = frozenset({b"close", b"keep-alive", b"Keep-Alive"})
# Options that name no header to forward; and headers that say where the body ends and what it is. Those are meant for the
# recipient, so Connection must not name them (RFC 9110, 7.6.1).
_NEVER_NOMINATED = frozenset(
    {b"", b"close", b"keep-alive", b"te", b"upgrade", b"content-length", b"content-type", b"content-encoding"}
)


def get_all(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Return every value of a header, in order."""
    return [value for key, value in headers if key == name]


def get(headers: RawHeaders, name: bytes) -> bytes | None:
    """Return the first value of a header, or None."""
    return dict(reversed(headers)).get(name)  # faster than a loop: no line of Python runs per header


def forwardable(headers: RawHeaders, dropped: frozenset[bytes]) -> RawHeaders:
    """
    Return the headers to forward, in order.

    Headers that a Connection header names are left out as well (RFC 9110, 7.6.1: "MUST [...] remove any header or trailer
    field(s) from the message with the same name as the connection-option").

    Args:
        headers: headers as received.
        dropped: names to leave out. It must contain `HOP_BY_HOP`.
    """
    kept = [header for header in headers if header[0] not in dropped]
    fields = dict(headers)
    connection = fields.get(b"connection")
    if connection is not None and (connection not in _ORDINARY or len(fields) != len(headers)):
        options = {option.strip().lower() for value in get_all(headers, b"connection") for option in value.split(b",")}
        nominated = options - _NEVER_NOMINATED
        if nominated:
            return [header for header in kept if header[0] not in nominated]
    return kept


@lru_cache(maxsize=1024)
def host_name(value: bytes) -> str:
    """Return the name in a Host header: lower case, without port and trailing dot; an IPv6 address without brackets."""
    text = value.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    name = text.partition(":")[0] if text.count(":") == 1 else text
    return name.removesuffix(".")
