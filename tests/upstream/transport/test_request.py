"""The request as the upstream gets it, byte for byte."""

import asyncio

import h11
import httpx
import pytest

from ...upstreams import WAIT, Peer, Upstream, until
from .support import CHUNKED_HEADER, FINE, Body, always, collect, fetch, length, native_only

TARGETS = [
    b"/",
    b"/v1/chat/completions?a=b&a=c",
    b"//a//b/",
    b"/a/../b/./c",
    b'/%zz%2e%2e/%252e?;=[]|^`{}"<>',
    b"/@host:80/a:b?http://x/#f",
    b"/\\..;/",
    b"?a",
    b"*",
    b"http://other.example/absolute",
    b"/" + b"x" * 20_000,
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target[:24].decode())
async def test_the_target_is_written_byte_for_byte(transport: httpx.AsyncBaseTransport, target: bytes) -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        heads.append(await peer.head())
        await peer.send(FINE)

    async with Upstream(script) as upstream:
        assert await fetch(transport, upstream.port, target=target) == (200, b"fine")
    assert heads == [b"GET " + target + b" HTTP/1.1\r\nHost: up.example\r\n\r\n"]


async def test_without_a_target_the_url_is_used(transport: httpx.AsyncBaseTransport) -> None:
    async with Upstream(always(FINE)) as upstream:
        request = httpx.Request("GET", f"http://127.0.0.1:{upstream.port}/a?b=c", headers=[(b"Host", b"x")])
        response = await transport.handle_async_request(request)
        assert await collect(response) == b"fine"


async def test_headers_keep_order_and_case_and_nothing_is_added(transport: httpx.AsyncBaseTransport) -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        heads.append(await peer.head())
        await peer.send(FINE)

    headers = [(b"x-B", b"1"), (b"X-a", b"2"), (b"ACCEPT", b""), (b"x-B", b"\xff\x80 \xc3\xa4"), (b"Cookie", b"a=b; c=d")]
    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port, method="DELETE", headers=headers)
    assert heads == [
        b"DELETE / HTTP/1.1\r\nHost: up.example\r\nx-B: 1\r\nX-a: 2\r\nACCEPT: \r\n"
        b"x-B: \xff\x80 \xc3\xa4\r\nCookie: a=b; c=d\r\n\r\n"
    ]


async def test_a_body_with_a_length_is_sent_as_it_is(transport: httpx.AsyncBaseTransport) -> None:
    received: list[bytes] = []

    async def script(peer: Peer) -> None:
        received.extend([await peer.head(), await peer.body(9)])
        await peer.send(FINE)

    async with Upstream(script) as upstream:
        body = Body(b"one", b"", b"\r\ntwo", lambda: asyncio.sleep(0.005), b"!")
        assert await fetch(transport, upstream.port, method="POST", headers=[length(9)], body=body) == (200, b"fine")
    assert received == [b"POST / HTTP/1.1\r\nHost: up.example\r\nContent-Length: 9\r\n\r\n", b"one\r\ntwo!"]
    assert body.ended
    assert body.closed


async def test_a_body_without_a_length_is_chunked(transport: httpx.AsyncBaseTransport) -> None:
    received: list[bytes] = []
    expected = b"3\r\none\r\n5\r\n\r\ntwo\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"

    async def script(peer: Peer) -> None:
        received.extend([await peer.head(), await peer.body(len(expected))])
        await peer.send(FINE)

    async with Upstream(script) as upstream:
        body = Body(b"one", b"", b"\r\ntwo", lambda: asyncio.sleep(0.005), b"0123456789abcdef")
        assert await fetch(transport, upstream.port, method="PUT", headers=[CHUNKED_HEADER], body=body) == (200, b"fine")
    assert received[1].lower() == expected


