"""A log that nobody reads: the server goes on, and tells later what is missing."""

import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest

from aisbreaker_mw.telemetry.writer import QueuedHandler

from ..ports import free_port
from ..support import KEY, wait_until


@contextlib.contextmanager
def writing(max_held: int = 10_000) -> Iterator[tuple[logging.Logger, int, QueuedHandler]]:
    """A logger whose lines go to a pipe; gives the pipe's other end."""
    reader, descriptor = os.pipe()
    handler = QueuedHandler(descriptor, max_held)
    logger = logging.Logger("aisbreaker_mw.test")
    logger.addHandler(handler)
    try:
        yield logger, reader, handler
    finally:
        handler.close()
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            while os.read(reader, 1 << 20):
                pass
        writer = handler._writer
        if writer is not None:
            writer.join(10)
            assert not writer.is_alive()
        os.close(descriptor)
        os.close(reader)


def test_lines_are_written_in_order_and_flushed() -> None:
    with writing() as (logger, reader, handler):
        for number in range(100):
            logger.warning("line %d", number)
        handler.flush()
        assert os.read(reader, 1 << 20).decode().splitlines() == [f"line {number}" for number in range(100)]


def test_without_a_reader_lines_are_dropped_and_counted_later() -> None:
    with writing() as (logger, reader, handler):
        for number in range(20_000):  # the pipe takes 64 KiB, and the handler holds 10,000 bytes
            logger.warning("line %d", number)
        received = b""
        while b"dropped" not in received:
            received += os.read(reader, 1 << 20)
        logger.warning("again")
        handler.flush()
        received += os.read(reader, 1 << 20)
    lines = received.decode().splitlines()
    told = [int(match[1]) for line in lines if (match := re.match(r"(\d+) log lines were dropped", line))]
    written = [line for line in lines if line.startswith("line ")]
    assert sum(told) + len(written) == 20_000
    assert written == sorted(written, key=lambda line: int(line[5:]))
    assert lines[-1] == "again"


def test_a_reader_that_has_gone_does_no_harm() -> None:
    reader, descriptor = os.pipe()
    os.close(reader)
    handler = QueuedHandler(descriptor)
    handler.handle(logging.LogRecord("a", logging.WARNING, "", 0, "text", (), None))
    handler.flush()
    handler.close()
    assert handler._writer is not None
    handler._writer.join(10)
    os.close(descriptor)


def test_a_shared_descriptor_that_does_not_block_loses_nothing() -> None:
    with writing(10_000_000) as (logger, reader, handler):
        os.set_blocking(handler._descriptor, False)
        text = "x" * 1000
        for _ in range(500):
            logger.warning(text)
        received = 0
        while received < 500 * 1001:
            received += len(os.read(reader, 1 << 20))
        assert received == 500 * 1001


def test_the_last_lines_of_a_process_are_written() -> None:
    code = (
        "import logging.config\n"
        "from aisbreaker_mw.telemetry.logs import log_config\n"
        "logging.config.dictConfig(log_config('INFO', 'text'))\n"
        "for number in range(5000): logging.getLogger('aisbreaker_mw').info('line %d', number)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=True, timeout=60)
    assert len(ended.stderr.splitlines()) == 5000
    assert ended.stderr.endswith("line 4999\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_whose_log_nobody_reads_goes_on(workers: int) -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "aisbreaker_mw", "serve", "--port", str(port), "--workers", str(workers)],
        env={**os.environ, "AISBREAKER_KEY": KEY, "AISBREAKER_QUOTAS__STORAGE": "embedded://" if workers > 1 else "memory://"},
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(lambda: httpx.get(f"{base}/api/v1/ping").is_success, "the start", 30, (httpx.TransportError,))
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            # Each has a line of more than 100 bytes: together much more than a pipe takes.
            for _ in range(1000):
                client.sendall(b"GET /openai/v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 401 ")
        with httpx.Client(base_url=base, timeout=20) as fresh:
            for _ in range(3):
                assert fresh.get("/api/v1/ping").is_success
        assert process.stderr is not None
        read = threading.Thread(target=process.communicate)
        process.terminate()
        read.start()
        read.join(30)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
