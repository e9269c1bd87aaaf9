"""The client's network address, as far as it can be trusted."""

from collections.abc import Iterable, MutableMapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from ..asgi import TRAILERS_DROPPED
from ..http1.fields import get_all

IPV6_PREFIX_BITS = 64
"""Length of the IPv6 prefix that counts as one client. A subscriber commonly has a whole /64."""
LOCAL = "unix"
"""Name of the peer on a Unix domain socket, in `trusted_proxies` and as a client."""

Address = IPv4Address | IPv6Address


class ClientIdentifier:
    """
    Identifies clients by address.

    Args:
        trusted_proxies: peers whose X-Forwarded-For is trusted: networks in CIDR form, addresses, or `unix`.

    Raises:
        ValueError: an entry is none of these. The message is fixed.
    """

    def __init__(self, trusted_proxies: Iterable[str] = ()) -> None:
        names = set(trusted_proxies)
        self._trusts_local = LOCAL in names
        self._networks = [_network(name) for name in names - {LOCAL}]

    def identify(self, scope: MutableMapping[str, Any]) -> str:
        """
        Return the client's IPv4 address, or the /64 of its IPv6 address; `unix` for a connection without an address.

        Each proxy appends its peer to X-Forwarded-For, so that is read from the right. The first hop that is no trusted proxy
        is the client. A hop that is no address ends the reading, and the proxy that wrote it counts as the client.

        Some servers append the trailers of a chunked request to its headers. The last X-Forwarded-For could be such a trailer,
        which the client wrote. So of several in a chunked request none is believed, unless the server drops trailers.
        """
        peer = scope.get("client")
        host = peer[0] if peer else LOCAL
        if not (self._networks or self._trusts_local):
            return group(host)
        if not self._is_trusted(host):
            return group(host)
        client = host
        forwarded = get_all(scope["headers"], b"x-forwarded-for")
        if len(forwarded) > 1 and _may_have_trailers(scope):
            return group(host)
        for hop in reversed(b",".join(forwarded).split(b",")):
            address = _hop_address(hop.strip())
            if address is None:
                break
            client = address
            if not self._is_trusted(client):
                break
        return group(client)

    def _is_trusted(self, host: str) -> bool:
        if host == LOCAL:
            return self._trusts_local
        address = _parse(host)
        return address is not None and any(address in network for network in self._networks)


def _may_have_trailers(scope: MutableMapping[str, Any]) -> bool:
    return b"transfer-encoding" in dict(scope["headers"]) and TRAILERS_DROPPED not in (scope.get("extensions") or ())


@lru_cache(maxsize=16_384)
def group(host: str) -> str:
    """Return the group that clients at `host` are counted in: an IPv4 address, mapped into IPv6 or not, or an IPv6 /64."""
    address = _parse(host)
    if address is None:
        # The peer has no address: a Unix domain socket, or a name that the ASGI server made up. No address equals "unknown".
        return host if host == LOCAL else "unknown"
    if address.version == 4:
        return str(address)
    return str(ip_network((int(address) >> IPV6_PREFIX_BITS << IPV6_PREFIX_BITS, IPV6_PREFIX_BITS)))


def _parse(host: str) -> Address | None:
    try:
        address = ip_address(host.partition("%")[0])  # RFC 4007: a zone has a meaning on this machine alone
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _hop_address(hop: bytes) -> str | None:
    text = hop.decode("latin-1").strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return text if _parse(text) else None


def _network(name: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(name, strict=False)
        mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
        # Clients with mapped addresses are compared as IPv4 (`_parse`), so mapped networks are IPv4 too.
        return ip_network((int(mapped), network.prefixlen - 96)) if mapped and network.prefixlen >= 96 else network
    except ValueError:
        raise ValueError("takes networks like 10.0.0.0/8, addresses, or unix") from None
