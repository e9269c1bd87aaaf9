"""Bodies are streamed, not collected: the server's memory stays where it is while 200 MB pass."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..support import KEY, RecordingUpstream, bearer, mint, ok, serve_process

SIZE = 200 * 1024 * 1024
PIECE = b"x" * 65_536
ALLOWED_GROWTH = 32 * 1024 * 1024


def resident(pid: int) -> int:
    """Peak resident memory of a process, bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


class Sink(RecordingUpstream):
    """Counts a body instead of keeping it, and answers with as much as the target asks for."""

    received = 0

    def _read(self, stream: Any, number: int) -> Any:
        lines = []
        while (line := stream.readline()) not in (b"\r\n", b""):
            lines.append(line)
        if not lines:
            return None
        request = type(self).request(b"".join(lines))
        left = int((request.all(b"content-length") or [b"0"])[0])
        while left:
            piece = stream.read(min(left, 1 << 20))
            left -= len(piece)
            self.received += len(piece)
        self.requests.append(request)
        return request

    @staticmethod
    def request(head: bytes) -> Any:
        from ..support import Recorded

        return Recorded(head)


def script(request: Any, connection: socket.socket) -> object:
    if b"download" not in request.target:
        return ok()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
    for _ in range(SIZE // len(PIECE)):
        connection.sendall(PIECE)
    return None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("transport", ["native", "httpx"])
def test_200_megabytes_each_way(transport: str) -> None:
    with Sink(script) as upstream:
        environment = {
            "AISBREAKER_KEY": KEY,
            "AISBREAKER_SERVICES__OPENAI__BASE_URL": upstream.url,
            "AISBREAKER_UPSTREAM__TRANSPORT": transport,
            "AISBREAKER_LOG_LEVEL": "WARNING",
        }
        with serve_process(**environment) as (base, process):
            token = mint(base, ("", "sk"))
            assert httpx.get(f"{base}/openai/v1/files", headers=bearer(token)).is_success
            before = resident(process.pid)

            def body() -> Iterator[bytes]:
                for _ in range(SIZE // len(PIECE)):
                    yield PIECE

            headers = {**bearer(token), "content-length": str(SIZE)}
            assert httpx.post(f"{base}/openai/v1/files", content=body(), headers=headers, timeout=60).is_success
            assert upstream.received == SIZE
            received = 0
            with httpx.stream("GET", f"{base}/openai/v1/files/download", headers=bearer(token), timeout=60) as response:
                for piece in response.iter_raw():
                    received += len(piece)
            assert received == SIZE
            assert resident(process.pid) - before < ALLOWED_GROWTH
    assert process.returncode == 0
