"""
The transport over real sockets, against upstreams that script every byte.

What holds for HTTP/1.1 is run against this package's transport, on asyncio's loop and on uvloop, and against httpx's stock
transport. Where the stock transport takes another answer, the table in `upstreams.py` says so. Beyond that:

- It writes a request's head and its body separately, and sends the head only together with the first piece of the body.
- It reads no answer before the body has been sent completely, so an early answer waits for the body, and an upstream that
  answers and closes in the middle of a body may be an error.
- Where a body has another length than its head says, it raises h11's error.
- It has no limit of the age of a connection, and does not send a request again when a connection turns out to be stale.
- Its limit of connections is for all origins together, and `read` bounds every single read, not the time to the head.
"""

import asyncio
import contextlib
import gc
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any

import h11
import httpx
import pytest
import uvloop

from aisbreaker_mw.upstream.transport import HTTPTransport, dialing

from ...ports import free_port
from ...upstreams import (
    BROKEN,
    CHUNKED,
    LEFTOVER,
    MALFORMED,
    OK,
    WAIT,
    WHOLE,
    Answer,
    Peer,
    Script,
    Upstream,
    until,
)

STACKS = ["native-asyncio", "native-uvloop", "stock-asyncio"]
FINE = OK + b"Content-Length: 4\r\n\r\nfine"
Timeout = dict[str, float | None]


@pytest.fixture(params=STACKS)
def stack(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def anyio_backend(stack: str) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": uvloop.new_event_loop if stack == "native-uvloop" else asyncio.new_event_loop}


native_only = pytest.mark.parametrize("stack", STACKS[:2], indirect=True)
asyncio_only = pytest.mark.parametrize("stack", STACKS[:1], indirect=True)


def make_transport(stack: str, max_connections: int = 1000, **options: Any) -> httpx.AsyncBaseTransport:
    if stack.startswith("native"):
        return HTTPTransport(max_connections=max_connections, **options)
    expiry = options.pop("keepalive_expiry", 30.0)
    limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=None, keepalive_expiry=expiry)
    context = options.pop("ssl_context", True)
    return httpx.AsyncHTTPTransport(limits=limits, verify=context, trust_env=False, **options)


@pytest.fixture
async def transport(stack: str) -> AsyncIterator[httpx.AsyncBaseTransport]:
    made = make_transport(stack)
    yield made
    await made.aclose()
    del made


class Body(httpx.AsyncByteStream):
    """A body made by an asynchronous generator; notes whether it was read to its end, and closed."""

    def __init__(self, *pieces: bytes | Callable[[], Any]) -> None:
        self._pieces = pieces
        self.given = 0
        self.ended = False
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for piece in self._pieces:
                if isinstance(piece, bytes):
                    self.given += 1
                    yield piece
                else:
                    await piece()
            self.ended = True
        finally:
            self.closed = True


def timeouts(**seconds: float | None) -> Timeout:
    return {"connect": WAIT, "read": WAIT, "write": WAIT, "pool": WAIT} | seconds


def make_request(
    port: int,
    method: str = "GET",
    target: bytes = b"/",
    headers: list[tuple[bytes, bytes]] | None = None,
    body: httpx.AsyncByteStream | None = None,
    timeout: Timeout | None = None,
    scheme: str = "http",
    host: str = "127.0.0.1",
) -> httpx.Request:
    return httpx.Request(
        method,
        httpx.URL(f"{scheme}://{host}:{port}/"),
        headers=[(b"Host", b"up.example"), *(headers or [])],
        stream=httpx.ByteStream(b"") if body is None else body,
        extensions={"target": target, "timeout": timeouts() if timeout is None else timeout},
    )


async def collect(response: httpx.Response) -> bytes:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    try:
        return b"".join([piece async for piece in response.stream])
    finally:
        await response.stream.aclose()


async def fetch(transport: httpx.AsyncBaseTransport, port: int, **options: Any) -> tuple[int, bytes]:
    """Send a request and read its whole answer, like a proxy."""
    async with asyncio.timeout(WAIT):
        response = await transport.handle_async_request(make_request(port, **options))
        return response.status_code, await collect(response)


