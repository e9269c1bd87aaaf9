"""
Run a command until standard input ends, then remove a directory: `python embedded_watcher.py DIRECTORY COMMAND...`

Standard input is a pipe that the parent never writes to. However the parent ends, the system closes its end of it. That works
on every Unix, and without a shell.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from types import FrameType

SHORTEST_LIFE = 1.0
"""Seconds: a command that ends sooner than this after its first start can't be run at all."""


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main(directory: str, command: list[str]) -> int:
    """Run the command, again and again if need be. Returns the exit status."""
    parent_gone = threading.Event()
    children: list[subprocess.Popen[bytes]] = []

    def wait_for_parent() -> None:
        # Not through sys.stdin, whose lock would be held when the interpreter ends.
        while os.read(0, 1024):
            pass
        parent_gone.set()
        for child in children:
            child.kill()

    signal.signal(signal.SIGTERM, _terminate)
    threading.Thread(target=wait_for_parent, daemon=True).start()
    first = True
    try:
        while not parent_gone.is_set():
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - given by our own parent
            children[:] = [child]
            if first:
                first = False
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return child.wait(SHORTEST_LIFE)
            if parent_gone.is_set():
                break
            child.wait()
            parent_gone.wait(0.1)
        return 0
    finally:
        for child in children:
            child.kill()
            child.wait()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
