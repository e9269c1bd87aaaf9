"""
WebSocket conformance (RFC 6455), case by case in the numbering of the Autobahn test-suite.

Each case is sent in raw frames to a server of ours, behind which the `websockets` library echoes, and to that library itself.
Both must do the same, but for the cases of `BETTER`. Sections 12 and 13 are about compression, which is not offered.
"""

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from ..support import connect, mint
from ..upstream.websocket.support import SECRET, URL, gateway, handshake, service

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MASK = b"\x11\x22\x33\x44"

BETTER = {"7.1.5"}
"""Cases that the library itself fails."""


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """Return a client's frame."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    else:
        length = b"\xfe" + size.to_bytes(2, "big") if size < 1 << 16 else b"\xff" + size.to_bytes(8, "big")
    key = (MASK * (size // 4 + 1))[:size]
    masked = (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")
    return bytes([fin << 7 | rsv << 4 | opcode]) + length + MASK + masked


def fragments(opcode: int, *pieces: bytes, between: bytes = b"") -> bytes:
    """Return one message in several frames, with others between them."""
    last = len(pieces) - 1
    return between.join(frame(0 if n else opcode, piece, fin=n == last) for n, piece in enumerate(pieces))


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[position : position + size] for position in range(0, len(data), size)]


def close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    return frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


@dataclass
class Seen:
    """What a server sent, until it closed the connection."""

    messages: list[tuple[int, bytes]] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    code: int | None = None
    """Code of its Close; 0 for one without a code."""


class Wire:
    """A client's connection, after its handshake."""

    def __init__(self, connection: socket.socket, head: bytes) -> None:
        self._socket = connection
        self._stream = connection.makefile("rb")
        self.seen = Seen()
        self._message = (0, b"")
        connection.sendall(head)
        assert self._stream.readline().split()[1] == b"101"
        while self._stream.readline() != b"\r\n":
            pass

    def send(self, data: bytes, chop: int = 0) -> None:
        for piece in cut(data, chop) if chop else [data]:
            self._socket.sendall(piece)

    def read(self) -> bool:
        """Read a frame. Return False at the connection's end."""
        try:
            head = self._stream.read(2)
        except ConnectionResetError:
            head = b""
        if len(head) < 2:
            return False
        assert not head[0] & 0x70
        assert not head[1] & 0x80, "a server's frame has no mask"
        size = head[1]
        if size >= 126:
            size = int.from_bytes(self._stream.read(2 if size == 126 else 8), "big")
        payload = self._stream.read(size)
        opcode = head[0] & 15
        if opcode == CLOSE:
            self.seen.code = int.from_bytes(payload[:2], "big")
        elif opcode == PONG:
            self.seen.pongs.append(payload)
        elif opcode != PING:
            self._message = (opcode or self._message[0], (b"" if opcode else self._message[1]) + payload)
            if head[0] & 0x80:
                self.seen.messages.append(self._message)
        return True

    def until(self, messages: int, pongs: int) -> None:
        while len(self.seen.messages) < messages or len(self.seen.pongs) < pongs:
            assert self.read(), f"closed with {self.seen.code}"


@dataclass
class Case:
    """
    What a client sends, and what must come.

    Args:
        sent: the frames.
        messages: messages that come back.
        pongs: payloads of the pongs that come back.
        code: code of the server's Close. The client closes with 1000 once all has come, unless it is another one.
        chop: bytes that are sent at once; 0: all.
    """

    sent: bytes
    messages: list[tuple[int, bytes]] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    code: int = 1000
    chop: int = 0
    closes: bool = False


def echoes(opcode: int, payload: bytes, chop: int = 0) -> Case:
    return Case(frame(opcode, payload), [(opcode, payload)], chop=chop)


def fails(sent: bytes, code: int = 1002) -> Case:
    return Case(sent, code=code, closes=True)


def closed(sent: bytes, code: int = 1000) -> Case:
    return Case(sent, code=code, closes=True)