def always(*pieces: bytes) -> Script:
    """An upstream that gives the same answer to every request without a body."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            await peer.send(*pieces)

    return script


CHUNKED_HEADER = (b"Transfer-Encoding", b"chunked")


def length(size: int) -> tuple[bytes, bytes]:
    return (b"Content-Length", str(size).encode())


# 1. The request, byte for byte


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


# 2. Streaming and backpressure


async def test_pieces_are_delivered_as_they_arrive(transport: httpx.AsyncBaseTransport) -> None:
    taken = asyncio.Semaphore(0)

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED)
        for number in range(20):
            await taken.acquire()
            await peer.send(b"3\r\n%03d\r\n" % number)
        await taken.acquire()
        await peer.send(b"0\r\n\r\n")

    async with Upstream(script) as upstream, asyncio.timeout(WAIT):
        response = await transport.handle_async_request(make_request(upstream.port))
        taken.release()
        assert isinstance(response.stream, httpx.AsyncByteStream)
        pieces = []
        async for piece in response.stream:
            pieces.append(piece)
            taken.release()
        await response.stream.aclose()
    assert pieces == [b"%03d" % number for number in range(20)]


@native_only
async def test_pieces_that_came_together_are_delivered_together(transport: httpx.AsyncBaseTransport) -> None:
    async with Upstream(always(CHUNKED + 20 * b"2\r\nhi\r\n" + b"0\r\n\r\n")) as upstream:
        response = await transport.handle_async_request(make_request(upstream.port))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        assert [piece async for piece in response.stream] == [20 * b"hi"]


async def test_a_large_body_arrives_whole(transport: httpx.AsyncBaseTransport) -> None:
    body = bytes(range(256)) * 20_000
    async with Upstream(always(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)) as upstream:
        for _ in range(2):
            assert await fetch(transport, upstream.port) == (200, body)
        assert upstream.connections == 1


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_slow_reader_holds_the_upstream_back(transport: httpx.AsyncBaseTransport, framing: str) -> None:
    block = b"x" * 65_536
    blocks = 500  # 32 MB: more than the kernel holds
    written = 0

    async def script(peer: Peer) -> None:
        nonlocal written
        await peer.head()
        if framing == "chunked":
            head, piece, end = CHUNKED, b"10000\r\n" + block + b"\r\n", b"0\r\n\r\n"
        else:
            head, piece, end = OK + b"Content-Length: %d\r\n\r\n" % (blocks * len(block)), block, b""
        await peer.send(OK + b"\r\n" if framing == "close" else head)
        for _ in range(blocks):
            await peer.send(piece)
            written += 1
        await peer.send(end)

    async with Upstream(script) as upstream, asyncio.timeout(2 * WAIT):
        response = await transport.handle_async_request(make_request(upstream.port))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        last = -1
        while written != last:
            last = written
            await asyncio.sleep(0.02)
        assert written < blocks / 2
        if isinstance(transport, HTTPTransport):
            assert response.stream.reader.buffered <= 65_536  # type: ignore[attr-defined]
        assert len(await collect(response)) == blocks * len(block)


# What arrives while the next piece is awaited can be taken at once, without a step of the task that waits.


class Taker:
    """Takes pieces at once or leaves them to whoever waits, by a pattern that begins anew at its end."""

    def __init__(self, *pattern: bool) -> None:
        self._pattern = itertools.cycle(pattern)
        self.pieces: list[bytes] = []
        """What was taken, and what was not: all of it in order."""
        self.taken: list[bytes] = []
        self.refused: list[bytes] = []
        self.got_one = asyncio.Event()

    def __call__(self, piece: bytes) -> bool:
        if not next(self._pattern):
            self.refused.append(piece)
            return False
        self.taken.append(piece)
        self.pieces.append(piece)
        self.got_one.set()
        return True

    async def read(self, response: httpx.Response) -> bytes:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream.write_now = self  # type: ignore[attr-defined]
        try:
            async for piece in response.stream:
                if self.refused:
                    assert piece.startswith(self.refused.pop())
                self.pieces.append(piece)
                self.got_one.set()
        finally:
            await response.stream.aclose()
        return b"".join(self.pieces)


def one_by_one(framing: str, pieces: list[bytes], taker: Taker, end: bytes | None = None) -> Script:
    """Return an upstream that sends each piece when the one before has arrived."""
    head = {
        "length": OK + b"Content-Length: %d\r\n\r\n" % sum(map(len, pieces)),
        "chunked": CHUNKED,
        "close": OK + b"Connection: close\r\n\r\n",
    }[framing]
    if end is None:
        end = b"0\r\n\r\n" if framing == "chunked" else b""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(head)
        for number, piece in enumerate(pieces):
            taker.got_one.clear()
            await peer.send(b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunked" else piece)
            if framing == "length" and number == len(pieces) - 1:
                break
            await taker.got_one.wait()
        await peer.send(end)

    return script


@native_only
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize(
    "pattern", [(True,), (False,), (True, False), (True, True, False, False)], ids=["all", "none", "every-second", "pairs"]
)
@pytest.mark.parametrize("buffer_size", [65_536, 1], ids=["", "bytewise"])
async def test_pieces_taken_at_once_and_pieces_awaited_are_the_whole(
    stack: str, framing: str, pattern: tuple[bool, ...], buffer_size: int
) -> None:
    taker = Taker(*pattern)
    pieces = [b"%d " % number for number in range(50)]
    async with Upstream(one_by_one(framing, pieces, taker)) as upstream, asyncio.timeout(WAIT):
        transport = make_transport(stack, buffer_size=buffer_size)
        response = await transport.handle_async_request(make_request(upstream.port))
        assert await taker.read(response) == b"".join(pieces)
        assert bool(taker.taken) is any(pattern)
        await transport.aclose()


@native_only
async def test_the_last_piece_is_always_awaited(stack: str) -> None:
    taker = Taker(True)
    async with Upstream(one_by_one("length", [b"one", b"two", b"three"], taker)) as upstream, asyncio.timeout(WAIT):
        transport = make_transport(stack)
        response = await transport.handle_async_request(make_request(upstream.port))
        await taker.read(response)
        assert taker.pieces == [b"one", b"two", b"three"]
        assert b"two" in taker.taken
        assert b"three" not in taker.taken
        await transport.aclose()


@native_only
@pytest.mark.parametrize("end", [b"", b"x\r\n"], ids=["broken-off", "malformed"])
async def test_an_answer_that_fails_after_pieces_taken_at_once(stack: str, end: bytes) -> None:
    taker = Taker(True)
    async with Upstream(one_by_one("chunked", [b"one", b"two"], taker, end=end)) as upstream, asyncio.timeout(WAIT):
        transport = make_transport(stack)
        response = await transport.handle_async_request(make_request(upstream.port))
        with pytest.raises(httpx.RemoteProtocolError):
            await taker.read(response)
        assert taker.pieces == [b"one", b"two"]
        assert isinstance(transport, HTTPTransport)
        assert not any(pool.connections for pool in transport._pools.values())
        await transport.aclose()


@native_only
async def test_a_piece_taken_at_once_starts_the_timeout_anew(stack: str) -> None:
    """Without that the first piece's timeout, which is long, would go on."""
    seconds = timeouts()

    class Impatient(Taker):
        def __call__(self, piece: bytes) -> bool:
            seconds["read"] = 0.01
            return super().__call__(piece)

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED, b"3\r\none\r\n")
        await peer.closed()

    taker = Impatient(True)
    async with Upstream(script) as upstream, asyncio.timeout(WAIT / 2):
        transport = make_transport(stack)
        response = await transport.handle_async_request(make_request(upstream.port, timeout=seconds))
        with pytest.raises(httpx.ReadTimeout):
            await taker.read(response)
        assert taker.pieces == [b"one"]
        await transport.aclose()


