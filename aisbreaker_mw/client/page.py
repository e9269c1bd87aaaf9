"""What a browser says of the page that sent a request (Fetch Standard; Fetch Metadata Request Headers)."""

from ..http1.fields import RawHeaders, get

__all__ = ["from_own_page"]

_OWN_SITES = frozenset({None, b"none", b"same-origin"})


def from_own_page(headers: RawHeaders) -> bool:
    """
    Return whether a request was sent by no page, by the user, or by a page of this very host.

    Browsers name the page's origin in `Origin`, but not for every GET, and tell its relation to this host in
    `Sec-Fetch-Site`, but only to hosts with TLS and to loopback. So both must allow it.

    Args:
        headers: headers of the request, names in lower case.
    """
    if get(headers, b"sec-fetch-site") not in _OWN_SITES:
        return False
    origin = get(headers, b"origin")
    return origin is None or origin.partition(b"://")[2] == get(headers, b"host")
