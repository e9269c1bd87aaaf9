"""TCP connections to a host that may have several addresses."""

import asyncio
import socket
from itertools import chain, zip_longest
from typing import Any

ATTEMPT_DELAY = 0.25
"""Seconds after which the next address is tried beside the ones before (RFC 8305, 5)."""

AddressInfo = tuple[int, int, int, str, Any]
"""An item of `getaddrinfo`'s list."""


async def resolve(host: str, port: int) -> list[AddressInfo]:
    """Return a host's addresses in the system's order, IPv6 and IPv4 in turns (RFC 8305, 4)."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    first = [address for address in found if address[0] == found[0][0]]
    others = [address for address in found if address[0] != found[0][0]]
    return [address for address in chain.from_iterable(zip_longest(first, others)) if address is not None]


async def open_socket(host: str, port: int) -> socket.socket:
    """
    Return a socket connected to the first address of a host that accepts (RFC 8305, "happy eyeballs").

    asyncio's `create_connection` can do it, but loses the socket when it is cancelled at the wrong moment. uvloop's cannot.

    Raises:
        OSError: the host has no address, or no address accepts.
    """
    addresses = await resolve(host, port)
    if len(addresses) == 1:
        return await _open(addresses[0])
    loop = asyncio.get_running_loop()
    attempts: list[asyncio.Task[socket.socket]] = []
    running: set[asyncio.Task[socket.socket]] = set()
    winner = None
    try:
        while winner is None and (running or len(attempts) < len(addresses)):
            if len(attempts) < len(addresses):
                attempts.append(loop.create_task(_open(addresses[len(attempts)])))
                running.add(attempts[-1])
            delay = ATTEMPT_DELAY if len(attempts) < len(addresses) else None
            done, running = await asyncio.wait(running, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            winner = next((attempt for attempt in done if attempt.exception() is None), None)
    finally:
        for attempt in attempts:
            if attempt is not winner:
                attempt.cancel()
                attempt.add_done_callback(_close)
    return attempts[0].result() if winner is None else winner.result()


async def _open(address: AddressInfo) -> socket.socket:
    family, kind, protocol, _, name = address
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setblocking(False)
        await asyncio.get_running_loop().sock_connect(opened, name)
    except BaseException:
        opened.close()
        raise
    return opened


def _close(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()
