"""The host of a request, to which its token is bound."""

from collections.abc import Sequence

from ..exceptions import InvalidRequest, MisdirectedRequest
from ..http1.fields import RawHeaders, get_all, host_name


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
        values = get_all(headers, b"host")
        if len(values) > 1:
            raise InvalidRequest("The request has more than one Host header.")
        host = host_name(values[0]) if values else ""
        if not self._names:
            return host
        if host not in self._names:
            raise MisdirectedRequest
        return self._names[0]
