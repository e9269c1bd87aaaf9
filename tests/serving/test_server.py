"""Processes from outside: the line, the drain, the cut, the exit status."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aisbreaker_mw.exceptions import ConfigurationError
from aisbreaker_mw.serving import server

from ..ports import free_port

GRACE = 0.7
LINE = re.compile(r"aisbreaker is listening on http://([^\s:]+|\[[^\s]+\]):(\d+)$", re.MULTILINE)


# --- Factories, for the processes under test ------------------------------------------------------------------------------


def create_app() -> Any:
    return app


def create_unconfigured_app() -> Any:
    raise ConfigurationError("hosts: give a list of names")


def create_app_beside_another_server() -> Any:
    try:
        socket.create_server(("127.0.0.1", int(os.environ["PORT"]))).close()
    except OSError:
        return app
    raise ConfigurationError("another server could listen on the port")


def create_unstartable_app() -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise OSError("no database")

    return app


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for _ in range(2):
            kind = (await receive())["type"]
            print(kind, flush=True)
            await send({"type": kind + ".complete"})
        return
    if scope["path"] == "/silent":
        silent(Path(os.environ["FINISH"])).touch()
        await asyncio.sleep(60)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
    if scope["path"] == "/stream":
        while not os.path.exists(os.environ["FINISH"]):  # noqa: ASYNC110, ASYNC240 - another process makes it
            await asyncio.sleep(0.01)
    elif scope["path"] == "/endless":
        await asyncio.sleep(60)
    elif scope["path"] == "/stubborn":
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
    await send({"type": "http.response.body", "body": b"and done", "more_body": False})


def silent(finish: Path) -> Path:
    """The file that says that the app has a request which it leaves without an answer."""
    return finish.with_name("silent")


# --- Processes --------------------------------------------------------------------------------------------------------------


class Process:
    """`run()` in a process of its own, for the time of a `with`."""

    def __init__(self, factory: str, finish: Path, **options: Any) -> None:
        options = {"host": "127.0.0.1", "port": 0, "grace": GRACE, **options}
        code = f"import sys; from aisbreaker_mw.serving import run; sys.exit(run('{__name__}:{factory}', **{options!r}))"
        self.finish = finish
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "FINISH": str(finish),
                "PORT": str(options["port"]),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.host = ""
        self.port = 0

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.communicate()

    def listening(self) -> "Process":
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = LINE.search(line)
        assert found, line + self.process.communicate()[1]
        self.host, self.port = found[1], int(found[2])
        return self

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def begin(self, path: str, version: str = "1.1") -> socket.socket:
        """Send a request, and return when its answer has begun; for one that stays silent, when the app has it."""
        client = self.connect()
        client.sendall(f"GET {path} HTTP/{version}\r\nHost: a\r\n\r\n".encode())
        if path == "/silent":
            from ..support import wait_until  # here, as the processes under test import this file, and need none of that

            wait_until(silent(self.finish).exists, "the request")
            return client
        received = b""
        while b"begun " not in received:
            piece = client.recv(65536)
            assert piece, received
            received += piece
        return client

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait_until_refusing(self) -> None:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                self.connect().close()
            except ConnectionError:
                return
            time.sleep(0.01)
        raise AssertionError("still accepting")

    def end(self) -> tuple[int, str, str]:
        """Return exit status, stdout and the rest of stderr."""
        out, errors = self.process.communicate(timeout=15)
        return self.process.returncode, out, errors


@pytest.fixture
def finish(tmp_path: Path) -> Path:
    """A file that lets streams finish."""
    return tmp_path / "finish"


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def running(request: pytest.FixtureRequest, finish: Path) -> Iterator[Process]:
    with Process("create_app", finish, workers=request.param, port=free_port()) as process:
        yield process.listening()


def rest(client: socket.socket) -> bytes:
    received = b""
    with client:
        while piece := client.recv(65536):
            received += piece
    return received


def test_drain(running: Process) -> None:
    idle = running.connect()
    idle.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = b""
    while not answer.endswith(b"0\r\n\r\n"):
        answer += idle.recv(65536)
    with running.begin("/stream") as stream:
        running.signal()
        running.wait_until_refusing()
        assert rest(idle) == b""
        running.finish.touch()
        assert rest(stream) == b"8\r\nand done\r\n0\r\n\r\n"
    status, out, errors = running.end()
    assert status == 0
    assert out.count("lifespan.shutdown") == out.count("lifespan.startup") > 0
    assert "Traceback" not in errors


def test_streams_over_the_grace_are_cut(running: Process) -> None:
    """Without a proper end, whatever the app does when it is cancelled; nothing begun, nothing cut: 503."""
    streams = [running.begin("/endless"), running.begin("/stubborn")]
    undelimited = running.begin("/endless", "1.0")
    silent = running.begin("/silent")
    start = time.monotonic()
    running.signal()
    assert [rest(stream) for stream in streams] == [b"", b""]
    assert GRACE - 0.1 < time.monotonic() - start < GRACE + 10
    with pytest.raises(ConnectionResetError):
        rest(undelimited)
    refusal = rest(silent)
    assert refusal.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"server_shutting_down"' in refusal
    status, out, errors = running.end()
    assert status == 0
    assert out.count("lifespan.shutdown") == out.count("lifespan.startup") > 0
    assert "Traceback" not in errors


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_second_signal_cuts_at_once(finish: Path, workers: int, number: int) -> None:
    with Process("create_app", finish, workers=workers, port=free_port(), grace=60.0) as process:
        stream = process.listening().begin("/endless")
        process.signal(number)
        process.wait_until_refusing()
        start = time.monotonic()
        process.signal(number)
        assert rest(stream) == b""
        status, _, _ = process.end()
        assert time.monotonic() - start < 20
        assert status == 1


def test_port_in_use(finish: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with Process("create_app", finish, port=port) as process:
            status, out, errors = process.end()
    assert (status, out) == (1, "")
    assert errors.splitlines()[0].endswith(f"can't listen on 127.0.0.1:{port}: address already in use")
    assert len(errors.splitlines()) == 1


def test_the_port_is_taken_before_the_app_is_made(finish: Path) -> None:
    """Another server that starts at the same time would get it, and this one would say that it listens."""
    with Process("create_app_beside_another_server", finish, port=free_port()) as process:
        process.listening()


@pytest.mark.parametrize(
    ("factory", "workers", "message"),
    [
        pytest.param(
            "create_unconfigured_app", 1, "ERROR aisbreaker_mw.server hosts: give a list of names", id="configuration"
        ),
        pytest.param("create_unconfigured_app", 2, "ERROR aisbreaker_mw.server hosts: give a list of names", id="in workers"),
        pytest.param("create_unstartable_app", 1, "Application startup failed", id="lifespan"),
    ],
)
def test_failed_start(finish: Path, factory: str, message: str, workers: int) -> None:
    """It ends, with status 1, and is not tried again and again."""
    with Process(factory, finish, workers=workers) as process:
        status, _, errors = process.end()
    assert status == 1
    assert 1 <= errors.count(message) <= workers
    if workers == 1:
        assert LINE.search(errors) is None


def test_name_with_several_addresses(finish: Path) -> None:
    with Process("create_app", finish, host="localhost") as process:
        assert process.listening().host == "localhost"
        with process.connect() as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert rest(client).endswith(b"begun and done")
        process.signal(signal.SIGINT)
        assert process.end()[0] == 0


def test_several_workers_need_an_import_string() -> None:
    with pytest.raises(ValueError, match="import string"):
        server.run(create_app, host="127.0.0.1", port=0, workers=2)
