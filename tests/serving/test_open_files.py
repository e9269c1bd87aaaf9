"""Running out of files, on a server that may have few."""

import contextlib
import os
import resource
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest

from ..ports import free_port
from ..support import KEY, WAIT, Recorded, RecordingUpstream, bearer, mint, wait_until

FEW = 200
"""Open files that the server may have."""


class Limited:
    """`aisbreaker serve` with limits of open files."""

    def __init__(self, soft: int, hard: int, *arguments: str, **environment: str) -> None:
        port = free_port()
        self.base = f"http://127.0.0.1:{port}"
        self.address = ("127.0.0.1", port)
        code = (
            f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
            "from aisbreaker_mw.cli import main\n"
            "sys.exit(main())\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", "--port", str(port), *arguments],
            env={**os.environ, "AISBREAKER_KEY": KEY, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self.log.extend(lines)

    def logged(self, text: str) -> int:
        return sum(text in line for line in self.log)

    def ping(self) -> int:
        return httpx.get(f"{self.base}/api/v1/ping").status_code


@contextlib.contextmanager
def limited(soft: int, hard: int, *arguments: str, **environment: str) -> Iterator[Limited]:
    server = Limited(soft, hard, *arguments, **environment)
    try:
        wait_until(lambda: server.ping() == 200, "the start", 20, (httpx.TransportError,))
        yield server
    finally:
        server.process.terminate()
        server.process.wait(20)


def answers(connections: list[socket.socket]) -> list[bytes]:
    """Return how each of the connections is answered: the status, or nothing."""
    statuses = []
    for connection in connections:
        connection.settimeout(WAIT)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"GET /api/v1/ping HTTP/1.1\r\nHost: a\r\n\r\n")
        try:
            statuses.append(connection.recv(65536)[9:12])
        except ConnectionResetError:
            statuses.append(b"")
    return statuses


def test_running_out_is_refused_and_logged_once() -> None:
    with limited(FEW, FEW, AISBREAKER_UPSTREAM__MAX_CONNECTIONS="10") as server, contextlib.ExitStack() as stack:
        connections = []
        for _ in range(FEW + 50):
            connections.append(stack.enter_context(socket.create_connection(server.address, timeout=WAIT)))
        statuses = answers(connections)
        assert statuses.count(b"200") > FEW / 2
        assert statuses.count(b"503") >= 5
        assert set(statuses) <= {b"200", b"503", b""}
        assert statuses == sorted(statuses, key=lambda status: status != b"200"), "connections that were open go on"
        wait_until(lambda: server.logged("open files run out"))
        stack.close()
        wait_until(lambda: server.ping() == 200, "the end of the outage", not_yet=(httpx.TransportError,))
        assert server.logged("open files run out") == 1
        assert server.logged("server_busy") == 0


def test_a_full_process_still_reaches_its_services() -> None:
    with (
        RecordingUpstream() as upstream,
        limited(FEW, FEW, AISBREAKER_SERVICES__OPENAI__BASE_URL=upstream.url) as server,
        httpx.Client(base_url=server.base) as client,
        contextlib.ExitStack() as stack,
    ):
        token = mint(server.base, ("", "sk"))
        assert client.get("/api/v1/ping").status_code == 200
        others = [stack.enter_context(socket.create_connection(server.address, timeout=WAIT)) for _ in range(FEW + 50)]
        assert b"200" in answers(others)
        assert client.get("/openai/v1/models", headers=bearer(token)).status_code == 200


def test_a_service_that_cannot_be_reached_for_want_of_files_is_503() -> None:
    waiting = threading.Event()

    def hold(request: Recorded, connection: socket.socket) -> None:
        waiting.wait(WAIT)
        raise RecordingUpstream.Hangup

    with (
        RecordingUpstream(hold) as upstream,
        limited(60, 60, AISBREAKER_SERVICES__OPENAI__BASE_URL=upstream.url) as server,
        contextlib.ExitStack() as stack,
    ):
        token = mint(server.base, ("", "sk"))
        head = f"GET /openai/v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        clients = [stack.enter_context(socket.create_connection(server.address, timeout=WAIT)) for _ in range(25)]
        for client in clients:
            client.sendall(head)
        readable, _, _ = select.select(clients, [], [], WAIT)
        refused = readable[0].recv(65536)
        waiting.set()
        assert b" 503 " in refused
        assert b"server_busy" in refused


@pytest.mark.parametrize("workers", [1, 2])
def test_the_soft_limit_is_raised(workers: int) -> None:
    storage = "embedded://" if workers > 1 else "memory://"
    hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 4096)
    with limited(100, hard, "--workers", str(workers), AISBREAKER_QUOTAS__STORAGE=storage) as server:
        assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
        assert not server.logged("max_connections")


def test_connections_that_do_not_fit_are_told_at_the_start() -> None:
    with limited(300, 300, AISBREAKER_UPSTREAM__MAX_CONNECTIONS="500") as server:
        wait_until(lambda: server.logged("is listening on"))
        assert server.logged("upstream.max_connections = 500 needs about 1064 open files") == 1
        assert server.logged("WARNING") == 1