SIZES = [0, 125, 126, 127, 128, 65_535, 65_536]
HELLO = "Hello-µ@ßöäüàá-UTF-8!!".encode()
NO_TEXT = {
    "6.3.1": b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
    "6.4.1": b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited",
    "6.6.1": b"\xce",
    "6.8.1": b"\xf8\x88\x80\x80\x80",
    "6.10.1": b"\xf7\xbf\xbf\xbf",
    "6.12.1": b"\x80",
    "6.12.8": bytes(range(0x80, 0xC0)),
    "6.13.1": b"\xc0 \xc1 \xc2 \xdf ",
    "6.14.1": b"\xc0",
    "6.14.2": b"\xe0\x80",
    "6.15.1": b"\xc0\xe0\x80\xf0\x80\x80",
    "6.16.1": b"\xfe",
    "6.17.1": b"\xc0\xaf",
    "6.17.2": b"\xe0\x80\xaf",
    "6.18.1": b"\xc1\xbf",
    "6.19.1": b"\xc0\x80",
    "6.20.1": b"\xed\xa0\x80",
    "6.20.7": b"\xed\xbf\xbf",
    "6.21.1": b"\xed\xa0\x80\xed\xb0\x80",
}
BORDERS = [
    "\0",
    "\x7f",
    "\x80",
    "\u07ff",
    "\u0800",
    "\ud7ff",
    "\ue000",
    "\ufffd",
    "\ufffe",
    "\uffff",
    "\U00010000",
    "\U0010ffff",
]

