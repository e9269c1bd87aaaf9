"""TLS to upstreams: trust, names, ALPN, resumption, and answers that end where TLS was cut off."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from aisbreaker_mw.upstream.transport import HTTPTransport
from aisbreaker_mw.upstream.transport.tls import default_context

from ...upstreams import OK, WAIT, Peer, Upstream
from .support import FINE, always, collect, fetch, make_request, make_transport, native_only, timeouts


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*(names or ("localhost", "127.0.0.1"))).configure_cert(context)
    context.set_alpn_protocols(["http/1.1"])
    return context


async def test_an_upstream_with_a_trusted_certificate(stack: str, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    tls: list[Any] = []

    async def script(peer: Peer) -> None:
        tls.append(peer.writer.get_extra_info("ssl_object"))
        await always(FINE)(peer)

    server = server_context(authority)
    names: list[str | None] = []
    server.sni_callback = lambda socket, name, context: names.append(name)  # type: ignore[assignment,misc]
    async with Upstream(script, server) as upstream:
        transport = make_transport(stack, ssl_context=trusting)
        for _ in range(3):
            assert await fetch(transport, upstream.port, scheme="https", host="localhost") == (200, b"fine")
        assert upstream.connections == 1
        await transport.aclose()
    assert names == ["localhost"]
    assert tls[0].selected_alpn_protocol() == "http/1.1"


async def test_an_upstream_by_its_address(stack: str, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    async with Upstream(always(FINE), server_context(authority)) as upstream:
        transport = make_transport(stack, ssl_context=trusting)
        assert await fetch(transport, upstream.port, scheme="https") == (200, b"fine")
        await transport.aclose()


async def test_an_upstream_that_nobody_vouches_for_is_refused(stack: str, authority: trustme.CA) -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        heads.append(await peer.head())

    async with Upstream(script, server_context(authority)) as upstream:
        transport = make_transport(stack)
        with pytest.raises(httpx.ConnectError):
            await fetch(transport, upstream.port, scheme="https", host="localhost")
        await transport.aclose()
    assert heads == []


async def test_an_upstream_with_another_name_is_refused(stack: str, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    async with Upstream(always(FINE), server_context(authority, "other.example")) as upstream:
        transport = make_transport(stack, ssl_context=trusting)
        with pytest.raises(httpx.ConnectError):
            await fetch(transport, upstream.port, scheme="https", host="localhost")
        await transport.aclose()


async def test_an_upstream_without_tls_is_a_connect_error(stack: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read(1)
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with Upstream(script) as upstream:
        transport = make_transport(stack)
        with pytest.raises(httpx.ConnectError):
            await fetch(transport, upstream.port, scheme="https")
        await transport.aclose()


async def test_a_handshake_that_stops_is_a_connect_timeout(stack: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.closed()

    async with Upstream(script) as upstream:
        transport = make_transport(stack)
        with pytest.raises(httpx.ConnectTimeout):
            await fetch(transport, upstream.port, scheme="https", timeout=timeouts(connect=0.05))
        await transport.aclose()


@native_only
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_is_resumed(
    stack: str, authority: trustme.CA, trusting: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    resumed: list[bool] = []

    async def script(peer: Peer) -> None:
        resumed.append(peer.writer.get_extra_info("ssl_object").session_reused)
        await peer.head()
        await peer.send(FINE)
        await peer.closed()

    server = server_context(authority)
    server.maximum_version = version
    async with Upstream(script, server) as upstream:
        transport = make_transport(stack, ssl_context=trusting, keepalive_expiry=0.0)
        for _ in range(3):
            assert await fetch(transport, upstream.port, scheme="https", host="localhost") == (200, b"fine")
        assert upstream.connections == 3
        await transport.aclose()
    assert resumed == [False, True, True]


@pytest.mark.parametrize("paused", [False, True], ids=["waiting", "paused"])
@pytest.mark.parametrize("size", [1000, 200_000])
@native_only
async def test_a_body_that_ends_with_the_connection_is_whole_only_if_tls_says_so(
    stack: str, authority: trustme.CA, trusting: ssl.SSLContext, size: int, paused: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(OK + b"\r\n" + size * b"x")
        peer.cut_off()
        await peer.closed()

    async with Upstream(script, server_context(authority)) as upstream:
        transport = make_transport(stack, ssl_context=trusting)

        async def exchange() -> bytes:
            response = await transport.handle_async_request(make_request(upstream.port, scheme="https", host="localhost"))
            if paused:
                await asyncio.sleep(0.05)
            return await collect(response)

        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await exchange()
        await transport.aclose()


@pytest.mark.parametrize("framing", [b"", b"Content-Length: 200000\r\n"], ids=["until close", "length"])
@pytest.mark.parametrize("paused", [False, True], ids=["waiting", "paused"])
async def test_a_body_that_ends_with_the_connection_is_whole(
    stack: str, authority: trustme.CA, trusting: ssl.SSLContext, framing: bytes, paused: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(OK + framing + b"Connection: close\r\n\r\n" + 200_000 * b"x")

    async with Upstream(script, server_context(authority)) as upstream:
        transport = make_transport(stack, ssl_context=trusting)
        response = await transport.handle_async_request(make_request(upstream.port, scheme="https", host="localhost"))
        if paused:
            await asyncio.sleep(0.05)
        assert len(await collect(response)) == 200_000
        await transport.aclose()


@native_only
async def test_a_slow_reader_holds_the_upstream_back(stack: str, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    written = 0

    async def script(peer: Peer) -> None:
        nonlocal written
        await peer.head()
        await peer.send(OK + b"Content-Length: 20000000\r\n\r\n")
        for _ in range(200):
            await peer.send(100_000 * b"x")
            written += 1

    async with Upstream(script, server_context(authority)) as upstream, asyncio.timeout(2 * WAIT):
        transport = make_transport(stack, ssl_context=trusting)
        response = await transport.handle_async_request(make_request(upstream.port, scheme="https", host="localhost"))
        last = -1
        while written != last:
            last = written
            await asyncio.sleep(0.02)
        assert written < 150
        assert response.stream.reader.buffered <= 65_536  # type: ignore[attr-defined]
        assert len(await collect(response)) == 20_000_000
        await transport.aclose()


@native_only
async def test_closing_does_not_wait_for_the_upstream(stack: str, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(FINE)
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with Upstream(script, server_context(authority)) as upstream:
        transport = make_transport(stack, ssl_context=trusting)
        await fetch(transport, upstream.port, scheme="https", host="localhost")
        async with asyncio.timeout(0.5):
            await transport.aclose()


def test_the_systems_trust_is_used_and_certifis_where_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def paths(cafile: str | None, capath: str | None) -> Callable[[], ssl.DefaultVerifyPaths]:
        return lambda: ssl.DefaultVerifyPaths(cafile, capath, "", "", "", "")  # type: ignore[arg-type]

    asked: list[str | None] = []
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda cafile=None: asked.append(cafile) or create(cafile=cafile))
    monkeypatch.setattr(ssl, "get_default_verify_paths", paths("/etc/ca.pem", None))
    assert default_context().verify_mode == ssl.CERT_REQUIRED
    monkeypatch.setattr(ssl, "get_default_verify_paths", paths(None, str(tmp_path)))
    assert default_context().check_hostname
    (tmp_path / "0123abcd.0").touch()
    default_context()
    monkeypatch.setattr(ssl, "get_default_verify_paths", paths(None, None))
    assert default_context().cert_store_stats()["x509_ca"] > 50
    assert [name is None for name in asked] == [True, False, True, False]


def test_a_context_is_made_only_when_it_is_needed() -> None:
    assert HTTPTransport()._ssl_context is None