async def test_an_empty_body_is_framed_as_given(transport: httpx.AsyncBaseTransport) -> None:
    received: list[bytes] = []

    async def script(peer: Peer) -> None:
        received.append(await peer.head())
        await peer.send(FINE)
        received.extend([await peer.head(), await peer.body(5)])
        await peer.send(FINE)

    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port, method="POST", headers=[length(0)], body=Body())
        await fetch(transport, upstream.port, method="POST", headers=[CHUNKED_HEADER], body=Body())
    assert received[0].endswith(b"\r\nContent-Length: 0\r\n\r\n")
    assert received[2] == b"0\r\n\r\n"


@native_only
@pytest.mark.parametrize("pieces", [1, 5])
async def test_head_and_body_go_out_in_one_segment(transport: httpx.AsyncBaseTransport, pieces: int) -> None:
    received: list[bytes] = []

    async def script(peer: Peer) -> None:
        received.append(await peer.reader.read(65_536))
        await peer.send(FINE)

    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port, method="POST", headers=[CHUNKED_HEADER], body=Body(*[b"hello"] * pieces))
    assert received[0].endswith(b"\r\n\r\n" + b"5\r\nhello\r\n" * pieces + b"0\r\n\r\n")


@native_only
@pytest.mark.parametrize(("framing", "sent"), [(length(5), b"hello"), (CHUNKED_HEADER, b"5\r\nhello\r\n0\r\n\r\n")])
async def test_a_body_that_is_there_goes_out_at_once(
    transport: httpx.AsyncBaseTransport, framing: tuple[bytes, bytes], sent: bytes
) -> None:
    received: list[bytes] = []

    async def script(peer: Peer) -> None:
        received.append(await peer.reader.read(65_536))
        await peer.send(FINE)

    async with Upstream(script) as upstream:
        body = httpx.ByteStream(b"hello")
        assert await fetch(transport, upstream.port, method="POST", headers=[framing], body=body) == (200, b"fine")
        with pytest.raises(httpx.LocalProtocolError):
            await fetch(transport, upstream.port, method="POST", headers=[length(4)], body=body)
        with pytest.raises(httpx.LocalProtocolError):
            await fetch(transport, upstream.port, method="POST", headers=[length(6)], body=body)
        assert upstream.connections == 1
    assert received[0].endswith(b"\r\n\r\n" + sent)


@native_only
async def test_the_head_does_not_wait_for_the_body(transport: httpx.AsyncBaseTransport) -> None:
    seen = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        seen.set()
        assert await peer.body(2) == b"hi"
        await peer.send(FINE)

    async with Upstream(script) as upstream:
        assert await fetch(transport, upstream.port, method="POST", headers=[length(2)], body=Body(seen.wait, b"hi")) == (
            200,
            b"fine",
        )


@pytest.mark.parametrize("pieces", [[b"four"], [b"lo", b"ng"]], ids=["at once", "in pieces"])
@pytest.mark.parametrize("size", [3, 5])
async def test_a_body_of_another_length_is_an_error(
    transport: httpx.AsyncBaseTransport, stack: str, pieces: list[bytes], size: int
) -> None:
    kind = httpx.LocalProtocolError if stack.startswith("native") else h11.LocalProtocolError
    rest: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        rest.append(await peer.closed())

    async with Upstream(script) as upstream:
        with pytest.raises(kind):
            await fetch(transport, upstream.port, method="POST", headers=[length(size)], body=Body(*pieces))
        await until(lambda: rest or upstream.finished)
    assert len(b"".join(rest)) <= size


@pytest.mark.parametrize("delay", [None, 0.01], ids=["at once", "later"])
async def test_errors_of_the_body_pass_unchanged(transport: httpx.AsyncBaseTransport, delay: float | None) -> None:
    error = LookupError("the client is gone")
    closed = asyncio.Event()

    async def fail() -> None:
        if delay is not None:
            await asyncio.sleep(delay)
        raise error

    async def script(peer: Peer) -> None:
        await peer.closed()
        closed.set()

    async with Upstream(script) as upstream:
        with pytest.raises(LookupError) as raised:
            await fetch(transport, upstream.port, method="POST", headers=[length(9)], body=Body(b"some", fail))
        assert raised.value is error
        async with asyncio.timeout(WAIT):
            await closed.wait()
