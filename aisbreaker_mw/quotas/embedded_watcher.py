"""
The watcher: keeps a command running until standard input ends, then removes a directory.

`embedded_watcher.py DIRECTORY COMMAND...`

Standard input is a pipe from the parent. The system closes it when the parent ends, however it ends. That works on every Unix,
without a shell. The parent writes a byte once the command is ready. A command that ends before that can't be run, and is not
restarted.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from types import FrameType

PAUSE = 0.1
"""Seconds between the end of the command and its restart."""


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main(directory: str, command: list[str]) -> int:
    """Run the command, and restart it when it ends. Returns the exit status."""
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
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - the parent is our own process
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
