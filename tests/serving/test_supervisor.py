"""Several workers from outside: deaths, restarts, a broken configuration, the supervisor's own end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aisbreaker_mw.exceptions import ConfigurationError

from ..ports import free_port

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")

PATIENCE = 30.0
"""Seconds that a test waits at most for something that should happen soon."""


def create_app() -> Any:
    """An app that tells which process serves. It can't be made while the file BROKEN is there."""
    if os.path.exists(os.environ["BROKEN"]):
        raise ConfigurationError("hosts: give a list of names")
    return app


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for _ in range(2):
            await send({"type": (await receive())["type"] + ".complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % os.getpid()})


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


class Served:
    """`run()` with several workers, in a process of its own."""

    def __init__(self, directory: Path, workers: int) -> None:
        self.broken = directory / "broken"
        self.port = free_port()
        options = {"host": "127.0.0.1", "port": self.port, "workers": workers, "grace": 5.0}
        code = f"import sys; from aisbreaker_mw.serving import run; sys.exit(run('{__name__}:create_app', **{options!r}))"
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "BROKEN": str(self.broken)}
        self.process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self.log.extend(lines)

    def logged(self, text: str) -> int:
        return sum(text in line for line in self.log)

    def get(self) -> int:
        """Return the process that serves a request on a new connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return int(client.makefile("rb").read().rpartition(b"\r\n\r\n")[2])

    def workers(self) -> set[int]:
        """Return the supervisor's children that serve or will."""
        found = set()
        for each in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and b"multiprocessing.spawn" in (each / "cmdline").read_bytes():
                    found.add(int(each.name))
        return {each for each in found if is_running(each)}

    def all_serve(self, number: int) -> None:
        """Wait until as many workers serve as there are to be."""
        seen: set[int] = set()

        def ask() -> bool:
            seen.add(self.get())
            return len(self.workers()) == number and self.workers() <= seen

        wait_until(ask)


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    running = Served(tmp_path, getattr(request, "param", 2))
    try:
        wait_until(lambda: running.logged("is listening on"))
        running.all_serve(running_workers := getattr(request, "param", 2))
        assert len(running.workers()) == running_workers
        yield running
    finally:
        left = running.workers()
        running.process.terminate()
        try:
            running.process.wait(20)
        finally:
            for each in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)


def test_workers_end_with_their_supervisor(served: Served) -> None:
    workers = served.workers()
    served.process.kill()
    wait_until(lambda: not any(is_running(each) for each in workers))
    assert served.logged("the supervisor has ended") == 2
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", served.port))


def test_a_dead_worker_is_replaced_and_every_death_is_told(served: Served) -> None:
    victim = served.get()
    os.kill(victim, signal.SIGKILL)
    served.all_serve(2)
    assert victim not in served.workers()
    wait_until(lambda: served.logged("serves"))
    assert served.logged(f"worker {victim} ended by SIGKILL; a new one starts") == 1


def test_killing_every_worker_again_and_again_loses_no_waiting_connection(served: Served) -> None:
    """New connections wait in the kernel. No worker is taken for hung while it starts."""
    killed: set[int] = set()
    for _ in range(3):
        wait_until(lambda: served.workers() - killed)
        for each in served.workers():
            os.kill(each, signal.SIGKILL)
            killed.add(each)
    assert served.get() not in killed
    served.all_serve(2)
    assert served.logged("does not reply") == 0


def test_a_broken_configuration_leaves_the_healthy_workers(served: Served) -> None:
    served.broken.touch()
    victim, *others = served.workers()
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: served.logged("before it could serve; 1 others are kept") >= 2)
    assert served.workers() >= set(others)
    assert served.get() in others
    assert served.process.poll() is None
    assert 0 <= served.logged("hosts: give a list of names") - served.logged("before it could serve") <= 1
    served.broken.unlink()
    served.all_serve(2)


def test_when_no_worker_is_left_it_waits_for_the_configuration(served: Served) -> None:
    served.broken.touch()
    for each in served.workers():
        os.kill(each, signal.SIGKILL)
    wait_until(lambda: served.logged("before it could serve"))
    served.broken.unlink()
    assert served.get() in served.workers()


def test_a_hangup_replaces_the_workers(served: Served) -> None:
    before = served.workers()
    served.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not before & served.workers() and len(served.workers()) == 2)
    assert served.get() not in before


def test_a_hangup_with_a_broken_configuration_keeps_the_workers(served: Served) -> None:
    before = served.workers()
    served.broken.touch()
    served.process.send_signal(signal.SIGHUP)
    wait_until(lambda: served.logged("2 others are kept"))
    wait_until(lambda: served.workers() == before)
    assert served.get() in before


def test_a_first_start_that_fails_ends_it(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    failing = Served(tmp_path, 2)
    assert failing.process.wait(PATIENCE) == 1
    wait_until(lambda: failing.logged("hosts: give a list of names"))
    assert not failing.logged("is listening on")
