"""
Keep a command running until standard input ends, then remove a directory: `embedded_watcher.py DIRECTORY COMMAND...`

Standard input is a pipe. However the parent ends, the system closes its end of it; that works on every Unix, and without a
shell. Until the parent has written that the command is ready, the command may end: then it can't be run at all.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from types import FrameType

PAUSE = 0.1
"""Seconds between the end of the command and its next start."""


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main(directory: str, command: list[str]) -> int:
    """Run the command, again and again if need be. Returns the exit status."""
    ready = threading.Event()
    parent_gone = threading.Event()
    children: list[subprocess.Popen[bytes]] = []

    def listen() -> None:
        # Not through sys.stdin, whose lock would be held when the interpreter ends.
        while os.read(0, 1):
            ready.set()
        parent_gone.set()
        for child in children:
            child.kill()

    signal.signal(signal.SIGTERM, _terminate)
    threading.Thread(target=listen, daemon=True).start()
    try:
        while not parent_gone.is_set():
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - given by our own parent
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
