"""
Open files: the limit of the system, and connections that come when it is reached.

A system gives the lowest number that is free to a new file. So the number of a connection's file tells how many are open. The
last numbers are a reserve. A connection that gets one is refused, and the rest of the process goes on: services can be reached,
and the event loop can accept, if only to refuse.
"""

import asyncio
import errno
import logging
import sys
import time
from typing import Any

if sys.platform != "win32":  # it has no such limit
    import resource

__all__ = ["OPEN_FILES", "OpenFiles", "files_needed", "raise_limit"]

_logger = logging.getLogger("aisbreaker_mw.server")

_BASE = 64
"""Files of a process beside its connections: libraries, sockets to listen on, the quota storage."""
_RUN_OUT = frozenset({errno.EMFILE, errno.ENFILE})
_QUIET = 60.0
"""Seconds without a refusal after which an outage is over. Its end isn't told; the next one's begin is."""


def raise_limit() -> int | None:
    """Raise the limit of open files as far as this user may. Return it, or None where there is none."""
    if sys.platform == "win32":
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:  # macOS has a lower limit beside an infinite one
            _logger.warning("the limit of open files stays at %d: %s", soft, error)
    return _limit()


def files_needed(connections: int) -> int:
    """Return how many files a process needs for so many connections to one service, and a client's for each of them."""
    return 2 * connections + _BASE


def _limit() -> int | None:
    if sys.platform == "win32":
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class OpenFiles:
    """Tells the connections to refuse, and logs each outage once. The limit is that of its first use."""

    def __init__(self) -> None:
        self._refuse_from = 0
        self._cut_from = 0
        self._last: float | None = None

    def run_short(self, transport: asyncio.Transport) -> bool:
        """Return True for a connection that must be refused."""
        if not self._refuse_from:
            self._read_limit()
        return self._descriptor(transport) >= self._refuse_from

    def run_out(self, transport: asyncio.Transport) -> bool:
        """Return True for a connection that is to be closed without a response. It would take too long."""
        return self._descriptor(transport) >= self._cut_from

    @staticmethod
    def _descriptor(transport: asyncio.Transport) -> int:
        connection = transport.get_extra_info("socket")
        return -1 if connection is None else int(connection.fileno())

    def _read_limit(self) -> None:
        limit = _limit()
        if limit is None:
            self._refuse_from = self._cut_from = 1 << 62
            return
        reserve = max(8, min(256, limit // 8))
        self._refuse_from = limit - reserve
        self._cut_from = limit - reserve // 2

    def tell(self) -> None:
        """Log that files run out, once per outage."""
        now = time.monotonic()
        if self._last is None or now - self._last > _QUIET:
            _logger.error(
                "open files run out: nearly all of %s are in use; new connections are refused (503) until some close", _limit()
            )
        self._last = now

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an exception in an event loop: asyncio's own loop tells each accept that fails."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _RUN_OUT and "accept" in str(context.get("message")):
            self.tell()
        else:
            loop.default_exception_handler(context)


OPEN_FILES = OpenFiles()
"""Those of this process."""