@pytest.mark.parametrize("headers", [[length(32_768_000)], [CHUNKED_HEADER]], ids=["length", "chunked"])
async def test_a_slow_upstream_holds_the_body_back(
    transport: httpx.AsyncBaseTransport, headers: list[tuple[bytes, bytes]]
) -> None:
    body = Body(*[b"x" * 65_536] * 500)
    start = asyncio.Event()
    received: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        await start.wait()
        received.append(await (peer.chunked_body() if CHUNKED_HEADER in headers else peer.body(32_768_000)))
        await peer.send(FINE)

    async with Upstream(script) as upstream:
        task = asyncio.create_task(fetch(transport, upstream.port, method="POST", headers=headers, body=body))
        last = -1
        while body.given != last:
            last = body.given
            await asyncio.sleep(0.02)
        assert body.given < 250
        start.set()
        assert await task == (200, b"fine")
    assert received[0].count(b"x") == 32_768_000


# 6. Every answer


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


# 6. An answer before the request is finished


@native_only
@pytest.mark.parametrize("given", [0, 1], ids=["before the body", "in the body"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("closes", [False, True], ids=["stays", "closes"])
async def test_an_early_answer_is_delivered_and_the_body_stopped(
    transport: httpx.AsyncBaseTransport, given: int, framing: str, closes: bool
) -> None:
    rest: list[bytes] = []
    never = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        if peer.number == 1:
            await peer.body(given)
            await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
            if closes:
                return
            rest.append(await peer.closed())
        else:
            await peer.send(FINE)

    async with Upstream(script) as upstream:
        body = Body(*[b"x"] * given, never.wait, b"more")
        headers = [length(5) if framing == "length" else CHUNKED_HEADER]
        task = asyncio.current_task()
        assert task is not None
        assert await fetch(transport, upstream.port, method="POST", headers=headers, body=body) == (413, b"big")
        assert task.cancelling() == 0
        assert body.closed
        assert not body.ended
        assert (await fetch(transport, upstream.port))[0] == 200
        assert upstream.connections == 2
        await until(lambda: rest or closes)
    assert b"more" not in b"".join(rest)


@native_only
@pytest.mark.parametrize("there", [False, True], ids=["coming", "there"])
async def test_an_early_answer_reaches_a_body_that_waits_for_the_upstream(
    transport: httpx.AsyncBaseTransport, there: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await asyncio.sleep(0.05)  # until the body has filled every buffer
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await peer.closed()

    async with Upstream(script) as upstream:
        body = Body(*[b"x" * 65_536] * 500)
        stream = httpx.ByteStream(b"x" * 32_768_000) if there else body
        assert await fetch(transport, upstream.port, method="POST", headers=[CHUNKED_HEADER], body=stream) == (413, b"big")
        await fetch(transport, upstream.port, method="HEAD")
        assert upstream.connections == 2
    assert there or (body.closed and body.given < 500)


@native_only
async def test_an_early_answer_is_streamed_after_the_body_was_stopped(transport: httpx.AsyncBaseTransport) -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED)
        await go.wait()
        await peer.send(b"2\r\nhi\r\n0\r\n\r\n")
        await peer.closed()

    async with Upstream(script) as upstream, asyncio.timeout(WAIT):
        request = make_request(upstream.port, method="POST", headers=[length(5)], body=Body(asyncio.Event().wait))
        response = await transport.handle_async_request(request)
        go.set()
        assert await collect(response) == b"hi"


@native_only
async def test_an_interim_answer_does_not_stop_the_body(transport: httpx.AsyncBaseTransport) -> None:
    interim = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        interim.set()
        assert await peer.body(2) == b"hi"
        await peer.send(FINE)
        await peer.head()
        await peer.send(FINE)

    async with Upstream(script) as upstream:
        body = Body(interim.wait, lambda: asyncio.sleep(0.01), b"hi")
        assert await fetch(transport, upstream.port, method="POST", headers=[length(2)], body=body) == (200, b"fine")
        assert await fetch(transport, upstream.port) == (200, b"fine")
        assert upstream.connections == 1


@native_only
async def test_a_body_that_is_complete_but_does_not_say_so_is_no_early_answer(transport: httpx.AsyncBaseTransport) -> None:
    async with Upstream(echo) as upstream:
        body = Body(b"hi", asyncio.Event().wait)
        assert await fetch(transport, upstream.port, method="POST", headers=[length(2)], body=body) == (200, b"hi")
        assert await fetch(transport, upstream.port, method="POST", headers=[length(2)], body=Body(b"ho")) == (200, b"ho")
        assert upstream.connections == 1


async def echo(peer: Peer) -> None:
    while True:
        head = await peer.head()
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
        body = await peer.body(size)
        await peer.send(OK + b"Content-Length: %d\r\n\r\n" % size + body)


@native_only
@pytest.mark.parametrize("reused", [False, True], ids=["fresh", "reused"])
async def test_an_upstream_that_goes_in_the_middle_of_a_body_is_noticed(
    transport: httpx.AsyncBaseTransport, reused: bool
) -> None:
    async def script(peer: Peer) -> None:
        if reused:
            await peer.head()
            await peer.send(FINE)
        await peer.head()
        await peer.body(1)

    async with Upstream(script) as upstream:
        if reused:
            await fetch(transport, upstream.port)
        body = Body(b"x", asyncio.Event().wait)
        with pytest.raises(httpx.TransportError):
            await fetch(transport, upstream.port, method="POST", headers=[length(5)], body=body)
        assert body.closed


# 3. The pool


async def test_the_connection_used_last_is_used_next(transport: httpx.AsyncBaseTransport) -> None:
    numbers: list[int] = []
    both = asyncio.Barrier(2)

    async def script(peer: Peer) -> None:
        await peer.head()
        await both.wait()
        await peer.send(FINE)
        while True:
            await peer.head()
            numbers.append(peer.number)
            await peer.send(FINE)

    async with Upstream(script) as upstream:
        first = asyncio.create_task(fetch(transport, upstream.port))
        await fetch(transport, upstream.port)
        await first
        for _ in range(4):
            await fetch(transport, upstream.port)
        assert upstream.connections == 2
    assert len(set(numbers)) == 1


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_connections_than_the_limit_and_everybody_gets_one(stack: str, limit: int) -> None:
    async with Upstream(echo) as upstream:
        transport = make_transport(stack, max_connections=limit)
        answers = await asyncio.gather(
            *(
                fetch(transport, upstream.port, method="POST", headers=[length(3)], body=Body(b"%03d" % number))
                for number in range(50)
            )
        )
        assert answers == [(200, b"%03d" % number) for number in range(50)]
        assert upstream.connections == limit
        await transport.aclose()


@native_only
async def test_who_waits_longest_is_next(stack: str) -> None:
    order: list[int] = []

    async def one(number: int) -> None:
        await fetch(transport, upstream.port)
        order.append(number)

    async with Upstream(always(FINE)) as upstream:
        transport = make_transport(stack, max_connections=1)
        await asyncio.gather(*(one(number) for number in range(20)))
        await transport.aclose()
    assert order == list(range(20))


async def test_waiting_for_a_connection_ends_after_pool_timeout(stack: str) -> None:
    finish = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            await finish.wait()
            await peer.send(FINE)

    async with Upstream(script) as upstream:
        transport = make_transport(stack, max_connections=1)
        first = asyncio.create_task(fetch(transport, upstream.port))
        await until(lambda: upstream.connections)
        with pytest.raises(httpx.PoolTimeout):
            await fetch(transport, upstream.port, timeout=timeouts(pool=0.01))
        if isinstance(transport, HTTPTransport):
            assert not any(pool._waiters for pool in transport._pools.values())
        finish.set()
        assert await first == (200, b"fine")
        assert await fetch(transport, upstream.port, timeout=timeouts(pool=0.01)) == (200, b"fine")
        assert upstream.connections == 1
        await transport.aclose()


async def test_a_failed_connection_makes_room(stack: str) -> None:
    transport = make_transport(stack, max_connections=1)
    port = free_port()
    for _ in range(3):
        with pytest.raises(httpx.ConnectError):
            await fetch(transport, port)
    await transport.aclose()


async def test_a_dropped_answer_makes_room(stack: str) -> None:
    async with Upstream(always(OK + b"Content-Length: 5\r\n\r\nhe")) as upstream:
        transport = make_transport(stack, max_connections=1)
        for _ in range(3):
            response = await transport.handle_async_request(make_request(upstream.port, timeout=timeouts(pool=1)))
            assert isinstance(response.stream, httpx.AsyncByteStream)
            await response.stream.aclose()
            await response.stream.aclose()
        assert upstream.connections == 3
        await transport.aclose()


@native_only
async def test_an_answer_that_ends_with_an_error_makes_room(stack: str) -> None:
    """Without `aclose`, as when who reads it is cancelled."""
    async with Upstream(always(OK + b"Content-Length: 5\r\n\r\nhe")) as upstream:
        transport = make_transport(stack, max_connections=1)
        for _ in range(3):
            timeout = timeouts(pool=1, read=0.01)
            response = await transport.handle_async_request(make_request(upstream.port, timeout=timeout))
            pieces = aiter(response.stream)  # type: ignore[arg-type]
            assert await anext(pieces) == b"he"
            with pytest.raises(httpx.ReadTimeout):
                await anext(pieces)
        await transport.aclose()


@native_only
async def test_an_idle_connection_is_closed_after_its_time(stack: str) -> None:
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(FINE)
        await peer.closed()
        closed.set()

    async with Upstream(script) as upstream:
        transport = make_transport(stack, keepalive_expiry=0.02)
        await fetch(transport, upstream.port)
        async with asyncio.timeout(WAIT):
            await closed.wait()
        await fetch(transport, upstream.port)
        assert upstream.connections == 2
        await transport.aclose()


async def test_an_expired_connection_is_not_used(stack: str) -> None:
    async with Upstream(always(FINE)) as upstream:
        transport = make_transport(stack, keepalive_expiry=0.0)
        await fetch(transport, upstream.port)
        await fetch(transport, upstream.port)
        assert upstream.connections == 2
        await transport.aclose()


@native_only
async def test_an_old_connection_is_not_used_again(stack: str) -> None:
    async with Upstream(always(FINE)) as upstream:
        transport = make_transport(stack, max_connection_age=0.0, max_connections=1)
        first, second = await asyncio.gather(fetch(transport, upstream.port), fetch(transport, upstream.port))
        assert first == second == (200, b"fine")
        assert upstream.connections == 2
        await transport.aclose()


@pytest.mark.parametrize(
    "leftover", [b"", b"HTTP/1.1 408 Timeout\r\nConnection: close\r\n\r\n", b"x"], ids=["closed", "408", "junk"]
)
@pytest.mark.parametrize("closes", [True, False], ids=["closes", "stays"])
async def test_an_idle_connection_that_the_upstream_closes_or_uses_is_not_used_again(
    transport: httpx.AsyncBaseTransport, leftover: bytes, closes: bool
) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(FINE)
        if peer.number == 1:
            await asyncio.sleep(0.005)
            await peer.send(leftover)
            if closes or not leftover:
                peer.hang_up()
            gone.set()
            await peer.closed()

    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port)
        await gone.wait()
        await asyncio.sleep(0.005)
        assert await fetch(transport, upstream.port, method="POST", headers=[length(2)], body=Body(b"hi")) == (200, b"fine")
        assert upstream.connections == 2


def stale_at_the_second_request(read_body: int = 0) -> tuple[Script, list[bytes]]:
    """An upstream whose first connection ends when the second request arrives."""
    received: list[bytes] = []

    async def script(peer: Peer) -> None:
        if peer.number == 1:
            await peer.head()
            await peer.send(FINE)
            received.append(await peer.head())
            received.append(await peer.body(read_body))
            return
        while True:
            head = await peer.head()
            received.append(head)
            if b"Content-Length: 2" in head:
                received.append(await peer.body(2))
            await peer.send(FINE)

    return script, received


@native_only
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_request_without_a_body_is_sent_again_when_the_connection_was_stale(
    transport: httpx.AsyncBaseTransport, method: str
) -> None:
    script, received = stale_at_the_second_request()
    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port)
        assert await fetch(transport, upstream.port, method=method) == (200, b"fine")
        assert upstream.connections == 2
    assert received[0] == received[2]


