"""
A server under random faults: `python benchmarks/soak.py [--minutes 30] [--seed N]`

Runs `aisbreaker serve --workers 2` with a Valkey server and an AI service of its own. One well-behaved client sends a few
requests a second and always has a stream open. Meanwhile one fault follows the other, in random order: see `soak_faults.py`.
Each fault explains certain failures of the well-behaved client, from its beginning until some seconds after its end. What other
clients do explains none.

Only the newer of the two workers is ever killed, so the other one shows what the whole time does to memory. At 10 %, 50 % and
100 % of the time the faults pause, and the processes are measured. Prints Markdown tables. The exit status is 1 if a failure
has no explanation, or if a process that lived from 10 % on grew in the second half by more than `SLACK`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from processes import end_on_signals, free_port, running  # type: ignore[import-not-found]
from soak_faults import BROKEN, FAULTS, TRUSTED_PROXY, Fault, Storage, Target  # type: ignore[import-not-found]
from soak_upstream import NORMAL, STREAM, Upstream  # type: ignore[import-not-found]

from aisbreaker_mw import generate_key

SLACK = {"rss": 16.0, "files": 24, "threads": 6, "tasks": 24}
"""Growth allowed in the second half: MiB, open files, threads (those of asyncio's pool on two cores), asyncio tasks."""
REST = 10.0
"""Seconds without faults before the processes are measured. Idle connections close within 5."""
TIMEOUT = 20.0
"""Seconds that the well-behaved client waits for a response, or for a piece of it."""
CONNECTIONS = 20
"""Connections that a worker may have to the AI service."""
CROWD = 60
"""Connections of a fault that holds connections: more than the workers' to the AI service together."""
POINTS = (0.1, 0.5, 1.0)

COUNT_TASKS = """
import signal

def count(number, frame):
    import asyncio, gc, os
    tasks = sum(isinstance(each, asyncio.Task) and not each.done() for each in gc.get_objects())
    path = os.path.join(os.path.dirname(__file__), str(os.getpid()))
    with open(path + ".new", "w") as file:
        file.write(str(tasks))
    os.rename(path + ".new", path)

signal.signal(signal.SIGUSR2, count)
"""
"""A `sitecustomize` for the server's processes: at SIGUSR2 they write how many tasks they have."""


@dataclass(frozen=True)
class Failure:
    """A failure of the well-behaved client: when, of which kind, and the error's text."""

    at: float
    kind: str
    text: str


@dataclass
class Window:
    """A fault that happened: when, and which failures it explains."""

    name: str
    began: float
    explains: frozenset[str]
    ended: float = float("inf")

    def has(self, failure: Failure) -> bool:
        return self.began <= failure.at <= self.ended and failure.kind in self.explains


@dataclass
class Steady:
    """The well-behaved client, and what it got."""

    base: str
    token: str
    chance: random.Random
    requests: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    async def run(self) -> None:
        """Send requests until cancelled."""
        headers = {"authorization": f"Bearer {self.token}"}
        limits = httpx.Limits(keepalive_expiry=2)  # before the server closes them
        async with httpx.AsyncClient(base_url=self.base, headers=headers, timeout=TIMEOUT, limits=limits) as client:
            await asyncio.gather(self._repeat(client, "normal", NORMAL, 0.4), self._repeat(client, "stream", STREAM, 0.2))

    async def _repeat(self, client: httpx.AsyncClient, kind: str, expected: bytes, pause: float) -> None:
        while True:
            self.requests[kind] += 1
            began = time.monotonic()
            try:
                response = await client.post(f"/openai/v1/chat/completions?{kind}", json={"model": "gpt-5", "messages": []})
            except httpx.TimeoutException as error:
                self._failed("timeout", kind, error)
            except httpx.TransportError as error:
                self._failed(BROKEN, kind, error)
            else:
                if response.status_code != 200:
                    self._failed(f"{response.status_code} {_code(response)}", kind, response.text)
                elif response.content != expected:
                    self._failed("wrong body", kind, f"{len(response.content)} bytes")
                elif kind == "normal":
                    self.waits.append(time.monotonic() - began)
            await asyncio.sleep(pause * (0.5 + self.chance.random()))

    def _failed(self, failure: str, request: str, reason: object) -> None:
        self.failures.append(Failure(time.monotonic(), failure, f"{request}: {reason!r:.200}"))


def _code(response: httpx.Response) -> str:
    """Return the error's code, if the body tells one."""
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "without a code"


@dataclass(frozen=True)
class Measure:
    """What one process holds: memory in MiB, open files, threads, and asyncio tasks if they are known."""

    rss: float
    files: int
    threads: int
    tasks: int | None


def descendants(pid: int) -> Iterator[int]:
    """Give a process and those that it has started."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from descendants(int(child))


def workers(pid: int) -> list[int]:
    """Return the supervisor's workers, the oldest first."""
    found = []
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes():
                began = int(Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[19])
                found.append((began, each))
    return [each for _, each in sorted(found)]


async def measure(pid: int, tasks: Path | None) -> Measure:
    """
    Measure one process.

    Args:
        pid: the process.
        tasks: the directory where it writes its number of tasks; None: it has none.
    """
    count = None
    if tasks is not None:
        answer = tasks / str(pid)
        answer.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR2)
        async with asyncio.timeout(10):
            while not answer.exists():  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.05)
        count = int(answer.read_text())
    return _measure_now(pid, count)


