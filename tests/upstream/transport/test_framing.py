"""Every form of response: delivered whole, or an error, and the connection reused only where it can be."""

import asyncio
import contextlib

import httpx
import pytest

from ...upstreams import BROKEN, CHUNKED, LEFTOVER, MALFORMED, OK, WAIT, WHOLE, Answer, Peer, Upstream
from .support import FINE, always, collect, fetch, make_request, timeouts

ANSWERS = WHOLE | LEFTOVER


@pytest.mark.parametrize(
    ("name", "bytewise"),
    # What is left over could come too late to be noticed if it came bytewise.
    [(name, False) for name in ANSWERS] + [(name, True) for name, answer in WHOLE.items() if len(answer.raw) < 1000],
)
async def test_an_answer_is_delivered_and_the_connection_reused_if_it_can_be(
    transport: httpx.AsyncBaseTransport, stack: str, name: str, bytewise: bool
) -> None:
    answer = ANSWERS[name]
    pieces = [answer.raw[index : index + 1] for index in range(len(answer.raw))] if bytewise else [answer.raw]

    async def script(peer: Peer) -> None:
        await peer.head()
        if peer.number == 1:
            await peer.send(*pieces)
            if answer.closes:
                return
            await peer.head()
        await peer.send(FINE)
        await peer.closed()

    reused = answer.reusable if answer.stock == "same" or stack.startswith("native") else answer.stock == "reuses"
    async with Upstream(script) as upstream:
        assert await fetch(transport, upstream.port, method=answer.method) == (answer.status, answer.body)
        if answer.closes:
            return
        if not answer.reusable and reused:  # the stock transport's second answer is what was left over
            with contextlib.suppress(httpx.RemoteProtocolError):
                await fetch(transport, upstream.port)
        else:
            assert await fetch(transport, upstream.port) == (200, b"fine")
        assert upstream.connections == (1 if reused else 2)


@pytest.mark.parametrize("name", BROKEN | MALFORMED)
async def test_any_other_answer_is_an_error_and_the_connection_is_dropped(
    transport: httpx.AsyncBaseTransport, stack: str, name: str
) -> None:
    answer = (BROKEN | MALFORMED)[name]
    difference = "same" if stack.startswith("native") else answer.stock
    dropped = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        if peer.number == 1:
            with contextlib.suppress(ConnectionError):
                await peer.send(answer.raw)
                if not answer.closes:
                    await peer.closed()
            dropped.set()
        else:
            await peer.send(FINE)

    async with Upstream(script) as upstream:
        if difference == "accepts":
            assert len(await fetch(transport, upstream.port, method=answer.method)) == 2
            return
        timeout = timeouts(read=0.05 if difference == "waits" else WAIT)
        with pytest.raises(httpx.ReadTimeout if difference == "waits" else httpx.RemoteProtocolError) as raised:
            await fetch(transport, upstream.port, method=answer.method, timeout=timeout)
        async with asyncio.timeout(WAIT):
            await dropped.wait()
        assert await fetch(transport, upstream.port) == (200, b"fine")
    if stack.startswith("native"):
        assert "up.example" not in str(raised.value)


async def test_what_arrived_before_the_answer_broke_off_is_delivered(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED + b"5\r\nhello\r\n")

    async with Upstream(script) as upstream:
        response = await transport.handle_async_request(make_request(upstream.port))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        pieces = aiter(response.stream)
        assert await anext(pieces) == b"hello"
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(pieces)
        await response.stream.aclose()


@pytest.mark.parametrize(
    "answer", [b"", OK + b"Content-Length: 5\r\n\r\nhe", OK + b"\r\nhe"], ids=["nothing", "length", "close"]
)
async def test_a_reset_is_an_error(transport: httpx.AsyncBaseTransport, answer: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(answer)
        peer.reset()

    async with Upstream(script) as upstream:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await fetch(transport, upstream.port)


async def test_header_bytes_of_the_answer(transport: httpx.AsyncBaseTransport) -> None:
    raw = OK + b"X-b: 1\r\nx-A:  2 \r\nSet-Cookie: a\r\nX-B: \xff\x80\r\nSet-Cookie: b\r\nEmpty:\r\nContent-Length: 0\r\n\r\n"
    async with Upstream(always(raw)) as upstream:
        response = await transport.handle_async_request(make_request(upstream.port))
        await collect(response)
    assert response.headers.raw == [
        (b"X-b", b"1"),
        (b"x-A", b"2"),
        (b"Set-Cookie", b"a"),
        (b"X-B", b"\xff\x80"),
        (b"Set-Cookie", b"b"),
        (b"Empty", b""),
        (b"Content-Length", b"0"),
    ]
    assert response.extensions["http_version"] == b"HTTP/1.1"
    assert response.extensions["reason_phrase"] == b"OK"


async def test_content_encodings_are_left_alone(transport: httpx.AsyncBaseTransport) -> None:
    async with Upstream(always(OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nfine")) as upstream:
        assert await fetch(transport, upstream.port) == (200, b"fine")


def test_the_table_of_answers_has_no_unknown_differences() -> None:
    for answer in (ANSWERS | BROKEN | MALFORMED).values():
        assert isinstance(answer, Answer)
        assert answer.stock in ("same", "accepts", "waits", "drops", "reuses")
