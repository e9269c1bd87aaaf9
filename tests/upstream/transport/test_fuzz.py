"""
Answers that are cut into any pieces, mutated and broken off, with h11 as the second opinion.

What is delivered as whole must be whole for h11 too, and the same; anything else must be an error. A connection is used again
only where h11 sees the end of the answer and nothing behind it. `FUZZ_EXAMPLES` sets the number of examples.
"""

import asyncio
import os
from dataclasses import dataclass

import h11
import httpx
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from aisbreaker_mw.upstream.transport import HTTPTransport
from aisbreaker_mw.upstream.transport.response import COMPLETE, ResponseReader

from ...upstreams import BROKEN, LEFTOVER, MALFORMED, WHOLE, Answer, Peer, Upstream
from .support import FINE, fetch, native_only, timeouts

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))

bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

BASES = [answer for answer in (WHOLE | LEFTOVER | BROKEN | MALFORMED).values() if len(answer.raw) < 500]
SPLICES = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b"0",
    b"5",
    b"a",
    b"0\r\n\r\n",
    b"\r\n\r\n",
    b"5\r\nhello\r\n",
    b"Content-Length: 3\r\n",
    b"content-length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.0 ",
    b"204",
    b"304",
]


@dataclass(frozen=True)
class Sent:
    """What an upstream sends: the pieces, to a request with this method; then it closes or not."""

    pieces: tuple[bytes, ...]
    method: str
    closes: bool

    @property
    def raw(self) -> bytes:
        return b"".join(self.pieces)


@st.composite
def sent(draw: st.DrawFn) -> Sent:
    base: Answer = draw(st.sampled_from(BASES))
    raw = base.raw
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(raw)))
        end = draw(st.integers(start, min(len(raw), start + 12)))
        splice = draw(st.sampled_from(SPLICES) | st.binary(max_size=3) | st.just(b""))
        raw = raw[:start] + splice + (raw[end:] if draw(st.booleans()) else raw[start:])
    if draw(st.booleans()):
        raw = raw[: draw(st.integers(0, len(raw)))]
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = tuple(raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True) if end > start)
    return Sent(pieces, draw(st.sampled_from([base.method] * 3 + ["GET", "HEAD"])), draw(st.booleans()))


@dataclass
class Opinion:
    """What h11 makes of it: whether the answer is whole, which it is, and whether another may follow on the connection."""

    whole: bool = False
    status: int = 0
    body: bytes = b""
    reusable: bool = False


def second_opinion(item: Sent) -> Opinion:
    opinion = Opinion()
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method=item.method, target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    try:
        for data in [*item.pieces, b""] if item.closes else item.pieces:
            connection.receive_data(data)
            while not opinion.whole and isinstance(event := connection.next_event(), h11.Event):
                if isinstance(event, h11.Response):
                    opinion.status = event.status_code
                elif isinstance(event, h11.Data):
                    opinion.body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    opinion.whole = True
                elif isinstance(event, h11.ConnectionClosed):
                    break
    except h11.RemoteProtocolError:
        pass
    # h11 keeps no connection of HTTP/1.0 open.
    kept = connection.their_state is h11.DONE or connection.their_http_version == b"1.0"
    opinion.reusable = opinion.whole and kept and connection.trailing_data == (b"", False)
    return opinion


@bounded
@given(sent())
def test_the_reader_agrees_with_h11(item: Sent) -> None:
    reader = ResponseReader(item.method != "HEAD")
    error = False
    try:
        for piece in item.pieces:
            reader.receive(piece)
        if item.closes:
            reader.receive_eof()
    except httpx.RemoteProtocolError:
        error = True
    opinion = second_opinion(item)
    note(f"{opinion} {reader.state} {error}")
    if reader.state == COMPLETE and not error:
        assert opinion.whole
        assert (reader.status, b"".join(reader.pieces)) == (opinion.status, opinion.body)
        assert not reader.reusable or opinion.reusable or item.closes  # a closed connection is not used anyway
    elif opinion.whole:
        assert error  # refused, and not waited for


@bounded
@given(sent())
def test_pieces_make_no_difference(item: Sent) -> None:
    outcomes = []
    for pieces in (item.pieces, [item.raw], [item.raw[index : index + 1] for index in range(len(item.raw))]):
        reader = ResponseReader(item.method != "HEAD")
        try:
            for piece in filter(None, pieces):
                reader.receive(piece)
            outcomes.append((reader.state, reader.status, reader.headers, b"".join(reader.pieces), reader.reusable))
        except httpx.RemoteProtocolError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1] == outcomes[2]


@native_only
@bounded
@given(item=sent())
async def test_the_transport_agrees_with_h11(stack: str, item: Sent) -> None:
    everything = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        if not everything.is_set():
            try:
                await peer.send(*item.pieces)
            finally:
                everything.set()
            if item.closes:
                return
            await peer.head()
        await peer.send(FINE)

    opinion = second_opinion(item)
    async with Upstream(script) as upstream:
        transport = HTTPTransport()
        # Only what is not whole yet may be waited for; `fetch` bounds the time in any case.
        patience = timeouts(read=None if opinion.whole or item.closes else 0.02)
        outcome = None
        try:
            outcome = await fetch(transport, upstream.port, method=item.method, timeout=patience)
        except httpx.TransportError as error:
            note(repr(error))
        if outcome is not None:
            assert opinion.whole
            assert outcome == (opinion.status, opinion.body)
        await everything.wait()
        await asyncio.sleep(0.001)  # for what is left over to arrive
        assert await fetch(transport, upstream.port) == (200, b"fine")
        if upstream.connections == 1:
            assert opinion.reusable
        await transport.aclose()


def test_the_second_opinion_shares_the_first_on_whole_answers() -> None:
    for name, answer in WHOLE.items():
        if len(answer.raw) < 500:
            opinion = second_opinion(Sent((answer.raw,), answer.method, answer.closes))
            assert (opinion.whole, opinion.status, opinion.body) == (True, answer.status, answer.body), name