@native_only
async def test_a_request_whose_body_has_not_begun_is_sent_again_when_the_connection_was_stale(
    transport: httpx.AsyncBaseTransport,
) -> None:
    script, received = stale_at_the_second_request()
    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port)
        body = Body(lambda: asyncio.sleep(0.02), b"hi")
        assert await fetch(transport, upstream.port, method="POST", headers=[length(2)], body=body) == (200, b"fine")
        assert upstream.connections == 2
    assert received[0] == received[2]
    assert received[3] == b"hi"


async def test_a_body_is_never_sent_twice(transport: httpx.AsyncBaseTransport) -> None:
    script, received = stale_at_the_second_request(2)
    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await fetch(transport, upstream.port, method="POST", headers=[length(2)], body=Body(b"hi"))
        assert upstream.connections == 1
    assert received[1] == b"hi"


@native_only
async def test_a_stale_connection_is_replaced_only_once(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        if peer.number == 1:
            await peer.send(FINE)
            await peer.head()

    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port)
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(transport, upstream.port)
        assert upstream.connections == 2


async def test_a_byte_of_an_answer_forbids_a_second_try(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(FINE)
        await peer.head()
        await peer.send(b"H")

    async with Upstream(script) as upstream:
        await fetch(transport, upstream.port)
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(transport, upstream.port)
        assert upstream.connections == 1


@native_only
async def test_a_fresh_connection_is_never_tried_twice(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()

    async with Upstream(script) as upstream:
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(transport, upstream.port)
        assert upstream.connections == 1


async def test_a_request_with_connection_close_uses_its_connection_alone(transport: httpx.AsyncBaseTransport) -> None:
    async with Upstream(always(FINE)) as upstream:
        for _ in range(2):
            await fetch(transport, upstream.port, headers=[(b"Connection", b"close")])
        assert upstream.connections == 2


async def test_origins_have_connections_of_their_own(transport: httpx.AsyncBaseTransport) -> None:
    async with (
        Upstream(always(OK + b"Content-Length: 1\r\n\r\n1")) as one,
        Upstream(always(OK + b"Content-Length: 1\r\n\r\n2")) as two,
    ):
        for _ in range(3):
            assert await fetch(transport, one.port) == (200, b"1")
            assert await fetch(transport, two.port) == (200, b"2")
        assert (one.connections, two.connections) == (1, 1)


@native_only
async def test_closing_ends_everything(stack: str) -> None:
    dropped = []

    async def script(peer: Peer) -> None:
        await peer.head()
        if peer.number == 1:
            await peer.send(CHUNKED + b"1\r\nx\r\n")
        elif peer.number == 2:
            await peer.send(FINE)
        dropped.append(await peer.closed())

    transport = make_transport(stack, max_connections=3)
    async with Upstream(script) as upstream:
        streaming = await transport.handle_async_request(make_request(upstream.port))
        await fetch(transport, upstream.port)
        reused = asyncio.create_task(fetch(transport, upstream.port))
        fresh = asyncio.create_task(fetch(transport, upstream.port))
        await until(lambda: upstream.connections == 3)
        waiting = asyncio.create_task(fetch(transport, upstream.port))
        await asyncio.sleep(0.005)
        await asyncio.gather(transport.aclose(), transport.aclose())
        for task in (reused, fresh, waiting):
            with pytest.raises(httpx.TransportError):
                await task
        with pytest.raises(httpx.TransportError):
            await collect(streaming)
        with pytest.raises(httpx.ConnectError):
            await fetch(transport, upstream.port)
        await until(lambda: len(dropped) == 3)


@native_only
async def test_a_connection_that_is_made_after_closing_is_dropped(
    transport: httpx.AsyncBaseTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()

    async def resolve(host: str, port: int) -> list[dialing.AddressInfo]:
        await go.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async def script(peer: Peer) -> None:
        await peer.head()

    monkeypatch.setattr(dialing, "resolve", resolve)
    async with Upstream(script) as upstream:
        late = asyncio.create_task(fetch(transport, upstream.port))
        await asyncio.sleep(0.001)
        await transport.aclose()
        go.set()
        with pytest.raises(httpx.ConnectError):
            await late
        await until(lambda: upstream.finished)


# 4. Timeouts


async def test_an_upstream_that_does_not_answer_is_a_read_timeout(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.closed()

    async with Upstream(script) as upstream:
        with pytest.raises(httpx.ReadTimeout):
            await fetch(transport, upstream.port, timeout=timeouts(read=0.02))


@native_only
async def test_a_head_that_trickles_is_a_read_timeout(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        with contextlib.suppress(ConnectionError):
            await peer.send(OK)
            while True:
                await peer.send(b"A: b\r\n")
                await asyncio.sleep(0.005)

    async with Upstream(script) as upstream:
        with pytest.raises(httpx.ReadTimeout):
            await fetch(transport, upstream.port, timeout=timeouts(read=0.05))


async def test_the_timeout_is_looked_up_anew_for_the_body(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED + b"1\r\nx\r\n")
        await peer.closed()

    async with Upstream(script) as upstream:
        timeout = timeouts()
        response = await transport.handle_async_request(make_request(upstream.port, timeout=timeout))
        timeout["read"] = 0.02
        with pytest.raises(httpx.ReadTimeout):
            await collect(response)


async def test_the_timeout_bounds_each_wait_and_not_their_sum(transport: httpx.AsyncBaseTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED)
        for _ in range(20):
            await asyncio.sleep(0.02)
            await peer.send(b"1\r\nx\r\n")
        await peer.send(b"0\r\n\r\n")

    async with Upstream(script) as upstream:
        assert await fetch(transport, upstream.port, timeout=timeouts(read=0.3)) == (200, 20 * b"x")


@native_only
async def test_the_time_to_the_head_begins_at_the_end_of_the_body(transport: httpx.AsyncBaseTransport) -> None:
    async with Upstream(echo) as upstream:
        body = Body(lambda: asyncio.sleep(0.4), b"hi")
        options = {"method": "POST", "headers": [length(2)], "body": body}
        assert await fetch(transport, upstream.port, timeout=timeouts(read=0.3), **options) == (200, b"hi")


@pytest.mark.parametrize("there", [False, True], ids=["coming", "there"])
async def test_an_upstream_that_stops_reading_is_a_write_timeout(transport: httpx.AsyncBaseTransport, there: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(WAIT)

    async with Upstream(script) as upstream:
        body = Body(*[b"x" * 65_536] * 500)
        with pytest.raises(httpx.WriteTimeout):
            await fetch(
                transport, upstream.port, method="POST", headers=[CHUNKED_HEADER], body=body, timeout=timeouts(write=0.02)
            )
    assert body.given < 500


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


@asyncio_only
async def test_no_task_and_no_timer_for_each_piece(
    transport: httpx.AsyncBaseTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    made: list[str] = []
    call_at, create_task = loop.call_at, loop.create_task

    def counting_call_at(when: float, callback: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        made.append(callback.__qualname__)
        return call_at(when, callback, *args, **kwargs)

    def counting_create_task(coroutine: Any, **kwargs: Any) -> Any:
        made.append(coroutine.__qualname__)
        return create_task(coroutine, **kwargs)

    taken = asyncio.Semaphore(0)

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.body(200)
        await peer.send(CHUNKED)
        for _ in range(200):
            await peer.send(b"1\r\nx\r\n")
            await taken.acquire()
        await peer.send(b"0\r\n\r\n")

    async with Upstream(script) as upstream, asyncio.timeout(WAIT):
        monkeypatch.setattr(loop, "call_at", counting_call_at)
        monkeypatch.setattr(loop, "create_task", counting_create_task)
        body = Body(*[b"x", lambda: asyncio.sleep(0)] * 200)
        request = make_request(upstream.port, method="POST", headers=[length(200)], body=body)
        response = await transport.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        async for _ in response.stream:
            taken.release()
        monkeypatch.undo()
    assert made.count("Connection._on_timer") in (1, 2)
    assert len(made) < 10  # the others connect, and serve


# Memory


@native_only
@pytest.mark.parametrize(
    "answer",
    [CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", CHUNKED + b"2\r\nhi\r\n", CHUNKED + b"x", b"nonsense\r\n\r\n", OK, b""],
    ids=["whole", "broken-off", "malformed-body", "malformed", "half-a-head", "none"],
)
async def test_nothing_is_left_for_the_garbage_collector(transport: httpx.AsyncBaseTransport, answer: bytes) -> None:
    """Cycles would be found only now and then, with the bodies that they hold."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(answer)

    async def ask() -> None:
        with contextlib.suppress(httpx.RemoteProtocolError):
            await fetch(transport, upstream.port)
            assert answer.endswith(b"\r\n0\r\n\r\n")

    async with Upstream(script) as upstream:
        await ask()
        gc.collect()
        gc.disable()
        try:
            gc.set_debug(gc.DEBUG_SAVEALL)
            for _ in range(10):
                await ask()
            gc.collect()
            ours = [item for item in gc.garbage if "aisbreaker_mw" in type(item).__module__ or isinstance(item, TracebackType)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert ours == []


def test_the_table_of_answers_has_no_unknown_differences() -> None:
    for answer in (ANSWERS | BROKEN | MALFORMED).values():
        assert isinstance(answer, Answer)
        assert answer.stock in ("same", "accepts", "waits", "drops", "reuses")
