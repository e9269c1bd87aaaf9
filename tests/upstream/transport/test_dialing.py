"""Connecting: addresses, families, and upstreams that do not accept."""

import asyncio
import socket
from collections.abc import Iterator

import httpx
import pytest

from aisbreaker_mw.upstream.transport import HTTPTransport, dialing

from ...ports import free_port
from ...upstreams import Upstream, until
from .support import FINE, always, fetch, native_only, timeouts


async def test_a_port_without_a_listener_is_a_connect_error(transport: httpx.AsyncBaseTransport) -> None:
    with pytest.raises(httpx.ConnectError) as raised:
        await fetch(transport, free_port())
    if isinstance(transport, HTTPTransport):
        assert str(raised.value) == "the upstream cannot be reached"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b.invalid"])
async def test_a_host_without_an_address_is_a_connect_error(transport: httpx.AsyncBaseTransport, host: str) -> None:
    with pytest.raises(httpx.ConnectError):
        await fetch(transport, 80, host=host)


@pytest.fixture
def full_listener(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port whose queue of connections is full, so that nobody's next one is accepted."""
    fillers: list[socket.socket] = []
    with socket.socket() as listener:
        listener.bind((getattr(request, "param", "127.0.0.1"), free_port()))
        listener.listen(0)
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        yield listener.getsockname()[1]
        for filler in fillers:
            filler.close()


async def test_an_upstream_that_does_not_accept_is_a_connect_timeout(
    transport: httpx.AsyncBaseTransport, full_listener: int
) -> None:
    with pytest.raises(httpx.ConnectTimeout):
        await fetch(transport, full_listener, timeout=timeouts(connect=0.05))


@native_only
async def test_every_address_is_tried(transport: httpx.AsyncBaseTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Upstream(always(FINE)) as upstream:
        resolve_to(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1")
        assert await fetch(transport, upstream.port, host="many.example") == (200, b"fine")
        resolve_to(monkeypatch, "127.0.0.2", "127.0.0.3")
        with pytest.raises(httpx.ConnectError):
            await fetch(transport, upstream.port, host="few.example")


@native_only
@pytest.mark.parametrize("full_listener", ["127.0.0.2"], indirect=True)
async def test_an_address_that_does_not_answer_holds_up_little(
    transport: httpx.AsyncBaseTransport, monkeypatch: pytest.MonkeyPatch, full_listener: int
) -> None:
    monkeypatch.setattr(dialing, "ATTEMPT_DELAY", 0.01)
    async with Upstream(always(FINE), port=full_listener):
        resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1", "127.0.0.2")
        tasks = len(asyncio.all_tasks())
        assert await fetch(transport, full_listener, host="many.example", timeout=timeouts(connect=1)) == (200, b"fine")
        await until(lambda: len(asyncio.all_tasks()) == tasks + 1, "the end of the other attempts")  # and one of the upstream's
        resolve_to(monkeypatch, "127.0.0.2", "127.0.0.2")
        with pytest.raises(httpx.ConnectTimeout):
            await fetch(transport, full_listener, host="few.example", timeout=timeouts(connect=0.05))


@native_only
async def test_of_two_addresses_that_answer_one_is_used(
    transport: httpx.AsyncBaseTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_one = dialing._open
    both = asyncio.Barrier(2)

    async def open_two(address: dialing.AddressInfo) -> socket.socket:
        opened = await open_one(address)
        await both.wait()
        return opened

    monkeypatch.setattr(dialing, "_open", open_two)
    monkeypatch.setattr(dialing, "ATTEMPT_DELAY", 0)
    resolve_to(monkeypatch, "127.0.0.1", "127.0.0.1")
    async with Upstream(always(FINE)) as upstream:
        for _ in range(2):
            assert await fetch(transport, upstream.port, host="many.example") == (200, b"fine")
        await until(lambda: (upstream.connections, upstream.finished) == (2, 1))


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    async def resolve(host: str, port: int) -> list[dialing.AddressInfo]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(dialing, "resolve", resolve)


async def test_the_families_of_addresses_take_turns(monkeypatch: pytest.MonkeyPatch, anyio_backend: object) -> None:
    six, four = (socket.AF_INET6, 1, 6, "", "six"), (socket.AF_INET, 1, 6, "", "four")

    async def getaddrinfo(*args: object, **options: object) -> list[dialing.AddressInfo]:
        return [six, six, six, four]

    class Loop:
        pass

    Loop.getaddrinfo = staticmethod(getaddrinfo)  # type: ignore[attr-defined]
    monkeypatch.setattr(asyncio, "get_running_loop", Loop)
    assert await dialing.resolve("a.example", 80) == [six, four, six, six]


async def test_localhost_has_addresses_that_nobody_listens_on(transport: httpx.AsyncBaseTransport) -> None:
    async with Upstream(always(FINE)) as upstream:
        assert await fetch(transport, upstream.port, host="localhost") == (200, b"fine")


async def test_other_schemes_are_refused(transport: httpx.AsyncBaseTransport) -> None:
    with pytest.raises(httpx.UnsupportedProtocol):
        await fetch(transport, 80, scheme="ftp")
