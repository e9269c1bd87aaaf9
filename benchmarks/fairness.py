"""
How long one connection makes the others wait: `python benchmarks/fairness.py [--megabytes 32]`

A server of ours runs in a process, and an AI service in another one, which echoes WebSocket messages. One client sends a flood.
Meanwhile another client asks for `/api/v1/ping`, one request after the other. Prints a Markdown table: the longest wait of such
a request, the 99th percentile, and the server's processor time and memory for the flood.

With `--turns`, prints the longest turns of the server's event loop, too: by processor time, and by the clock. A wait counts the
time in which the system runs other processes, and so does the clock; processor time does not. The measuring keeps the server
busy, so take the waits from a run without it.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from processes import LOAD_CORES, free_port, running  # type: ignore[import-not-found]
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

TARGET = "/openai/v1/realtime?model=gpt-realtime"
PIECE = 1 << 20
LEAST_PROBES = 300
LONGEST_FLOOD = 60.0
"""Seconds after which a flood ends, sent or not."""


def frame(first: int, payload: bytes = b"") -> bytes:
    """Return a client's frame, its mask zero."""
    size = len(payload)
    length = (
        bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2) if size < 1 << 16 else b"\xff" + size.to_bytes(8)
    )
    return bytes([first]) + length + bytes(4) + payload


