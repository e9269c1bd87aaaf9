"""A request to a service as a value, its timeouts, and the response headers that reach the client."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..http1.fields import HOP_BY_HOP, RATE_LIMIT_HEADERS, RawHeaders, forwardable

# Another origin's CORS policy is not ours, and what it says of itself (its cookies, its TLS, its service workers) would be
# taken as said of this one. A web server in front would take X-Accel-Redirect and X-Sendfile as this server's order to send a
# file or an internal page.
_DROPPED = HOP_BY_HOP | {
    b"access-control-allow-credentials",
    b"access-control-allow-headers",
    b"access-control-allow-methods",
    b"access-control-allow-origin",
    b"access-control-expose-headers",
    b"access-control-max-age",
    b"alt-svc",
    b"clear-site-data",
    b"refresh",
    b"service-worker-allowed",
    b"set-cookie",
    b"strict-transport-security",
    b"x-accel-redirect",
    b"x-sendfile",
}
_DROPPED_WHERE_COUNTED = _DROPPED | RATE_LIMIT_HEADERS

_DATA_TYPES = (b"application/json", b"text/event-stream")
"""Media types of most responses, for a quick look. A browser does not run them."""
_ACTIVE_TYPE = re.compile(rb"html|xml|svg|javascript|ecmascript", re.IGNORECASE)
"""Media types that a browser may run, or render with what they refer to."""
_INERT = [(b"content-security-policy", b"sandbox"), (b"x-content-type-options", b"nosniff")]
"""Headers that keep a browser from running a response as a page of this origin."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """
    How long a request waits for its service, in seconds.

    Args:
        connect: to connect, TLS included.
        header: from the end of the request to the first byte of the response.
        idle: between two pieces of the response.
        pool: for a free connection.
    """

    connect: float
    header: float
    idle: float
    pool: float


class Attempts(Protocol):
    """The other ways to send a request whose credential the service has refused."""

    def rejects(self, status: int, headers: RawHeaders, *, told: bool) -> bool:
        """
        Return whether a response refuses the credential, and remember that.

        Args:
            status: status of the response.
            headers: headers of the response, names in lower case.
            told: whether its body says so (`UpstreamRequest.rejections`).
        """

    async def another(self) -> "UpstreamRequest | None":
        """Return the request with another credential, or None where there is none left."""


@dataclass(slots=True)
class UpstreamRequest:
    """
    A request to a service. Its repr shows no credential.

    Args:
        method: HTTP method.
        origin: (scheme, host, port).
        target: request target, byte for byte: path and query.
        headers: all headers, Host first, credential included; framed by `content-length` or by `transfer-encoding: chunked`
            where there is a body.
        relay_unauthorized: whether the service's 401 reaches the client, because the credential is the client's own.
        counted: whether the response tells our rate limit. The service's headers of the same names are then dropped.
        credential: the credential that is sent, which no response may quote; "" where it is the client's own.
        rejections: texts of error bodies by status, with which the service refuses a credential, beside 401; None
            where there are none.
        attempts: the other ways to send the request where its credential is refused; None where there is only this one. Then a
            401 means that the credential is refused.
    """

    method: str
    origin: tuple[str, str, int]
    target: bytes = field(repr=False)
    headers: RawHeaders = field(repr=False)
    relay_unauthorized: bool = False
    counted: bool = False
    credential: str = field(default="", repr=False)
    rejections: Mapping[int, bytes] | None = None
    attempts: Attempts | None = None


def response_headers(received: RawHeaders, *, counted: bool) -> RawHeaders:
    """
    Return the headers of a service's response that reach the client.

    Args:
        received: headers of the response, names in lower case.
        counted: whether the response tells our rate limit. The service's headers of the same names are then dropped.
    """
    kept = forwardable(received, _DROPPED_WHERE_COUNTED if counted else _DROPPED)
    media_type = dict(kept).get(b"content-type")
    if media_type is None or (not media_type.startswith(_DATA_TYPES) and _ACTIVE_TYPE.search(media_type)):
        kept += _INERT
    return kept
