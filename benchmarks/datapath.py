"""
The data path compared with its peers: `python benchmarks/datapath.py [--quick] [--only ours,nginx]`

The contender has one core of the machine; the upstream and the load share the others. Contenders take turns, so that other
programs disturb all of them alike. Figures are medians of the rounds. Writes a Markdown table, JSON and a plot to
`benchmarks/results`, and the Markdown to stdout.

Contenders are installed into `benchmarks/.cache` before their first measurement, which takes a few minutes.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import report
from contenders import (
    COMPLETION,
    CONTENDERS,
    DIRECT,
    NGINX,
    OURS,
    UPSTREAM_KEY,
    Call,
    Contender,
    Running,
    Stage,
    Unavailable,
    nginx_command,
    nginx_version,
    write_nginx_config,
)
from processes import (
    CORES,
    LOAD_CORES,
    cpu_seconds,
    end_on_signals,
    free_port,
    memory_bytes,
    running,
    wait_for_port,
)
from sse_client import Streams, streams

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
STREAMS = 64
"""Streams whose pieces are counted."""
HELD_STREAMS = 1000
"""Open streams whose memory is measured."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """Lengths of the measurements, in seconds, and numbers of connections."""

    rounds: int
    connections: tuple[int, ...]
    warm_up: int
    load: int
    longest_load: int
    probe: float
    pieces: float
    held_streams: float
    settle: float


FULL = Plan(
    rounds=3,
    connections=(1, 32, 256),
    warm_up=1,
    load=2,
    longest_load=10,
    probe=1.0,
    pieces=1.5,
    held_streams=10.0,
    settle=4.0,
)
QUICK = Plan(
    rounds=1,
    connections=(1, 32),
    warm_up=1,
    load=1,
    longest_load=2,
    probe=0.4,
    pieces=0.5,
    held_streams=2.0,
    settle=1.0,
)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, for a look and not for figures")
    parser.add_argument("--rounds", type=int, help=f"default {FULL.rounds}")
    parser.add_argument("--only", help="comma-separated: " + ", ".join(each.key for each in CONTENDERS))
    parser.add_argument("--output", type=Path, help="directory; default benchmarks/results, .cache/results for a part of it")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    wanted = set(arguments.only.split(",")) if arguments.only else {each.key for each in CONTENDERS}
    unknown = wanted - {each.key for each in CONTENDERS}
    if unknown:
        parser.error(f"--only: no contender is called {', '.join(sorted(unknown))}")
    chosen = [each for each in CONTENDERS if each.key in wanted | {DIRECT}]
    whole = not (arguments.quick or arguments.only)
    output = arguments.output or (HERE / "results" if whole else CACHE / "results")

    end_on_signals()
    prepare_cache()
    os.sched_setaffinity(0, LOAD_CORES)
    before = _processor_seconds()
    began = time.monotonic()
    rounds = arguments.rounds or plan.rounds
    results = measure(chosen, plan, rounds)
    seconds = time.monotonic() - began
    everything, own = (after - earlier for after, earlier in zip(_processor_seconds(), before, strict=True))
    results["about"] = {
        **about(shlex.join(["python", "benchmarks/datapath.py", *sys.argv[1:]])),
        "rounds": rounds,
        "seconds": round(seconds),
        "others": max(0.0, everything - own) / seconds / len(CORES),
    }
    output.mkdir(parents=True, exist_ok=True)
    markdown = report.markdown(results)
    (output / "datapath.json").write_text(json.dumps(results, indent=2) + "\n")
    (output / "datapath.md").write_text(markdown)
    (output / "datapath.svg").write_text(report.svg(results))
    print(markdown)


def prepare_cache() -> None:
    """Make the directory into which contenders are installed."""
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")  # git and linters ignore it


def about(command: str) -> dict[str, Any]:
    """Return the date, the machine, the versions and the command of a measurement."""
    cpu = next((line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    wrk = subprocess.run(["wrk", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"\d+\.\d+\.\d+", wrk)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": command,
        "machine": f"{cpu}, {len(CORES)} cores, {platform.system()} {platform.release().partition('-')[0]}",
        "versions": f"{nginx_version(CACHE)}, wrk {found[0] if found else 'unknown'}",
    }


def _processor_seconds() -> tuple[float, float]:
    """Return the processor seconds of all programs on this machine, and those of this one and its children."""
    user, nice, system = (int(field) for field in Path("/proc/stat").read_text().split()[1:4])
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    everything = (user + nice + system) / os.sysconf("SC_CLK_TCK")
    return everything, sum(usage.ru_utime + usage.ru_stime for usage in ours)


@contextlib.contextmanager
def upstreams() -> Iterator[tuple[Stage, Streams]]:
    """Run both upstreams on the load's cores."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        port = free_port()
        config = write_nginx_config("nginx.conf", directory, port=port, completion=COMPLETION)
        stack.enter_context(running(nginx_command(config), LOAD_CORES, log=directory / "upstream.log"))
        wait_for_port(port)
        load = stack.enter_context(streams(CACHE, directory, UPSTREAM_KEY))
        yield Stage(port, load.port, directory, CACHE), load


