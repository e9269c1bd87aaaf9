"""
Runs `aisbreaker` and measures the turns of its event loop: `python benchmarks/turns.py FILE serve --port 3000`

From the first connection on, a callback runs in each turn. On SIGUSR1 two lengths, in milliseconds, are written to the file,
and the next measurement begins: the most processor time of a turn, and the longest turn by the clock. The first is what the
server does. The second counts the time, too, that the system gives to other processes.
"""

import asyncio
import signal
import sys
import time
from pathlib import Path

from aisbreaker_mw.cli.commands import main
from aisbreaker_mw.serving import HTTPProtocol


class Turns:
    """
    The longest turns of a loop so far.

    Args:
        path: file that they are written to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = self._busy = 0.0
        self._longest = self._busiest = 0.0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._began, self._busy = time.perf_counter(), time.thread_time()
        signal.signal(signal.SIGUSR1, lambda *_: self.tell())
        loop.call_soon(self._tick)

    def _tick(self) -> None:
        now, busy = time.perf_counter(), time.thread_time()
        self._longest = max(self._longest, now - self._began)
        self._busiest = max(self._busiest, busy - self._busy)
        self._began, self._busy = now, busy
        self._loop.call_soon(self._tick)

    def tell(self) -> None:
        self._path.write_text(f"{self._busiest * 1000:.1f} | {self._longest * 1000:.0f}\n")
        self._longest = self._busiest = 0.0


def watch(turns: Turns) -> None:
    """Start when the first connection is made."""
    connection_made = HTTPProtocol.connection_made

    def first(self: HTTPProtocol, transport: asyncio.BaseTransport) -> None:
        HTTPProtocol.connection_made = connection_made  # type: ignore[method-assign]
        turns.start(self.loop)
        connection_made(self, transport)

    HTTPProtocol.connection_made = first  # type: ignore[method-assign]


if __name__ == "__main__":
    watch(Turns(Path(sys.argv.pop(1))))
    sys.exit(main())
