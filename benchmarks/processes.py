"""Processes on chosen cores that end with the benchmark, with their memory and processor time."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

CORES = sorted(os.sched_getaffinity(0))
CONTENDER_CORE = frozenset(CORES[-1:])
"""The core that the contender has for itself."""
LOAD_CORES = frozenset(CORES[:-1] or CORES)
"""Cores of the upstream, the load generator and the benchmark itself."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def free_port() -> int:
    """Return a free TCP port on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    cores: frozenset[int],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    pipes: bool = False,
    directory: Path | None = None,
) -> Iterator["subprocess.Popen[str]"]:
    """
    Run a command in a session of its own for the length of the block, then end that whole session.

    Args:
        command: command with its arguments.
        cores: cores that it may run on.
        log: file for its stderr, and for its stdout if that is no pipe.
        environment: environment instead of this process's.
        pipes: whether stdin and stdout are pipes.
        directory: working directory.
    """

    def settle() -> None:
        os.sched_setaffinity(0, cores)
        _libc.prctl(_PDEATHSIG, signal.SIGKILL)  # kills it when this process is killed

    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else output,
            stderr=output,
            env=environment,
            cwd=directory,
            text=True,
            start_new_session=True,
            preexec_fn=settle,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    for number, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 3)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # processes that it left behind
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def end_on_signals() -> None:
    """Make SIGTERM and Ctrl-C clean up, even if the parent process set them to be ignored."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)


def _tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def is_alive(pid: int) -> bool:
    """Return whether a child of this process still runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def memory_bytes(pid: int) -> int:
    """Return the resident memory, in bytes, of a process and its children. Shared pages count once."""
    total = 0
    for each in _tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                if line.startswith("Rss:" if each == pid else "Private_"):
                    total += int(line.split()[1]) * 1024
    return total


def cpu_seconds(pid: int) -> float:
    """Return the processor time, in seconds, of a process and its children so far."""
    total = 0
    for each in _tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def wait_for_port(port: int, seconds: float = 10.0) -> None:
    """Wait until a server listens on a loopback port."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return
