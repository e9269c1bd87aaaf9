"""
The watcher: keeps a command running until standard input ends, then removes a directory.

`embedded_watcher.py DIRECTORY COMMAND...`

Standard input is a pipe from the parent. The system closes it when the parent ends, however it ends. That works on every Unix,
without a shell. The parent writes a byte once the command is ready. A command that ends before that can't be run, and is not
restarted.

A watcher that is killed leaves the command to the system: Linux kills it (prctl(2), PR_SET_PDEATHSIG). Elsewhere the parent
does, as long as it runs.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType

PAUSE = 0.1
"""Seconds between the end of the command and its restart."""


_PR_SET_PDEATHSIG = 1


def _binder() -> Callable[[], None] | None:
    """Return what binds a child to this process's life, run in the child before its program. None where the system can't."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork
    watcher = os.getpid()

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # sent when the thread that forks ends: the main thread
        if os.getppid() != watcher:  # it ended before the call
            os._exit(1)

    return bind


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main(directory: str, command: list[str]) -> int:
    """Run the command, and restart it when it ends. Returns the exit status."""
    bind = _binder()
    ready = threading.Event()
    parent_gone = threading.Event()
    children: list[subprocess.Popen[bytes]] = []

    def listen() -> None:
        # os.read, because this thread would hold the lock of sys.stdin when the interpreter ends.
        while os.read(0, 1):
            ready.set()
        parent_gone.set()
        for child in children:
            child.kill()

    signal.signal(signal.SIGTERM, _terminate)
    threading.Thread(target=listen, daemon=True).start()
    try:
        while not parent_gone.is_set():
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=bind)  # noqa: S603 - our own parent
            children[:] = [child]
            if parent_gone.is_set():
                break
            status = child.wait()
            if not ready.is_set():
                return status
            parent_gone.wait(PAUSE)
        return 0
    finally:
        for child in children:
            child.kill()
            child.wait()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