def _measure_now(pid: int, tasks: int | None) -> Measure:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Measure(
        rss=int(status["VmRSS"].split()[0]) / 1024,
        files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        threads=int(status["Threads"]),
        tasks=tasks,
    )


async def measure_all(supervisor: int, valkey: int, tasks: Path) -> dict[str, Measure]:
    """Measure the processes, by name. The name has the process number, so that a new one is not taken for the old."""
    found = {f"supervisor {supervisor}": await measure(supervisor, None)}
    for worker in workers(supervisor):
        found[f"worker {worker}"] = await measure(worker, tasks)
    found[f"valkey {valkey}"] = await measure(valkey, None)
    return found


async def mint(base: str, requests_per_minute: int) -> str:
    """Have a token made, with a window per client; waits until the server is up."""
    quotas = {"perClientRequestLimits": {"requestsPerMinute": requests_per_minute, "requestsPerDay": 10_000_000}}
    secrets = [{"serviceId": "", "authSecret": "sk-soak"}]
    wanted = {"requestAuthAndQuotas": {"requestQuotas": quotas, "serviceSecrets": secrets}}
    async with httpx.AsyncClient() as client, asyncio.timeout(60):
        while True:
            with contextlib.suppress(httpx.TransportError):
                response = await client.post(f"{base}/api/v1/oauth/token", json=wanted)
                if response.status_code != 503:
                    return str(response.raise_for_status().json()["access_token"])
            await asyncio.sleep(0.1)


