"""A server of ours in a thread, an upstream that records raw bytes, and the little that tests need to talk to them."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn

from aisbreaker_mw import AIsBreakerMiddleware, Settings, create_app, generate_key
from aisbreaker_mw.serving.http_protocol import HTTPProtocol
from aisbreaker_mw.serving.websocket_protocol import WebSocketProtocol

from .ports import free_port

KEY = generate_key()
Process = subprocess.Popen[str]
WAIT = 10.0
"""Seconds that a test waits at most for something that should happen at once."""


def wait_until(
    happened: Callable[[], object], what: str = "it", seconds: float = WAIT, not_yet: tuple[type[Exception], ...] = ()
) -> None:
    """
    Poll until `happened` is true.

    Args:
        happened: the condition.
        what: the condition's name, for the error.
        seconds: longest wait.
        not_yet: errors that mean that it has not happened yet.
    """
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(*not_yet):
            if happened():
                return
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {seconds} s")
        time.sleep(0.002)


@dataclass
class Recorded:
    """One request as the upstream got it."""

    head: bytes
    body: bytes = b""
    connection: int = 0
    closed: threading.Event = field(default_factory=threading.Event)
    """Set when the peer has closed the connection."""

    @property
    def raw(self) -> bytes:
        return self.head + self.body

    @property
    def request_line(self) -> bytes:
        return self.head.partition(b"\r\n")[0]

    @property
    def target(self) -> bytes:
        return self.request_line.split(b" ")[1]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        lines = self.head.split(b"\r\n")[1:]
        return [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines if line)]

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]


def ok(body: bytes = b'{"ok":true}', *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole answer with a length."""
    lines = [b"HTTP/1.1 " + status, b"Content-Type: application/json", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


Script = Callable[["Recorded", socket.socket], object]


class RecordingUpstream:
    """
    An HTTP/1.1 server on loopback that records every byte, in threads.

    Args:
        script: answers one request on its socket; its return value, if bytes, is sent. Raising `Hangup` closes.
    """

    class Hangup(Exception):
        """Close the connection now."""

    def __init__(self, script: Script | bytes | None = None) -> None:
        self.script = script if script is not None else ok()
        self.requests: list[Recorded] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "RecordingUpstream":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def last(self) -> Recorded:
        return self.requests[-1]

    @property
    def everything(self) -> bytes:
        return b"".join(request.raw for request in self.requests)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection, self.connections), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            with connection, connection.makefile("rb") as stream:
                while (request := self._read(stream, number)) is not None:
                    script = self.script
                    answer = script(request, connection) if callable(script) else script
                    if isinstance(answer, bytes):
                        connection.sendall(answer)
        except (OSError, self.Hangup, ValueError):
            pass
        finally:
            self._open.discard(connection)
            for recorded in self.requests:
                if recorded.connection == number:
                    recorded.closed.set()

    def _read(self, stream: Any, number: int) -> Recorded | None:
        lines = []
        while (line := stream.readline()) not in (b"\r\n", b""):
            lines.append(line)
        if not lines:
            return None
        request = Recorded(b"".join(lines) + line, connection=number)
        self.requests.append(request)
        if request.all(b"transfer-encoding") == [b"chunked"]:
            while size := int(stream.readline().split(b";")[0], 16):  # ValueError where the body breaks off
                request.body += stream.read(size)
                stream.readline()
            stream.readline()
        elif length := request.all(b"content-length"):
            request.body = stream.read(int(length[0]))
            if len(request.body) < int(length[0]):
                raise ValueError("the body broke off")
        return request


class _Server(uvicorn.Server):
    """Ends when it is told to; uvicorn's looks every tenth of a second, and pauses as long before it sees who has gone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopped = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self) -> None:
        """End it, from another thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._stopped.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._stopped.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for _ in range(10):  # what has come until now is seen: who has connected, and who has left
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while state.connections or state.tasks:  # noqa: ASYNC110 - uvicorn has no event for it
                    await asyncio.sleep(0.001)
        for task in state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


