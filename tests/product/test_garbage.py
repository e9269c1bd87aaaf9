"""
Nothing of a request waits for the garbage collector, which would come late and stop every other request.

In each of the ways to end below the collector is off, and what a request is made of goes all the same.
"""

import contextlib
import gc
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from aisbreaker_mw.client.body import RequestBody
from aisbreaker_mw.client.exchange import Exchange
from aisbreaker_mw.serving.cycle import ResponseCycle
from aisbreaker_mw.serving.http_protocol import HTTPProtocol
from aisbreaker_mw.serving.request_head import ChunkedDecoder
from aisbreaker_mw.upstream.transport import stream as upstream_exchange
from aisbreaker_mw.upstream.transport.request import OutgoingRequest
from aisbreaker_mw.upstream.transport.response import ResponseReader

from ..support import WAIT, Recorded, RecordingUpstream, connect, mint, ok, proxy, raw_exchange, wait_until

OF_A_REQUEST = (
    ResponseReader,
    ChunkedDecoder,
    Exchange,
    HTTPProtocol,
    OutgoingRequest,
    RequestBody,
    ResponseCycle,
    upstream_exchange.ResponseStream,
)
BEGUN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n"
TIMES = 10


@dataclass
class Service:
    """The proxy in front of an upstream that does what the path says."""

    base: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    go_on: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released by a client that has seen the beginning of its answer."""

    def script(self, request: Recorded, connection: socket.socket) -> object:
        what = request.target.rpartition(b"/")[2]
        if what in (b"stream", b"stream-that-breaks-off"):
            connection.sendall(BEGUN)
            assert self.go_on.acquire(timeout=WAIT)
            if what == b"stream":
                connection.sendall(b"3\r\nyou\r\n")
                return b"0\r\n\r\n"
        elif what in (b"silence", b"silent-stream"):
            connection.sendall(BEGUN if what == b"silent-stream" else b"")
            connection.settimeout(WAIT)
            connection.recv(1)  # until the proxy goes
        elif what == b"nonsense":
            connection.sendall(b"nonsense\r\n\r\n")
        elif what != b"nothing":
            return ok()
        raise RecordingUpstream.Hangup

    def head(self, what: str, *headers: str, token: str = "good", method: str = "POST") -> bytes:
        lines = [f"{method} /openai/v1/{what} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {self.tokens[token]}"]
        return "\r\n".join([*lines, *headers, "", ""]).encode()

    def ask(self, what: str = "answer", body: bytes = b"{}", *, token: str = "good", framing: str = "") -> bytes:
        framing = framing or f"Content-Length: {len(body)}"
        return raw_exchange(self.base, self.head(what, framing, "Connection: close", token=token) + body)

    def read_stream(self, what: str) -> None:
        with connect(self.base) as client:
            client.sendall(self.head(what, "Content-Length: 0"))
            received = b""
            while b"hi\r\n" not in received:
                received += client.recv(65536)
            self.go_on.release()
            if what == "stream":
                while not received.endswith(b"\r\n0\r\n\r\n"):
                    received += client.recv(65536)
            else:
                while client.recv(65536):
                    pass

    def leave(self, data: bytes, first: bytes = b"") -> None:
        """Go away when an answer has begun like this."""
        with connect(self.base) as client:
            client.sendall(data)
            received = b""
            while first not in received:
                received += client.recv(65536)

    def reuse(self, last: bytes = b"") -> bytes:
        """Ask three times on one connection, send what is last, if there is that, and return what it is answered."""
        with connect(self.base) as client:
            for _ in range(3):
                client.sendall(self.head("answer", "Content-Length: 2") + b"{}")
                assert client.recv(12) == b"HTTP/1.1 200"
                while not client.recv(65536).endswith(b"}"):
                    pass
            client.sendall(last)
            return client.recv(65536) if last else b""

    def open_websocket(self) -> bytes:
        upgrade = ["Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {'x' * 22}=="]
        return self.reuse(self.head("nowhere", *upgrade, token="foreign", method="GET"))


ENDS: dict[str, tuple[Callable[[Service], object], bytes]] = {
    "answered": (lambda at: at.ask(), b" 200 "),
    "answered-on-a-reused-connection": (lambda at: at.reuse(), b""),
    "a-websocket-on-a-reused-connection": (lambda at: at.open_websocket(), b" 401 "),
    "a-body-in-chunks": (lambda at: at.ask(body=b"2\r\nhi\r\n0\r\n\r\n", framing="Transfer-Encoding: chunked"), b" 200 "),
    "a-long-body": (lambda at: at.ask(body=b"x" * 100_000), b" 200 "),
    "streamed": (lambda at: at.read_stream("stream"), b""),
    "an-unknown-token": (lambda at: at.ask(token="unknown"), b" 401 "),
    "a-foreign-credential": (lambda at: at.ask(token="foreign"), b" 401 "),
    "not-allowed": (lambda at: at.ask(token="other"), b" 403 "),
    "over-the-quota": (lambda at: at.ask(token="spent"), b" 429 "),
    "malformed-chunks": (lambda at: at.ask(body=b"zz\r\n", framing="Transfer-Encoding: chunked"), b" 400 "),
    "malformed": (lambda at: raw_exchange(at.base, b"nonsense\r\n\r\n"), b" 400 "),
    "the-client-asks-nothing": (lambda at: at.leave(b""), b""),
    "the-client-leaves-a-stream": (lambda at: at.leave(at.head("silent-stream", "Content-Length: 0"), b"hi\r\n"), b""),
    "the-client-does-not-wait": (lambda at: at.leave(at.head("silence", "Content-Length: 0")), b""),
    "the-client-leaves-a-short-body": (lambda at: at.leave(at.head("answer", "Content-Length: 9") + b"{"), b""),
    "the-client-leaves-a-long-body": (lambda at: at.leave(at.head("answer", "Content-Length: 99999") + b"x" * 50_000), b""),
    "the-upstream-breaks-off": (lambda at: at.read_stream("stream-that-breaks-off"), b""),
    "the-upstream-closes": (lambda at: at.ask("nothing"), b" 502 "),
    "the-upstream-talks-nonsense": (lambda at: at.ask("nonsense"), b" 502 "),
    "the-upstream-is-silent": (lambda at: at.ask("silence"), b" 504 "),
    "the-upstream-stops": (lambda at: at.ask("silent-stream"), b" 200 "),
}


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(RecordingUpstream(made.script))
        made.base = stack.enter_context(proxy(upstream, upstream={"header_timeout": "50ms", "idle_timeout": "300ms"}))
        made.tokens = {
            "good": mint(made.base, ("", "sk-1")),
            "other": mint(made.base, ("chat:example.com", "sk-1")),
            "spent": mint(made.base, ("", "sk-1"), quotas={"globalRequestLimits": {"requestsPerDay": 1}}),
            "foreign": "sk-no-token-of-ours",
            "unknown": "aisbreaker_eyJ2ZXIiOiJ4In0.AAAA",
        }
        made.ask(token="spent")
        yield made


def alive() -> Counter[str]:
    return Counter(type(each).__qualname__ for each in gc.get_objects() if isinstance(each, OF_A_REQUEST))


@pytest.mark.parametrize(("end", "status"), ENDS.values(), ids=ENDS)
def test_nothing_of_a_request_is_left(service: Service, end: Callable[[Service], object], status: bytes) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(TIMES):
            answer = end(service)
            assert not status or (isinstance(answer, bytes) and status in answer.partition(b"\r\n")[0])
        wait_until(lambda: not alive(), "the end of what a request is made of")
    finally:
        gc.enable()