@dataclass
class Soak:
    """One run."""

    seconds: float
    steady: Steady
    target: Target
    supervisor: int
    tasks: Path
    to_come: list[Fault] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    measures: list[dict[str, Measure]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    async def run(self) -> None:
        """Let the faults happen in turns while the steady client works, and measure at the points."""
        steady = asyncio.create_task(self.steady.run())
        try:
            for point in POINTS:
                await self._faults_until(self.began + self.seconds * point - REST)
                await asyncio.sleep(REST)
                valkey = self.target.storage.process
                if valkey is None or steady.done():
                    raise RuntimeError("the storage or the well-behaved client has ended")
                self.measures.append(await measure_all(self.supervisor, valkey.pid, self.tasks))
        finally:
            steady.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await steady

    async def _faults_until(self, end: float) -> None:
        chance = self.target.chance
        while time.monotonic() < end:
            if not self.to_come:
                self.to_come = chance.sample(FAULTS, len(FAULTS))
            fault = self.to_come.pop()
            window = Window(fault.name, time.monotonic(), fault.explains)
            self.windows.append(window)
            say(f"{window.began - self.began:7.1f} s  {fault.name}")
            await fault.happen(self.target)
            window.ended = time.monotonic() + fault.recovery
            await asyncio.sleep(chance.uniform(0.5, 2))

    def report(self) -> bool:
        """Print the tables. Returns whether all is well."""
        causes: Counter[tuple[str, str]] = Counter()
        unexplained = []
        for failure in self.steady.failures:
            cause = next((window.name for window in self.windows if window.has(failure)), None)
            if cause is None:
                unexplained.append(failure)
            else:
                causes[cause, failure.kind] += 1
        happened = Counter(window.name for window in self.windows)
        print("\n| fault | times | failures explained |\n| --- | --- | --- |")
        for fault in FAULTS:
            told = ", ".join(f"{count} of {kind}" for (name, kind), count in sorted(causes.items()) if name == fault.name)
            print(f"| {fault.name} | {happened[fault.name]} | {told or 0} |")
        waits = sorted(self.steady.waits) or [0.0]
        print("\n| the well-behaved client | |\n| --- | --- |")
        print(f"| requests, and streams | {self.steady.requests['normal']:,}, {self.steady.requests['stream']:,} |")
        print(f"| failures with a cause | {sum(causes.values())} |\n| failures without | {len(unexplained)} |")
        median, most = waits[len(waits) // 2], waits[len(waits) * 99 // 100]
        print(f"| wait: median, 99 %, longest | {median:.3f} s, {most:.3f} s, {waits[-1]:.3f} s |")
        print(f"| requests that reached the AI service | {self.target.upstream.requests:,} |")
        for failure in unexplained:
            near = [window.name for window in self.windows if window.began <= failure.at <= window.ended + 10]
            print(f"UNEXPLAINED at {failure.at - self.began:.2f} s, after {near}: {failure.kind}: {failure.text}")
        wrong = self._print_measures()
        for line in wrong:
            print(f"WRONG: {line}")
        return not unexplained and not wrong

    def _print_measures(self) -> list[str]:
        """Print what the processes held. Returns what is wrong with them."""
        first, last = (next(name for name in self.measures[i] if name.startswith("worker")) for i in (0, -1))
        wrong = [] if first == last else [f"{first}, which nobody killed, has been replaced"]
        columns = " | ".join(f"{point:.0%}" for point in POINTS)
        print(f"\n| process | MiB, open files, threads, tasks at {columns} |\n| --- |{' --- |' * len(POINTS)}")
        for name in dict.fromkeys(name for measures in self.measures for name in measures):
            cells = []
            for measures in self.measures:
                found = measures.get(name)
                tasks = "" if found is None or found.tasks is None else f", {found.tasks}"
                cells.append("" if found is None else f"{found.rss:.1f}, {found.files}, {found.threads}{tasks}")
            print(f"| {name} | {' | '.join(cells)} |")
            early, before, after = (measures.get(name) for measures in self.measures)
            if early is None or before is None or after is None:
                continue
            for what, slack in SLACK.items():
                growth = (getattr(after, what) or 0) - (getattr(before, what) or 0)
                if growth > slack:
                    wrong.append(f"{name} grew in the second half: {what} by {growth:g}, more than {slack:g}")
        return wrong


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def soak(minutes: float, seed: int, directory: Path) -> bool:
    """Run everything in a directory. Returns whether all is well."""
    chance = random.Random(seed)
    upstream, storage = Upstream(random.Random(seed + 1)), Storage(directory)
    await upstream.start()
    storage.start()
    try:
        await storage.replies()
        port = free_port()
        (directory / "sitecustomize.py").write_text(COUNT_TASKS)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AISBREAKER_", "AUTH_"))},
            "PYTHONPATH": str(directory),
            "AISBREAKER_KEY": generate_key(),
            "AISBREAKER_HOSTS": json.dumps(["127.0.0.1"]),
            "AISBREAKER_TRUSTED_PROXIES": json.dumps([TRUSTED_PROXY]),
            "AISBREAKER_LOG_LEVEL": "WARNING",
            "AISBREAKER_QUOTAS__STORAGE": storage.uri,
            "AISBREAKER_MINTING__MODE": "open",
            "AISBREAKER_SERVICES__OPENAI__BASE_URL": f"http://127.0.0.1:{upstream.port}",
            "AISBREAKER_SERVICES__OPENAI__STRANGERS": "allow",
            "AISBREAKER_UPSTREAM__IDLE_TIMEOUT": "5s",
            "AISBREAKER_UPSTREAM__MAX_CONNECTIONS": str(CONNECTIONS),
        }
        command = [sys.executable, "-m", "aisbreaker_mw", "serve", "--workers", "2", "--port", str(port)]
        log, base = directory / "server.log", f"http://127.0.0.1:{port}"
        with running(command, frozenset(os.sched_getaffinity(0)), log=log, environment=environment) as server:
            steady = Steady(base, await mint(base, 100_000), random.Random(seed + 2))
            bad, narrow = await mint(base, 100_000), await mint(base, 5)
            while len(workers(server.pid)) < 2:  # noqa: ASYNC110 - another process starts them
                await asyncio.sleep(0.1)
            target = Target(port, bad, narrow, upstream, storage, lambda: workers(server.pid)[-1], CROWD, chance)
            run = Soak(minutes * 60, steady, target, server.pid, directory)
            try:
                await run.run()
            finally:
                lines = log.read_text(errors="replace").splitlines()
                say(
                    f"the server logged {len(lines)} lines; tracebacks: {sum('Traceback' in line for line in lines)}; the last:"
                )
                say("\n".join(lines[-10:]))
            return run.report()
    finally:
        upstream.stop()
        storage.signal(signal.SIGCONT)
        storage.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None, help="of all that is random; default: another one each time")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    end_on_signals()
    print(f"{arguments.minutes:g} minutes, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        if not asyncio.run(soak(arguments.minutes, seed, Path(directory))):
            sys.exit(1)


if __name__ == "__main__":
    main()
