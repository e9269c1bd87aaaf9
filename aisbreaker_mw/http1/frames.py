"""
WebSocket frames for both sides, without I/O: a bounded number of them at a time.

The library `websockets` reads every frame that has arrived before it returns. A frame of six bytes costs as much as a long one,
so one connection could keep the event loop busy for seconds.
"""

from collections.abc import Generator

from websockets.exceptions import PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol
from websockets.streams import StreamReader

__all__ = ["MAX_FRAGMENTS", "BoundedFrames"]

MAX_FRAGMENTS = 4096
"""Most frames of one message; the library's own number. Each costs memory beside its payload."""

_TURN_BYTES = 1 << 17
_FRAME_BYTES = 1 << 12
"""Bytes of payload that take as long to handle as a frame without any does, roughly."""


class _TurnReader(StreamReader):
    """Interrupts the parser between two frames when a turn has been used up."""

    spent = 0
    more = False

    def at_eof(self) -> Generator[None, None, bool]:
        if self.spent >= _TURN_BYTES:
            # Even if nothing is left: the next turn finds that out.
            self.more = True
            yield
            self.more = False
            self.spent = 0
        return (yield from super().at_eof())


class BoundedFrames(Protocol):
    """
    Mixin for the library's `ServerProtocol` and `ClientProtocol`.

    `receive_data` handles one turn: 128 KiB, or 32 empty frames, or one longer frame. While `more` is true, frames wait, and
    `receive_data(b"")` handles the next turn. A message of more than `MAX_FRAGMENTS` frames fails the connection with 1009.
    """

    reader: _TurnReader
    pings = 0
    """Pings that have been answered so far."""
    _fragments = 0

    @property
    def more(self) -> bool:
        """Whether frames wait for another turn."""
        return self.reader.more

    def receive_data(self, data: bytes | bytearray) -> None:
        self.reader.spent = 0
        super().receive_data(data)

    def receive_eof(self) -> None:
        if self.more:
            # The connection is lost, so nobody takes the frames that wait.
            self.reader.discard()
        self.reader.spent = 0
        super().receive_eof()

    def parse(self) -> Generator[None]:
        # The library makes its reader right before it starts this.
        self.reader = _TurnReader()
        yield from super().parse()

    def recv_frame(self, frame: Frame) -> None:
        self.reader.spent += _FRAME_BYTES + len(frame.data)
        if frame.opcode is Opcode.CONT:
            self._fragments += 1
            if self._fragments >= MAX_FRAGMENTS:
                raise PayloadTooBig(None, MAX_FRAGMENTS)
        elif frame.opcode is Opcode.PING:
            self.pings += 1
        elif frame.opcode is Opcode.CLOSE:
            # RFC 6455, 5.4: control frames may come between the fragments of a message. The library refuses a Close there.
            self.current_size = None
        else:
            self._fragments = 0
        super().recv_frame(frame)
