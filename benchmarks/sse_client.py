"""The streaming upstream and its clients (`upstream/sse.c`), compiled when first used."""

import contextlib
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from processes import LOAD_CORES, free_port, running, wait_for_port

_SOURCE = Path(__file__).parent / "upstream" / "sse.c"


def compile_sse(cache: Path) -> Path:
    """Return the compiled program."""
    source = _SOURCE.read_bytes()
    program = cache / f"sse-{hashlib.sha256(source).hexdigest()[:12]}"
    if not program.exists():
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise SystemExit("the streaming upstream is written in C: install a C compiler (cc)")
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run([compiler, "-O2", "-Wall", "-o", program, _SOURCE], check=True)
    return program


class Streams:
    """
    The running program.

    Args:
        process: its process, with pipes as stdin and stdout.
        port: port of its upstream.
    """

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self._process = process
        self.port = port

    def _order(self, *words: object) -> dict[str, Any]:
        orders, replies = self._process.stdin, self._process.stdout
        if orders is None or replies is None:
            raise RuntimeError("the program has no pipes")
        orders.write(" ".join(map(str, words)) + "\n")
        orders.flush()
        reply: dict[str, Any] = json.loads(replies.readline() or '{"error": "the program has ended"}')
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply

    def probe(self, port: int, seconds: float, request: Path) -> dict[str, Any]:
        """Send one request after the other. Returns microseconds: `first_*` to the first event, `total_*` to the end."""
        return self._order("probe", port, round(seconds * 1000), request)

    def open(self, port: int, streams: int, seconds: float, request: Path) -> dict[str, Any]:
        """Open streams, each of which gets one piece. Returns how many are `open`."""
        return self._order("open", port, streams, round(seconds * 1000), request)

    def run(self, window: int, seconds: float) -> dict[str, Any]:
        """Count the `pieces` that arrive in open streams. At most `window` of each are on their way at once (0: no bound)."""
        return self._order("run", window, round(seconds * 1000))

    def close(self) -> dict[str, Any]:
        """Close all streams. Returns the `seconds` until the upstream saw it, and how many were `lingering` after two."""
        return self._order("close")


@contextlib.contextmanager
def streams(cache: Path, directory: Path, key: str) -> Iterator[Streams]:
    """Run the program."""
    program, port = compile_sse(cache), free_port()
    with running([program, str(port), key], LOAD_CORES, log=directory / "sse.log", pipes=True) as process:
        wait_for_port(port)
        yield Streams(process, port)
