"""
The supervisor: keeps several worker processes running on the same sockets.

A worker that ends is replaced at once. Connections that come meanwhile wait in the kernel's queue, as the supervisor keeps the
sockets open. Workers that serve are kept, whatever becomes of a new one: one that can't start is tried again, after a pause
that grows. Only a first start that fails ends the server.

Supervisor and worker share a pipe. The worker says on it that it serves, and replies to pings. The system closes the pipe when
the supervisor ends, however it ends, and then the worker drains and ends too.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from types import FrameType

import uvicorn

from .open_files import OPEN_FILES

__all__ = ["Supervisor"]

_logger = logging.getLogger("aisbreaker_mw.server")

_PING_INTERVAL = 5.0
"""Seconds between two pings of a worker."""
_SILENCE = 10.0
"""Seconds after which a worker that does not reply is killed."""
_START_TIMEOUT = 60.0
"""Seconds that a worker has to start."""
_LONGEST_PAUSE = 30.0
"""Seconds between two tries to start a worker, at most."""
_LONGEST_PAUSE_AFTER_KILL = 1.0
"""The same where a signal ended the worker."""
_LAST_WORDS = 5.0
"""Seconds that an orphaned worker has beyond the drain."""

_ENDS = frozenset({signal.SIGINT, signal.SIGTERM})
_SIGNALS = (*_ENDS, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (*_ENDS,)

_READY = b"ready"
_PING = b"ping"
_PONG = b"pong"

_spawn = get_context("spawn")


class Supervisor:
    """
    Several worker processes on the same sockets.

    SIGTERM and SIGINT begin the drain, a second one cuts it short. SIGHUP replaces the workers, one by one.

    Args:
        config: the server's configuration, which tells the number of workers. It must be picklable.
        sockets: listening sockets. They are closed when the drain begins.
        grace: seconds that a worker's drain takes at most.
        on_listening: called once, when the first worker serves.
    """

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket.socket], grace: float, on_listening: Callable[[], None]
    ) -> None:
        self._config = config
        self._sockets = sockets
        self._grace = grace
        self._on_listening = on_listening
        self._workers: list[_Worker] = []  # starting or serving
        self._leaving: list[_Worker] = []  # draining
        self._outdated: list[_Worker] = []  # serving, each until a new worker takes its place
        self._signals: list[int] = []
        self._serving = False  # some worker has served
        self._failures = 0  # workers that ended before they served, since one did
        self._last_failure = 0.0
        self._next_start = 0.0
        self._forced = False

    def run(self) -> int:
        """Run until a signal. Return the exit status."""
        wake, waker = socket.socketpair()
        with wake, waker:
            wake.setblocking(False)
            waker.setblocking(False)
            signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
            for number in _SIGNALS:
                signal.signal(number, self._note)
            try:
                drain = self._supervise(wake)
                for each in self._sockets:
                    each.close()
                self._leaving += self._workers
                self._workers.clear()
                for worker in self._leaving:
                    worker.signal(signal.SIGTERM)
                while self._leaving:
                    self._wait(wake, None)
                    self._reap()
                    if _ENDS.intersection(self._signals):
                        self._force()
                    self._signals.clear()
                return int(self._forced or not drain)
            finally:
                signal.set_wakeup_fd(-1)
                for worker in [*self._workers, *self._leaving]:
                    worker.signal(signal.SIGKILL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _supervise(self, wake: socket.socket) -> bool:
        """Keep the workers running until a signal. Return False where the first start has failed."""
        while True:
            now = time.monotonic()
            wanted = self._config.workers + bool(self._outdated)
            while len(self._workers) < wanted and now >= self._next_start:
                self._workers.append(_Worker(self._config, self._sockets, self._grace))
            due = [worker.check(now) for worker in self._workers]
            if len(self._workers) < wanted:
                due.append(self._next_start)
            self._wait(wake, max(min(due) - now, 0.0))
            if not self._reap():
                return False
            while self._signals:
                if self._signals.pop(0) in _ENDS:
                    self._signals.clear()
                    return True
                # SIGHUP
                self._outdated = [worker for worker in self._workers if worker.ready]

    def _wait(self, wake: socket.socket, seconds: float | None) -> None:
        """Wait for a signal, for a worker's message or for its end."""
        everyone = [*self._workers, *self._leaving]
        pipes = {worker.pipe: worker for worker in everyone if worker.pipe is not None}
        happened = wait([wake, *pipes, *(worker.process.sentinel for worker in everyone)], seconds)
        if wake in happened:
            wake.recv(4096)
        for each in happened:
            worker = pipes.get(each)  # type: ignore[call-overload] # one of the pipes or not
            if worker is not None and worker.listen():
                self._welcome(worker)

    def _welcome(self, worker: "_Worker") -> None:
        """Take note of a worker that serves from now on."""
        self._failures = 0
        self._next_start = 0.0
        if not self._serving:
            self._serving = True
            self._on_listening()
        else:
            _logger.info("worker %d serves", worker.process.pid)
        if self._outdated:
            old = self._outdated.pop(0)
            self._workers.remove(old)
            self._leaving.append(old)
            old.signal(signal.SIGTERM)

    def _reap(self) -> bool:
        """Forget the workers that have ended, and plan when others start. Return False where the first start has failed."""
        self._leaving = [worker for worker in self._leaving if worker.process.exitcode is None]
        for worker in [worker for worker in self._workers if worker.process.exitcode is not None]:
            self._workers.remove(worker)
            if worker in self._outdated:
                self._outdated.remove(worker)
            status = worker.process.exitcode or 0
            cause = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            if worker.ready:
                _logger.warning("worker %d ended %s; a new one starts", worker.process.pid, cause)
                continue
            if not self._serving and status > 0:
                return False  # it has logged why
            # 0, 1, 3, 7, ... seconds: a single accident costs no time, a broken configuration little. Workers that started
            # before the last failure share its pause.
            now = time.monotonic()
            if worker.started >= self._last_failure:
                longest = _LONGEST_PAUSE if status > 0 else _LONGEST_PAUSE_AFTER_KILL
                self._next_start = now + min(2.0**self._failures - 1, longest)
                self._failures = min(self._failures + 1, 16)
                self._last_failure = now
            self._outdated.clear()
            _logger.error(
                "worker %d ended %s before it could serve; %d others are kept, and the next try is in %d s",
                worker.process.pid,
                cause,
                sum(each.ready for each in self._workers),
                round(max(self._next_start - now, 0.0)),
            )
        return True

    def _force(self) -> None:
        for worker in self._leaving:
            # uvicorn's server cuts on a second SIGINT, and on no other signal.
            worker.signal(signal.SIGKILL if self._forced else signal.SIGINT)
        self._forced = True