@contextlib.contextmanager
def serve(app: Any, **config: Any) -> Iterator[str]:
    """Run an ASGI app on uvicorn, as `aisbreaker serve` does, in a thread; gives its base URL."""
    options: dict[str, Any] = {"http": HTTPProtocol, "ws": WebSocketProtocol, "ws_per_message_deflate": False}
    options |= {"log_config": None, "access_log": False, "proxy_headers": False, "server_header": False}
    server = _Server(uvicorn.Config(app, **{**options, "date_header": False, "timeout_graceful_shutdown": 1, **config}))
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)

    def run() -> None:
        with asyncio.Runner(loop_factory=server.config.get_loop_factory() if "loop" in config else None) as runner:
            runner.run(server.serve(sockets=[listener]))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive(), "the server's start")
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop()
        thread.join(WAIT)
        listener.close()
        assert not thread.is_alive()


@contextlib.contextmanager
def run_process(command: list[str], url: str, *, stderr: int | None = None, **environment: str) -> Iterator[Process]:
    """
    Run `python -m` in a process of its own; gives it once `url` answers, and ends it with SIGTERM.

    Args:
        command: what follows `python -m`.
        url: where the server answers as soon as it has started.
        stderr: as for `subprocess.Popen`.
        environment: variables beside those of the tests.
    """
    process = subprocess.Popen([sys.executable, "-m", *command], env={**os.environ, **environment}, stderr=stderr, text=True)

    def up() -> bool:
        assert process.poll() is None, f"the server ended: {process.communicate()[1]}"
        return httpx.get(url).is_success

    try:
        wait_until(up, "the server's start", 20, (httpx.TransportError,))
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise
        elif process.stderr is not None:
            process.stderr.close()


@contextlib.contextmanager
def serve_process(*arguments: str, port: int | None = None, **options: Any) -> Iterator[tuple[str, Process]]:
    """Run `aisbreaker serve` as a person would, with options as for `run_process`; gives its base URL and its process."""
    port = port or free_port()
    base = f"http://127.0.0.1:{port}"
    command = ["aisbreaker_mw", "serve", "--port", str(port), *arguments]
    with run_process(command, f"{base}/api/v1/ping", **options) as process:
        yield base, process


def settings(**values: Any) -> Settings:
    """Settings with a key, and none of the limits that get in a test's way."""
    minting = {"requests_per_minute": 100_000, **values.pop("minting", {})}
    return Settings(**{"key": KEY, "minting": minting, **values})


def towards(upstream: RecordingUpstream, *names: str) -> dict[str, dict[str, str]]:
    """The `services` setting that points services at an upstream."""
    return {name: {"base_url": upstream.url} for name in names or ("openai",)}


@contextlib.contextmanager
def proxy(recording: RecordingUpstream | None = None, /, *names: str, **values: Any) -> Iterator[str]:
    """Run the standalone proxy, its services pointed at an upstream; gives its base URL."""
    if recording is not None:
        values["services"] = {**towards(recording, *names), **values.get("services", {})}
    with serve(create_app(settings(**values))) as base:
        yield base


def mint(base: str, *secrets: tuple[str, str], quotas: dict[str, Any] | None = None, **fields: Any) -> str:
    """Have a token made."""
    wanted: dict[str, Any] = {"serviceSecrets": [{"serviceId": name, "authSecret": secret} for name, secret in secrets]}
    if quotas is not None:
        wanted["requestQuotas"] = quotas
    response = httpx.post(f"{base}/api/v1/oauth/token", json={"requestAuthAndQuotas": wanted, **fields})
    assert response.status_code == 200, response.text
    return str(response.json()["access_token"])


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def raw_exchange(base: str, data: bytes, *, seconds: float = WAIT) -> bytes:
    """Send bytes to a server, and return everything it sends until it closes the connection."""
    with connect(base, seconds=seconds) as connection:
        connection.sendall(data)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


def connect(base: str, *, seconds: float = WAIT) -> socket.socket:
    """Open a connection to a server's base URL."""
    url = httpx.URL(base)
    connection = socket.create_connection((url.host, url.port), timeout=seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


__all__ = [
    "KEY",
    "AIsBreakerMiddleware",
    "Process",
    "Recorded",
    "RecordingUpstream",
    "bearer",
    "connect",
    "mint",
    "ok",
    "proxy",
    "raw_exchange",
    "run_process",
    "serve",
    "serve_process",
    "settings",
    "towards",
    "wait_until",
]
