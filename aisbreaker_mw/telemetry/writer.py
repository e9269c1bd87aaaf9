"""A log handler that never waits for whoever reads the log."""

import logging
import os
import select
import threading
import time

STDERR = 2
MAX_HELD = 4 * 1024 * 1024
"""Most bytes of lines that wait to be written."""
FLUSH_TIMEOUT = 2.0
"""Seconds that the end of the process waits for the log to be read."""


class QueuedHandler(logging.Handler):
    """
    Writes lines to a file descriptor, in a thread of its own.

    A pipe that nobody reads fills up, and a write to it would stop the event loop. Here lines wait in memory, up to a bound.
    Lines over the bound are dropped, and one line tells their number as soon as the log is read again. The end of the process
    waits a moment for what is left.

    The thread writes to the descriptor and not to `sys.stderr`. Its lock would be held as long as the pipe is full.

    Args:
        descriptor: file descriptor to write to.
        max_held: most bytes of lines that wait.
    """

    def __init__(self, descriptor: int = STDERR, max_held: int = MAX_HELD) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._max_held = max_held
        self._guard = threading.RLock()  # a signal handler may log, too
        self._lines: list[bytes] = []
        self._held = 0  # bytes, those that are being written included
        self._dropped = 0
        self._closed = False
        self._wake = threading.Lock()  # released to wake the writer
        self._wake.acquire()
        self._awake = False  # the writer has something to write
        self._writer: threading.Thread | None = None

    def createLock(self) -> None:
        """Make no lock: `emit` has its own, which the writer never holds while it writes."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:  # as in logging's own handlers: a bad log call must not fail the request
            self.handleError(record)
            return
        with self._guard:
            if self._closed:
                return
            if self._held + len(line) > self._max_held:
                self._dropped += 1
                return
            self._lines.append(line)
            self._held += len(line)
            if not self._awake:
                self._awake = True
                if self._writer is None:
                    self._writer = threading.Thread(target=self._write_lines, name="log", daemon=True)
                    self._writer.start()
                self._wake.release()

    def flush(self) -> None:
        """Wait until every line is written, or until it is clear that nobody reads."""
        deadline = time.monotonic() + FLUSH_TIMEOUT
        while self._awake and time.monotonic() < deadline:
            time.sleep(0.005)

    def close(self) -> None:
        """End the thread. Later lines are dropped."""
        with self._guard:
            if self._writer is not None and not (self._closed or self._awake):
                self._awake = True
                self._wake.release()
            self._closed = True
        super().close()

    def _write_lines(self) -> None:
        while True:
            self._wake.acquire()
            while True:
                with self._guard:
                    lines, self._lines = self._lines, []
                    if not lines:
                        self._awake = False
                        if self._closed:
                            return
                        break
                data = b"".join(lines)
                self._write(data)
                with self._guard:
                    self._held -= len(data)
                    dropped, self._dropped = self._dropped, 0
                    if dropped:
                        self._lines.insert(0, self._tell(dropped))

    def _tell(self, dropped: int) -> bytes:
        text = "%d log lines were dropped, as nobody read the log"
        record = logging.LogRecord("aisbreaker_mw.log", logging.WARNING, __file__, 0, text, (dropped,), None)
        line = self.format(record).encode() + b"\n"
        self._held += len(line)
        return line

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # whoever shares the descriptor has made it non-blocking
                select.select([], [self._descriptor], [])
            except OSError:  # the reader has gone for good, and there is nowhere to say so
                return
