"""What is on this machine or in a private network, as far as an address or a name tells."""

from ipaddress import IPv6Address, ip_address

from starlette.types import Scope

__all__ = ["comes_from_this_machine", "has_loopback_peer", "is_local_name", "is_loopback_host", "is_private_host"]

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
"""Names that public DNS does not have (RFC 6761, 6.3; RFC 6762, 3; ICANN resolution 2024.07.29.06)."""


def is_loopback_host(host: str) -> bool:
    """Return whether a host name or address is this machine's loopback: `localhost`, `*.localhost`, 127.0.0.0/8, `::1`."""
    return host == "localhost" or host.endswith(".localhost") or _is(host, "is_loopback")


def is_local_name(host: str) -> bool:
    """
    Return whether a host name can't be a public one, or is an address.

    A page can have its own public name resolve to this machine (DNS rebinding). It can't do so with a name without a dot,
    `*.localhost`, `*.local`, `*.internal` or an IP address.
    """
    return "." not in host or host.endswith(_LOCAL_SUFFIXES) or _is_address(host)


def is_private_host(host: str) -> bool:
    """
    Return whether a host is on this machine or in a private network: a loopback, private or link-local address, or a name
    that public DNS does not have. The empty host is not.
    """
    if not host:
        return False
    if _is_address(host):
        return not _is(host, "is_global")
    return is_local_name(host)


def comes_from_this_machine(scope: Scope, host: str) -> bool:
    """
    Return whether a request comes over loopback, or a Unix domain socket, and asks for a loopback host.

    Forwarding headers are not looked at. A proxy on this machine passes the Host that its client asked for.

    Args:
        scope: ASGI scope of the request.
        host: the request's host, lower case, without port.
    """
    return is_loopback_host(host) and has_loopback_peer(scope)


def has_loopback_peer(scope: Scope) -> bool:
    """Return whether a request's connection comes over loopback or a Unix domain socket."""
    peer = scope.get("client")
    return peer is None or is_loopback_host(peer[0])


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _is(host: str, attribute: str) -> bool:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return bool(getattr(address, attribute))
