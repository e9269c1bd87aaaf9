"""
Ports for servers that are started elsewhere, and ports on which nobody listens.

The kernel gives the same few thousand ports to every server that asks for any, and to every outgoing connection. One that it
gave, and that is free again, may be another test's a moment later. So these ports are others, and of those every process
takes its own: the workers that share the tests, and whoever else runs them on this machine.
"""

import functools
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path

LOWEST = 20_000
"""Above the ports of well-known services, and above those that browsers and Node refuse to connect to."""
BLOCK = 100
"""Ports that a process has for itself."""
KERNELS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Return a port of loopback on which nobody listens, and which nobody else is given."""
    ports = _own_ports()
    for port in itertools.islice(ports, BLOCK):
        with socket.socket() as probe:
            if _binds(probe, port):
                return port
    raise RuntimeError("every port of this process is in use")


@functools.cache
def _own_ports() -> Iterator[int]:
    """Return the ports of this process, over and over. The first of its block stays bound, which keeps others off the block."""
    for first in range(LOWEST, end() - BLOCK, BLOCK):
        mark = socket.socket()
        if _binds(mark, first):
            mark.detach()  # stays open as long as the process does
            return itertools.cycle(range(first + 1, first + BLOCK))
        mark.close()
    raise RuntimeError("every block of ports is in use")


def end() -> int:
    """Return the first port that is not for tests: the kernel begins there."""
    first = int(KERNELS.read_text().split()[0]) if KERNELS.exists() else 49_152  # that of macOS and Windows
    return first if first - LOWEST >= 50 * BLOCK else 32_768  # where it gives nearly all, a collision is at least rare


def _binds(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
