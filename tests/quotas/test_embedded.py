"""The private server: it is private, and it never outlives its parent."""

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from aisbreaker_mw.exceptions import ConfigurationError
from aisbreaker_mw.quotas import embedded
from aisbreaker_mw.quotas.embedded import EmbeddedValkey, find_server

from .model import bucket
from .servers import limiting, passes, wait_until


def connect(uri: str) -> Any:
    return redis.Redis(unix_socket_path=uri.removeprefix("redis+unix://"), retry=Retry(NoBackoff(), 0))


def directory_of(uri: str) -> Path:
    return Path(uri.removeprefix("redis+unix://")).parent


def is_running(process: int) -> bool:
    try:
        # A dead child that nobody has waited for is still there.
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.fixture(autouse=True)
def _on_linux() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("looks at processes through /proc")


def test_it_is_private_and_keeps_nothing() -> None:
    with EmbeddedValkey(max_memory="64mb") as uri:
        assert stat.S_IMODE(directory_of(uri).stat().st_mode) == 0o700
        assert directory_of(uri).stat().st_uid == os.getuid()
        with connect(uri) as client:
            settings = client.config_get("*")
    assert settings["port"] == "0"
    assert settings["save"] == ""
    assert settings["appendonly"] == "no"
    assert settings["maxmemory"] == str(64 * 2**20)
    assert settings["maxmemory-policy"] == "noeviction"


def test_it_goes_with_its_block() -> None:
    with EmbeddedValkey() as uri, connect(uri) as client:
        process = client.info("server")["process_id"]
        assert is_running(process)
        assert os.getsid(process) != os.getsid(0), "a Ctrl-C at the terminal does not reach it"
    assert not is_running(process)
    assert not directory_of(uri).exists()


def test_it_goes_even_if_the_watcher_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "STOP_TIMEOUT", 0.1)
    with EmbeddedValkey() as uri, connect(uri) as client:
        process = client.info("server")["process_id"]
        os.kill(os.getsid(process), signal.SIGSTOP)
    wait_until(lambda: not is_running(process))
    assert not directory_of(uri).exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_it_goes_however_its_parent_ends(number: signal.Signals) -> None:
    program = (
        "import time\n"
        "from aisbreaker_mw.quotas.embedded import EmbeddedValkey\n"
        "with EmbeddedValkey() as uri:\n"
        "    print(uri, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        uri = parent.stdout.readline().strip()
        with connect(uri) as client:
            process = client.info("server")["process_id"]
        parent.send_signal(number)
    wait_until(lambda: not is_running(process))
    wait_until(lambda: not directory_of(uri).exists())


async def test_after_a_crash_it_is_there_again() -> None:
    with EmbeddedValkey() as uri:
        async with limiting(uri, on_storage_error="allow") as limiter:
            token = bucket("token", minute=3)
            assert await passes(limiter, token)
            with connect(uri) as client:
                os.kill(client.info("server")["process_id"], signal.SIGKILL)
            for _ in range(500):
                if await limiter.consume([token]) is None:
                    break
                await asyncio.sleep(0.01)
            for _ in range(500):
                if await limiter.consume([token]) is not None:
                    break
                await asyncio.sleep(0.01)
            assert limiter.health == "ok"


def replaced(uri: str, process: int) -> int:
    """Return the process that serves after another one."""

    def other() -> bool:
        with connect(uri) as client:
            found.append(client.info("server")["process_id"])
            return found[-1] != process

    found: list[int] = []
    wait_until(other, not_yet=(redis.RedisError,))
    return found[-1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_server_and_watcher_survive_the_watchers_end(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    """Also the second time. None of the servers outlives its watcher, and none is left in the end."""
    processes = []
    with EmbeddedValkey() as uri:
        with connect(uri) as client:
            processes.append(client.info("server")["process_id"])
        for _ in range(2):
            watcher = os.getsid(processes[-1])
            os.kill(watcher, number)
            processes.append(replaced(uri, processes[-1]))
            assert not is_running(processes[-2])
            assert os.getsid(processes[-1]) != watcher
        assert stat.S_IMODE(directory_of(uri).stat().st_mode) == 0o700
        # The second one may end before it was told that its server replies.
        assert caplog.text.count("the quota storage's watcher ended") + caplog.text.count("did not start") == 2
    assert not any(is_running(process) for process in processes)
    assert not directory_of(uri).exists()


def test_the_server_goes_with_watcher_and_parent() -> None:
    """Killed at the same time, neither of them can do anything about it."""
    program = (
        "import time\n"
        "from aisbreaker_mw.quotas.embedded import EmbeddedValkey\n"
        "with EmbeddedValkey() as uri:\n"
        "    print(uri, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        uri = parent.stdout.readline().strip()
        with connect(uri) as client:
            process = client.info("server")["process_id"]
        parent.send_signal(signal.SIGSTOP)
        os.kill(os.getsid(process), signal.SIGKILL)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(process))
    shutil.rmtree(directory_of(uri))


def test_a_program_that_is_no_server_is_reported() -> None:
    embedded_server = EmbeddedValkey(server=Path("/bin/false"))
    with pytest.raises(ConfigurationError, match="did not start"), embedded_server:
        pass


def test_a_server_on_the_path_does_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="install"):
        find_server()
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).touch(0o755)
        assert find_server() == tmp_path / name


def test_a_long_temporary_directory_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a socket has a hundred characters or so."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(embedded.tempfile, "tempdir", str(deep))
    with EmbeddedValkey() as uri, connect(uri) as client:
        assert client.ping()
    assert list(deep.iterdir()) == []
