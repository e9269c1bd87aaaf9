"""The ports of the tests: nobody else's."""

import subprocess
import sys

import pytest

from ..ports import BLOCK, KERNELS, end, free_port


def test_each_process_has_its_own() -> None:
    command = [sys.executable, "-c", "from tests.ports import free_port; print(free_port(), free_port(), flush=True); input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    try:
        ports = [int(port) for process in processes for port in process.stdout.readline().split()]
        own = {free_port() for _ in range(2 * BLOCK)}  # all of them, over and over
    finally:
        for process in processes:
            process.communicate("\n")
    assert len(set(ports)) == 4
    assert not own.intersection(ports)


@pytest.mark.skipif(not KERNELS.exists(), reason="asks Linux for its ports")
def test_none_is_one_that_the_kernel_gives() -> None:
    first, last = map(int, KERNELS.read_text().split())
    if first == end():
        assert not first <= free_port() <= last
