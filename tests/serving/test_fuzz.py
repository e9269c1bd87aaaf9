"""Requests in any segments, and noise, with h11 as the second opinion."""

import contextlib
import itertools
import os
from typing import Any

import h11
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aisbreaker_mw.exceptions import HeadTooLarge, InvalidRequest
from aisbreaker_mw.serving.request_head import ChunkedDecoder, Limits

from .support import CHUNKED, GET, WITH_TRAILERS, App, Clock, Wire, post, request

FUZZ_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))


SEEDS = [
    GET,
    request(b"GET /a?b HTTP/1.1", b"Connection: keep-alive"),
    request(b"GET / HTTP/1.0", host=b""),
    WITH_TRAILERS,
    post(b"Content-Length: 5", body=b"hello"),
    post(b"Content-Length: 27", body=GET),
    post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 27", body=GET),
    post(*CHUNKED, body=b"1b\r\n" + GET + b"\r\n0\r\nX-Trailer: t\r\n\r\n"),
    post(*CHUNKED, b"Expect: 100-continue", body=b"5;a=b\r\nhello\r\n0\r\n\r\n"),
]


PIECES = [
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"5", b"f", b"\xff", b"\r\n\r\n", b"\r\n ", b"GET"),
    *(b"Host: b\r\n", b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"X: y\r\n"),
    *(
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"0\r\n\r\n",
        b"Connection: close\r\n",
        b"HTTP/1.0",
    ),
]


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """One to three requests with some damage, and the same cut into segments."""
    data = b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 0, 1, 2, 10])))
        data = data[:start] + draw(st.one_of(st.sampled_from(PIECES), st.just(b""), st.binary(max_size=3))) + data[end:]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    if draw(st.booleans()) and len(data) < 300:
        cuts = list(range(len(data)))
    edges = [0, *cuts, len(data)]
    return data, [data[a:b] for a, b in itertools.pairwise(edges) if b > a]


def converse(loop: Clock, segments: list[bytes]) -> tuple[list[tuple[Any, ...]], list[int], bool]:
    """Return the requests that the app saw in whole, the statuses that the client saw, and whether the server closed."""
    app = App()
    wire = Wire(loop, app)
    for segment in segments:
        wire.send(segment)
    for _ in range(3):
        wire.settle()
    requests = [
        (seen.scope["method"], seen.scope["raw_path"], seen.scope["query_string"], seen.headers, seen.body) for seen in app.seen
    ]
    statuses = [status for status in wire.statuses() if status != 100]
    ended = wire.ended
    wire.abandon()
    return requests, statuses, ended


@settings(max_examples=FUZZ_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(streams())
def test_segmentation_changes_nothing(loop: Clock, stream: tuple[bytes, list[bytes]]) -> None:
    data, segments = stream
    whole = converse(loop, [data])
    assert converse(loop, segments) == whole
    requests, statuses, ended = whole
    refused = [status for status in statuses if status >= 400]
    assert len(refused) <= 1
    assert set(refused) <= {400, 431, 501, 505}
    assert not refused or ended
    assert statuses.count(200) == len(requests)
    # What the app saw is what another, independent parser makes of the same bytes.
    assert requests == reference(data)[: len(requests)]


def reference(data: bytes) -> list[tuple[Any, ...]]:
    """The whole requests in `data`, read by h11."""
    requests: list[tuple[Any, ...]] = []
    server = h11.Connection(h11.SERVER)
    server.receive_data(data.removeprefix(b"\r\n"))
    with contextlib.suppress(h11.RemoteProtocolError):
        while isinstance(request := server.next_event(), h11.Request):
            body = b""
            while isinstance(event := server.next_event(), h11.Data):
                body += bytes(event.data)
            if not isinstance(event, h11.EndOfMessage):
                break
            path, _, query = request.target.partition(b"?")
            requests.append((request.method.decode(), path, query, list(request.headers), body))
            server.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            server.send(h11.EndOfMessage())
            if server.our_state is not h11.DONE:
                break
            rest, _ = server.trailing_data
            server = h11.Connection(h11.SERVER)
            server.receive_data(rest.removeprefix(b"\r\n"))
    return requests


@settings(max_examples=FUZZ_EXAMPLES, deadline=None)
@given(st.binary(max_size=200), st.lists(st.sampled_from(PIECES), max_size=10))
def test_decoder_survives_anything(noise: bytes, pieces: list[bytes]) -> None:
    decoder = ChunkedDecoder(Limits())
    with contextlib.suppress(InvalidRequest, HeadTooLarge):
        for piece in (b"".join(pieces), noise):
            decoder.feed(piece)
            if decoder.done:
                break