def measure(contenders: list[Contender], plan: Plan, rounds: int) -> dict[str, Any]:
    """Return the figures of every contender, or the reason why it has none."""
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    responses: dict[str, str] = {}
    samples: dict[str, list[Figures]] = {}
    for contender in contenders:
        _say(f"preparing {contender.label}")
        try:
            versions[contender.key] = contender.prepare(CACHE)
        except Unavailable as reason:
            missing[contender.key] = str(reason)
    with upstreams() as (stage, load):
        for number in range(rounds):
            for contender in contenders:
                if contender.key in missing:
                    continue
                _say(f"round {number + 1} of {rounds}: {contender.label}")
                began = time.monotonic()
                try:
                    with contender.running(stage) as at_work:
                        responses[contender.key] = at_work.response
                        figures = _measure_one(at_work, stage, load, plan, with_held_streams=number == 0)
                except Unavailable as reason:
                    if contender.key not in samples:
                        missing[contender.key] = str(reason)
                    _say(f"  {reason}")
                    continue
                samples.setdefault(contender.key, []).append(figures)
                _say(
                    f"  {time.monotonic() - began:.0f} s: "
                    + ", ".join(f"{name} {value:.6g}" for name, value in figures.items())
                )
    return {
        "contenders": [
            {
                "key": each.key,
                "label": each.label,
                "about": each.about,
                "versions": versions.get(each.key, ""),
                "response": responses.get(each.key, ""),
                "missing": missing.get(each.key),
                **_summary(samples.get(each.key, [])),
            }
            for each in contenders
        ],
        "goals": goals({key: _summary(rounds)["figures"] for key, rounds in samples.items()}),
    }


def _summary(rounds: list[Figures]) -> dict[str, Any]:
    names = dict.fromkeys(name for figures in rounds for name in figures)
    values = {name: [figures[name] for figures in rounds if name in figures] for name in names}
    return {
        "figures": {name: statistics.median(each) for name, each in values.items()},
        "spread": {name: [min(each), max(each)] for name, each in values.items()},
    }


def _measure_one(contender: Running, stage: Stage, load: Streams, plan: Plan, *, with_held_streams: bool) -> Figures:
    pid = contender.process.pid if contender.process else None
    json_request, sse_request = stage.directory / "json.request", stage.directory / "sse.request"
    json_request.write_bytes(contender.json.raw)
    sse_request.write_bytes(contender.sse.raw)
    figures: Figures = {}
    if contender.startup is not None:
        figures["startup_s"] = contender.startup
    if pid is not None and with_held_streams:
        figures |= _hold_streams(contender.sse, pid, load, plan, sse_request)

    load_requests([contender.json], stage, 8, plan.warm_up)
    _settle(pid, plan.settle)
    probe = load.probe(contender.json.port, plan.probe, json_request)
    figures["latency_p50_us"], figures["latency_p99_us"] = probe["total_p50"], probe["total_p99"]
    probe = load.probe(contender.sse.port, plan.probe, sse_request_without_number(contender.sse, stage))
    figures["first_piece_p50_us"], figures["first_piece_p99_us"] = probe["first_p50"], probe["first_p99"]

    rate = 0.0
    for connections in plan.connections:
        # A slow contender responds to all connections almost at once, and rarely, so it is measured for longer.
        seconds = plan.load if not rate else min(plan.longest_load, max(plan.load, round(4 * connections / rate)))
        cpu = cpu_seconds(pid) if pid else 0.0
        result = load_requests([contender.json], stage, connections, seconds)
        rate = result["requests"] / result["seconds"]
        figures[f"requests_per_s_{connections}"] = rate
        figures[f"p50_ms_{connections}"] = result["p50"] / 1000
        figures[f"p99_ms_{connections}"] = result["p99"] / 1000
        failed = result["not_2xx"] + result["broken"] + result["timeouts"]
        if failed:
            figures[f"failed_{connections}"] = failed
        if pid and result["requests"]:
            used = cpu_seconds(pid) - cpu
            figures[f"cpu_us_per_request_{connections}"] = used / result["requests"] * 1e6
            figures[f"cpu_share_{connections}"] = used / result["seconds"]
        _settle(pid, plan.settle)

    opened = load.open(contender.sse.port, STREAMS, 10, sse_request)
    load.run(1, 0.3)
    for name, window in (("lockstep", 1), ("free", 0)):
        cpu = cpu_seconds(pid) if pid else 0.0
        result = load.run(window, plan.pieces)
        figures[f"pieces_per_s_{name}"] = result["pieces"] / result["seconds"]
        if pid and result["pieces"]:
            used = cpu_seconds(pid) - cpu
            figures[f"cpu_us_per_piece_{name}"] = used / result["pieces"] * 1e6
            figures[f"cpu_share_{name}"] = used / result["seconds"]
    if opened["open"] < STREAMS:
        figures["streams_not_opened"] = STREAMS - opened["open"]
    closed = load.close()
    figures["close_seen_s"] = closed["seconds"]
    if closed["lingering"]:
        figures["streams_lingering"] = closed["lingering"]
    return figures