def repeated(unit: bytes, size: int) -> Iterator[bytes]:
    """Give about `size` bytes that repeat a unit, in pieces."""
    piece = unit * max(1, PIECE // len(unit))
    for _ in range(0, size, len(piece)):
        yield piece


def continuations(size: int) -> Iterator[bytes]:
    yield frame(0x01)
    yield from repeated(frame(0x00), size)


def chunks(size: int) -> Iterator[bytes]:
    yield from repeated(b"1\r\nx\r\n", size)


FLOODS: dict[str, Callable[[int], Iterator[bytes]] | None] = {
    "nothing": None,
    "empty continuation frames": continuations,
    "empty messages": lambda size: repeated(frame(0x82), size),
    "messages of 16 MB": lambda size: repeated(frame(0x82, bytes(16_000_000)), size),
    "text messages of 16 MB": lambda size: repeated(frame(0x81, "\u20ac".encode() * 5_000_000), size),
    "pings": lambda size: repeated(frame(0x89, bytes(100)), size),
    "pings, reading nothing": lambda size: repeated(frame(0x89, bytes(100)), size),
    "pongs": lambda size: repeated(frame(0x8A), size),
    "empty messages of the service": lambda size: repeated(frame(0x82, b"messages %d" % (size // 2)), 1),
    "empty continuation frames of the service": lambda size: repeated(frame(0x82, b"fragments %d" % (size // 2)), 1),
    "a request body in chunks of 1 byte": chunks,
}


def flood(kind: str, port: int, token: str, size: int) -> None:
    """Send a flood on one connection, and read what comes."""
    make = FLOODS[kind]
    if make is None:
        return
    body = kind.startswith("a request body")
    head = [f"GET {TARGET} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {token}"]
    if body:
        head[0] = "POST /dummy/v1/chat/completions HTTP/1.1"
        head += ["Transfer-Encoding: chunked", "Content-Type: application/json"]
    else:
        head += ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
        head += ["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
    ended = threading.Event()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall("\r\n".join([*head, "", ""]).encode())
        if not body:
            client.recv(65536)
        client.settimeout(3.0 if "nothing" in kind else LONGEST_FLOOD)

        def read() -> None:
            client_side = client.dup()
            client_side.settimeout(1.0)
            quiet = 0
            while quiet < 2:
                try:
                    if not client_side.recv(1 << 20):
                        break
                    quiet = 0
                except TimeoutError:
                    quiet += ended.is_set()
                except ConnectionError:
                    break

        reader = threading.Thread(target=read)
        if "nothing" not in kind:
            reader.start()
        # TimeoutError: the server has stopped reading. ConnectionError: it has closed the connection.
        with contextlib.suppress(ConnectionError, TimeoutError):
            for piece in make(size):
                client.sendall(piece)
        ended.set()
        if "nothing" not in kind:
            reader.join()


async def echo(peer: ServerConnection) -> None:
    """Echo each message; or send as many empty messages or fragments as one asks for."""
    with contextlib.suppress(ConnectionClosed, ConnectionError):
        async for message in peer:
            if isinstance(message, bytes) and message.startswith((b"messages ", b"fragments ")):
                kind, _, count = message.partition(b" ")
                empty = b"\x82\x00" if kind == b"messages" else b"\x00\x00"
                peer.transport.write(b"\x01\x00" if kind == b"fragments" else b"")
                for _ in range(0, int(count), 50_000):
                    if peer.transport.is_closing():
                        return
                    peer.transport.write(empty * 50_000)
                    await peer.drain()
            else:
                await peer.send(message)


async def run_service(port: int) -> None:
    async with serve(echo, "127.0.0.1", port, compression=None, max_size=None):
        await asyncio.Future()


def service(port: int) -> None:
    asyncio.run(run_service(port))


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_megabytes(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def measure(kind: str, port: int, pid: int, token: str, size: int) -> str:
    """Return a row of the table."""
    attacker = multiprocessing.Process(target=flood, args=(kind, port, token, size), daemon=True)
    before, memory = processor_seconds(pid), resident_megabytes(pid)
    waits: list[float] = []
    peak = memory
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        client.get("/api/v1/ping")
        attacker.start()
        while attacker.is_alive() or len(waits) < LEAST_PROBES:
            began = time.perf_counter()
            client.get("/api/v1/ping").raise_for_status()
            waits.append((time.perf_counter() - began) * 1000)
            peak = max(peak, resident_megabytes(pid))
            time.sleep(0.002)
    attacker.join()
    waits.sort()
    used = processor_seconds(pid) - before
    return f"| {kind} | {waits[-1]:.0f} | {waits[int(len(waits) * 0.99)]:.1f} | {used:.1f} | {peak - memory:+.0f} |"


def longest_turn(pid: int, path: Path) -> str:
    """Return the table's last columns: the longest turns since the last call, in milliseconds."""
    path.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    while not (path.exists() and (told := path.read_text()).endswith("\n")):
        time.sleep(0.01)
    return f" {told.strip()} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=32, help="size of each flood")
    parser.add_argument("--only", default="", help="part of a flood's name")
    parser.add_argument("--turns", action="store_true", help="measure the turns of the event loop, too")
    arguments = parser.parse_args()
    upstream, port = free_port(), free_port()
    environment = {**os.environ, "AISBREAKER_SERVICES__OPENAI__BASE_URL": f"http://127.0.0.1:{upstream}"}
    scratch = tempfile.TemporaryDirectory()
    turns = Path(scratch.name) / "turns"
    started = [str(Path(__file__).with_name("turns.py")), str(turns)] if arguments.turns else ["-m", "aisbreaker_mw"]
    command = [sys.executable, *started, "serve", "--port", str(port)]
    multiprocessing.Process(target=service, args=(upstream,), daemon=True).start()
    titles = ["one client sends", "longest wait, ms", "99 % below, ms", "processor, s", "memory, MB"]
    titles += ["longest turn, processor ms", "longest turn, ms"] if arguments.turns else []
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    with (
        scratch,
        tempfile.NamedTemporaryFile() as log,
        running(command, LOAD_CORES, log=Path(log.name), environment=environment) as server,
    ):
        secrets = [{"serviceId": "", "authSecret": "sk-x"}]
        url = f"http://127.0.0.1:{port}"
        while True:
            with contextlib.suppress(httpx.TransportError):
                response = httpx.post(f"{url}/api/v1/oauth/token", json={"requestAuthAndQuotas": {"serviceSecrets": secrets}})
                break
            time.sleep(0.05)
        token = response.raise_for_status().json()["access_token"]
        for kind in FLOODS:
            if arguments.only in kind:
                if arguments.turns:
                    longest_turn(server.pid, turns)
                row = measure(kind, port, server.pid, token, arguments.megabytes * 1_000_000)
                print(row + (longest_turn(server.pid, turns) if arguments.turns else ""), flush=True)


if __name__ == "__main__":
    main()