CASES = {
    # 1: framing
    **{f"1.1.{n}": echoes(TEXT, b"*" * size) for n, size in enumerate(SIZES, 1)},
    "1.1.8": echoes(TEXT, b"*" * 65_536, chop=997),
    **{f"1.2.{n}": echoes(BINARY, b"\xfe" * size) for n, size in enumerate(SIZES, 1)},
    "1.2.8": echoes(BINARY, b"\xfe" * 65_536, chop=997),
    # 2: pings and pongs
    "2.1": Case(frame(PING), pongs=[b""]),
    "2.2": Case(frame(PING, b"Hello, world!"), pongs=[b"Hello, world!"]),
    "2.3": Case(frame(PING, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"), pongs=[b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"]),
    "2.4": Case(frame(PING, b"\xfe" * 125), pongs=[b"\xfe" * 125]),
    "2.5": fails(frame(PING, b"\xfe" * 126)),
    "2.6": Case(frame(PING, b"\xfe" * 125), pongs=[b"\xfe" * 125], chop=1),
    "2.7": Case(frame(PONG)),
    "2.8": Case(frame(PONG, b"unsolicited pong payload")),
    "2.9": Case(frame(PONG, b"unsolicited") + frame(PING, b"ping payload"), pongs=[b"ping payload"]),
    "2.10": Case(b"".join(frame(PING, b"payload-%d" % n) for n in range(10)), pongs=[b"payload-%d" % n for n in range(10)]),
    "2.11": Case(b"".join(frame(PING, b"p-%d" % n) for n in range(10)), pongs=[b"p-%d" % n for n in range(10)], chop=1),
    # 3: reserved bits
    **{f"3.{rsv}": fails(frame(TEXT, b"Hello", rsv=rsv)) for rsv in range(1, 8)},
    # 4: reserved opcodes
    **{f"4.1.{n}": fails(frame(2 + n, b"" if n == 1 else b"reserved opcode payload")) for n in range(1, 6)},
    **{f"4.2.{n}": fails(frame(10 + n, b"" if n == 1 else b"reserved opcode payload")) for n in range(1, 6)},
    # 5: fragments
    "5.1": fails(fragments(PING, b"fragment1", b"fragment2")),
    "5.2": fails(fragments(PONG, b"fragment1", b"fragment2")),
    "5.3": Case(fragments(TEXT, b"fragment1", b"fragment2"), [(TEXT, b"fragment1fragment2")]),
    "5.5": Case(fragments(TEXT, b"fragment1", b"fragment2"), [(TEXT, b"fragment1fragment2")], chop=1),
    "5.6": Case(fragments(TEXT, b"f1", b"f2", between=frame(PING, b"ping")), [(TEXT, b"f1f2")], [b"ping"]),
    "5.8": Case(fragments(TEXT, b"f1", b"f2", between=frame(PING, b"ping")), [(TEXT, b"f1f2")], [b"ping"], chop=1),
    "5.9": fails(frame(0, b"non-continuation payload") + frame(TEXT, b"Hello, world!")),
    "5.12": fails(frame(0, b"non-continuation payload", fin=False) + frame(TEXT, b"Hello, world!")),
    "5.15": Case(fragments(TEXT, b"f1", b"f2") + frame(0, b"f3", fin=False) + frame(TEXT, b"f4"), code=1002, closes=True),
    "5.18": fails(frame(TEXT, b"fragment1", fin=False) + frame(TEXT, b"fragment2")),
    "5.19": Case(
        fragments(TEXT, *b"abcde".split(b"c"), b"", b"f", between=frame(PING, b"p") * 2), [(TEXT, b"abdef")], [b"p"] * 6
    ),
    # 6: UTF-8
    "6.1.1": echoes(TEXT, b""),
    "6.1.2": Case(fragments(TEXT, b"", b"", b""), [(TEXT, b"")]),
    "6.1.3": Case(fragments(TEXT, b"", b"middle frame payload", b""), [(TEXT, b"middle frame payload")]),
    "6.2.1": echoes(TEXT, HELLO),
    "6.2.3": Case(fragments(TEXT, *cut(HELLO, 1)), [(TEXT, HELLO)]),
    "6.3.2": fails(fragments(TEXT, *cut(NO_TEXT["6.3.1"], 1)), 1007),
    **{name: fails(frame(TEXT, text), 1007) for name, text in NO_TEXT.items()},
    **{f"6.22.{n}": echoes(TEXT, text.encode()) for n, text in enumerate(BORDERS, 1)},
    # 7: closing
    "7.1.1": Case(frame(TEXT, b"Hello World!"), [(TEXT, b"Hello World!")]),
    "7.1.2": closed(close() * 2),
    "7.1.3": closed(close() + frame(PING)),
    "7.1.4": closed(close() + frame(TEXT, b"Hello World!")),
    "7.1.5": closed(frame(TEXT, b"fragment1", fin=False) + close() + frame(0, b"fragment2")),
    "7.3.1": closed(close(None), 0),
    "7.3.2": fails(frame(CLOSE, b"a")),
    "7.3.3": closed(close()),
    "7.3.4": closed(close(reason=b"Hello World!")),
    "7.3.5": closed(close(reason=b"*" * 123)),
    "7.3.6": fails(close(reason=b"*" * 124)),
    "7.5.1": fails(close(reason=NO_TEXT["6.3.1"]), 1007),
    **{
        f"7.7.{n}": closed(close(code), code)
        for n, code in enumerate([1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999], 1)
    },
    **{f"7.9.{n}": fails(close(code)) for n, code in enumerate([0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999], 1)},
    # 9: sizes
    "9.1.2": echoes(TEXT, b"*" * (256 << 10)),
    "9.2.3": echoes(BINARY, b"\xfe" * (1 << 20)),
    "9.3.8": Case(fragments(TEXT, *cut(b"*" * (1 << 20), 4096)), [(TEXT, b"*" * (1 << 20))]),
    "9.4.6": Case(fragments(BINARY, *cut(b"\xfe" * (1 << 20), 1024)), [(BINARY, b"\xfe" * (1 << 20))]),
    "9.5.6": echoes(TEXT, b"*" * (1 << 20), chop=2048),
    "9.7.1": Case(frame(TEXT) * 1000, [(TEXT, b"")] * 1000),
    "9.8.4": Case(frame(BINARY, b"\xfe" * 256) * 1000, [(BINARY, b"\xfe" * 256)] * 1000),
    # 10: frames of any size
    "10.1.1": Case(fragments(TEXT, *cut(b"*" * 65_536, 1300)), [(TEXT, b"*" * 65_536)]),
}


def talk(base: str, head: bytes, case: Case) -> Seen:
    """Return what a server does in a case."""
    with connect(base) as connection:
        wire = Wire(connection, head)
        wire.send(case.sent, case.chop)
        if not case.closes:
            wire.until(len(case.messages), len(case.pongs))
            wire.send(close())
        while wire.read():
            pass
        return wire.seen


@pytest.fixture(scope="module")
def front() -> Iterator[tuple[str, bytes]]:
    """The base URL of a server of ours, and the head of a handshake."""
    with gateway() as base:
        yield base, handshake("Authorization: Bearer " + mint(base, ("", SECRET)))


@pytest.mark.parametrize("name", CASES)
async def test_case(front: tuple[str, bytes], name: str) -> None:
    case = CASES[name]
    async with service(compression=None, ping_interval=None, max_size=1 << 24):
        ours = await asyncio.to_thread(talk, *front, case)
        direct = await asyncio.to_thread(talk, URL, handshake(), case)
    if case.closes:
        # How many messages before the failure are echoed is a matter of time.
        ours.messages = direct.messages = []
    assert (ours.messages, ours.pongs, ours.code) == (case.messages, case.pongs, case.code)
    assert (direct == ours) == (name not in BETTER)