class _Worker:
    """A worker process as its supervisor sees it."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], grace: float) -> None:
        ours, theirs = _spawn.Pipe()
        self.pipe: Connection | None = ours
        self.ready = False
        self.started = time.monotonic()
        self.process = _spawn.Process(target=_work, args=(config, sockets, theirs, grace))
        self.process.start()
        theirs.close()  # so that the pipe ends with the worker
        self._heard = self.started
        self._next_ping = self.started + _PING_INTERVAL

    def listen(self) -> bool:
        """Read a message. Return True for the one that says that the worker serves."""
        if self.pipe is None:
            return False
        try:
            message = self.pipe.recv_bytes()
        except (EOFError, OSError):  # it has ended, and its sentinel tells that too
            self.pipe = None
            return False
        self._heard = time.monotonic()
        if message != _READY:
            return False
        self.ready = True
        return True

    def check(self, now: float) -> float:
        """Ping the worker if it is time to, or kill it if it is silent. Return when to check again."""
        deadline = self._heard + (_SILENCE if self.ready else _START_TIMEOUT)
        if now >= deadline:
            _logger.error("worker %d does not reply and is killed", self.process.pid)
            self.signal(signal.SIGKILL)
            return now + _SILENCE
        if self.ready and now >= self._next_ping and self.pipe is not None:
            self._next_ping = now + _PING_INTERVAL
            try:
                self.pipe.send_bytes(_PING)
            except OSError:
                self.pipe = None
        return min(deadline, self._next_ping) if self.ready else deadline

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it still runs."""
        if self.process.exitcode is None and self.process.pid is not None:
            os.kill(self.process.pid, number)


class _Server(uvicorn.Server):
    """The server in a worker. It tells the supervisor when it serves."""

    def __init__(self, config: uvicorn.Config, pipe: Connection) -> None:
        super().__init__(config)
        self._pipe = pipe

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(OPEN_FILES.handle)
        await super().startup(sockets=sockets)
        if self.started:
            self._pipe.send_bytes(_READY)


def _work(config: uvicorn.Config, sockets: list[socket.socket], pipe: Connection, grace: float) -> None:
    """Serve, in a process of its own, until a signal or the supervisor's end."""
    config.configure_logging()
    threading.Thread(target=_watch_supervisor, args=(pipe, grace), daemon=True).start()
    _Server(config, pipe).run(sockets)


def _watch_supervisor(pipe: Connection, grace: float) -> None:
    """Reply to pings. Begin the drain when the supervisor has ended."""
    try:
        while True:
            pipe.recv_bytes()
            pipe.send_bytes(_PONG)
    except (EOFError, OSError):
        _logger.warning("the supervisor has ended; worker %d drains and ends too", os.getpid())
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace + _LAST_WORDS)
    os._exit(1)  # the drain is stuck
