"""The host of a request, to which its token is bound."""

from collections.abc import Sequence

from starlette.types import Scope

from ..exceptions import InvalidRequest, MisdirectedRequest
from ..http1.fields import RawHeaders, get_all, host_name
from .loopback import has_loopback_peer, is_local_name

_REBOUND = (
    "This server has no host names configured, and over loopback it does this for local names only. "
    "Set `hosts` (AISBREAKER_HOSTS) to the names that this server answers to."
)


class HostNames:
    """
    The host names of this server.

    Args:
        names: host names in lower case, without port. Tokens are bound to the first. If empty, the server has any name, and
        tokens
            are bound to the request's Host.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def resolve(self, headers: RawHeaders) -> str:
        """
        Return the host to which the tokens of a request are bound.

        Args:
            headers: headers of the request, names in lower case.

        Raises:
            InvalidRequest: the request has several Host headers.
            MisdirectedRequest: it is for another server.
        """
        host = requested_host(headers)
        if not self._names:
            return host
        if host not in self._names:
            raise MisdirectedRequest
        return self._names[0]

    def refuse_rebound(self, scope: Scope) -> None:
        """
        Refuse a request that a page on somebody's public name may have sent to this machine (DNS rebinding).

        Only a server without configured names is asked this, over loopback, before it does something without a token: mint, or
        use the default token.

        Args:
            scope: ASGI scope of the request.

        Raises:
            MisdirectedRequest: the request's Host could be a public name.
        """
        if not self._names and has_loopback_peer(scope) and not is_local_name(requested_host(scope["headers"])):
            raise MisdirectedRequest(_REBOUND)


def requested_host(headers: RawHeaders) -> str:
    """
    Return the name in a request's Host header, "" without one.

    Raises:
        InvalidRequest: the request has several Host headers.
    """
    values = get_all(headers, b"host")
    if len(values) > 1:
        raise InvalidRequest("The request has more than one Host header.")
    return host_name(values[0]) if values else ""