def _settle(pid: int | None, seconds: float) -> None:
    """Wait until a contender has finished the work that its clients left behind."""
    deadline = time.monotonic() + seconds
    while pid is not None and time.monotonic() < deadline:
        cpu = cpu_seconds(pid)
        time.sleep(0.1)
        if cpu_seconds(pid) - cpu < 0.02:
            return


def sse_request_without_number(call: Call, stage: Stage) -> Path:
    """Write a request for a short stream, and return its file."""
    path = stage.directory / "short.request"
    path.write_bytes(call.raw.replace(b"stream-000000", b"stream=000000"))
    return path


def _hold_streams(call: Call, pid: int, load: Streams, plan: Plan, request: Path) -> Figures:
    time.sleep(0.5)
    idle = memory_bytes(pid)
    opened = load.open(call.port, HELD_STREAMS, plan.held_streams, request)
    time.sleep(0.5)
    held = memory_bytes(pid)
    load.close()
    _settle(pid, plan.settle)
    figures = {"memory_idle_bytes": idle, "memory_streams_bytes": held, "streams_held": opened["open"]}
    if opened["open"]:
        figures["memory_per_stream_bytes"] = (held - idle) / opened["open"]
    return figures


def load_requests(calls: list[Call], stage: Stage, connections: int, seconds: int) -> dict[str, Any]:
    """Send requests for some seconds, and return the counts that `load.lua` prints."""
    requests = stage.directory / "wrk.requests"
    requests.write_text("".join(call.for_wrk for call in calls))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "15s", "-s", HERE / "upstream" / "load.lua"]
    command += [f"http://127.0.0.1:{calls[0].port}", "--", requests]
    with running(command, LOAD_CORES, log=stage.directory / "wrk.log", pipes=True) as wrk:
        text = wrk.communicate(timeout=seconds + 30)[0]
    line = next((line for line in text.splitlines() if line.startswith("{")), None)
    if line is None:
        raise Unavailable("wrk measured nothing: " + text.strip()[-200:])
    result: dict[str, Any] = json.loads(line)
    return result


def goals(figures: dict[str, Figures]) -> list[dict[str, Any]]:
    """Return the goals of the data path, and whether they are met."""

    def figure(key: str, name: str) -> float | None:
        return figures.get(key, {}).get(name)

    def ratio(name: str, over: str) -> float | None:
        mine, theirs = figure(OURS, name), figure(over, name)
        return mine / theirs if mine and theirs else None

    def added(name: str) -> float | None:
        mine, direct = figure(OURS, name), figure(DIRECT, name)
        return None if mine is None or direct is None else mine - direct

    rate = "requests_per_s_32"
    memory = figure(OURS, "memory_per_stream_bytes")
    latency = added("latency_p50_us")
    rows: list[tuple[str, float | None, float, bool]] = [
        ("requests/s at 32 connections, of nginx", ratio(rate, NGINX), 0.25, True),
        ("requests/s at 32 connections, times Portkey", ratio(rate, "portkey"), 10, True),
        ("requests/s at 32 connections, times asgi-proxy-lib", ratio(rate, "asgi-proxy-lib"), 20, True),
        ("requests/s at 32 connections, times fastapi-proxy-lib", ratio(rate, "fastapi-proxy-lib"), 20, True),
        ("requests/s at 32 connections, times LiteLLM", ratio(rate, "litellm"), 80, True),
        ("added latency at 1 connection, p50, ms", None if latency is None else latency / 1000, 0.15, False),
        ("streamed pieces/s, one on its way per stream, of nginx", ratio("pieces_per_s_lockstep", NGINX), 0.6, True),
        ("streamed pieces/s, as many as sockets take, of nginx", ratio("pieces_per_s_free", NGINX), 0.6, True),
        ("memory per open stream, KiB", None if memory is None else memory / 1024, 64, False),
    ]
    return [
        {
            "what": what,
            "goal": goal,
            "at_least": at_least,
            "measured": value,
            "met": None if value is None else (value >= goal if at_least else value <= goal),
        }
        for what, value, goal, at_least in rows
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
