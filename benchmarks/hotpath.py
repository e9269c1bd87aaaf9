"""
The cost of a request, by place: `python benchmarks/hotpath.py [--streams] [--seconds 10]`

Runs `aisbreaker serve` with all that a request needs (token, twelve windows, injection), and prints Markdown:

1. Interpreted instructions per request (or piece), by file and by function. The count does not depend on the machine's load, so
   it shows every change of the code. It includes no C code and no system call.
2. System calls per request, under load, if strace is installed.
3. Microseconds of processor time per request, by room, sampled under load with py-spy without stopping the process. A
   function's C code and system calls count as its own.
4. The same time by binary (interpreter, kernel, event loop), if perf is installed.

The rooms are the folders of the package. The modules above them are one room, the pipeline.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from contenders import CONTENDERS, OURS, Running, Stage, install_in_venv, mint, ours_calls, ours_environment
from datapath import CACHE, STREAMS, load_requests, prepare_cache, upstreams
from processes import CONTENDER_CORE, LOAD_CORES, cpu_seconds, end_on_signals, free_port, is_alive, running, wait_for_port
from sse_client import Streams

SAMPLES_PER_SECOND = 500
REQUESTS = 100
SHOWN = 25

_FRAME = re.compile(r"(?P<function>.+) \((?P<file>[^():]+)(?::\d+)?\)$")
PACKAGE = "aisbreaker_mw/"
PIPELINE = "pipeline"
"""The room of the modules that are in no folder."""
_BELOW_THE_LOOP = ("cli/", "__main__.py", "serving/server.py", "serving/supervisor.py")
"""Parts of the package that start the event loop. They are at the bottom of every stack."""
_LIBRARIES = {"uvicorn/protocols/": "serving", "httpx/": "httpx's Request and Response"}
"""Libraries whose time counts as a room."""
_LOOP = "event loop, with the system calls that it makes itself"

Work = Callable[[int], tuple[int, float]]
"""Loads the process for some seconds. Returns the number of requests or pieces, and the processor time of one in µs."""


def main() -> None:
    """Profile, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", action="store_true", help=f"pieces of {STREAMS} streams instead of JSON requests")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--counting", nargs=2, metavar=("PORT", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.counting is not None:
        _serve_counting(int(arguments.counting[0]), Path(arguments.counting[1]))
        return
    end_on_signals()
    os.sched_setaffinity(0, LOAD_CORES)
    prepare_cache()
    ours = next(each for each in CONTENDERS if each.key == OURS)
    with upstreams() as (stage, load):
        unit = "piece" if arguments.streams else "request"
        _print_instructions(stage, load, unit)
        with ours.running(stage) as contender:
            work = _streaming(contender, stage, load) if arguments.streams else _requesting(contender, stage)
            _print_system_calls(contender, work, unit)
            _, cost = work(arguments.seconds)
            print(f"## Time\n\n{cost:.1f} µs of processor time per {unit}.\n")
            _print_samples(contender, stage, work, arguments.seconds, unit)
            _print_binaries(contender, stage, work, arguments.seconds, unit)


def _pid(contender: Running) -> int:
    if contender.process is None:
        raise RuntimeError("the contender has no process")
    return contender.process.pid


def _requesting(contender: Running, stage: Stage) -> Work:
    def work(seconds: int) -> tuple[int, float]:
        cpu = cpu_seconds(_pid(contender))
        done = load_requests([contender.json], stage, 32, seconds)["requests"]
        return done, (cpu_seconds(_pid(contender)) - cpu) / max(done, 1) * 1e6

    work(1)
    return work


def _streaming(contender: Running, stage: Stage, load: Streams) -> Work:
    request = stage.directory / "sse.request"
    request.write_bytes(contender.sse.raw)

    def work(seconds: int) -> tuple[int, float]:
        load.open(contender.sse.port, STREAMS, 10, request)
        load.run(1, 0.5)
        cpu = cpu_seconds(_pid(contender))
        done = load.run(1, seconds)["pieces"]
        cost = (cpu_seconds(_pid(contender)) - cpu) / max(done, 1) * 1e6
        load.close()
        return done, cost

    return work


# Instructions


def _serve_counting(port: int, file: Path) -> None:
    """Serve, and count instructions between SIGUSR1 and SIGUSR2. Runs in a process of its own."""
    from aisbreaker_mw import create_app
    from aisbreaker_mw.serving.server import run
    from aisbreaker_mw.telemetry.logs import log_config

    instructions: Counter[CodeType] = Counter()
    calls: Counter[CodeType] = Counter()

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            instructions[frame.f_code] += 1
        return count

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        calls[frame.f_code] += 1
        return count

    def begin(number: int, frame: FrameType | None) -> None:
        sys.settrace(enter)

    def end(number: int, frame: FrameType | None) -> None:
        sys.settrace(None)
        rows = [[code.co_filename, code.co_qualname, count, calls[code]] for code, count in instructions.items()]
        file.with_suffix(".part").write_text(json.dumps(rows))
        file.with_suffix(".part").rename(file)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    run(lambda: create_app(), host="127.0.0.1", port=port, grace=1, log_config=log_config("WARNING", "text"))


def _print_instructions(stage: Stage, load: Streams, unit: str) -> None:
    environment, port, file = ours_environment(stage), free_port(), stage.directory / "instructions.json"
    json_call, sse_call = ours_calls(port, mint(environment))
    command: list[str | Path] = [sys.executable, Path(__file__).resolve(), "--counting", str(port), file]
    log = stage.directory / "counting.log"
    with running(command, CONTENDER_CORE, log=log, environment=environment, directory=stage.directory) as process:
        wait_for_port(port)
        if unit == "request":
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                _ask(client, json_call.raw, 50)
                process.send_signal(signal.SIGUSR1)
                time.sleep(0.1)
                _ask(client, json_call.raw, REQUESTS)
                units = REQUESTS
                process.send_signal(signal.SIGUSR2)
        else:
            request = stage.directory / "counted.request"
            request.write_bytes(sse_call.raw)
            load.open(port, 4, 10, request)
            load.run(1, 0.2)
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.1)
            units = int(load.run(1, 0.5)["pieces"])
            process.send_signal(signal.SIGUSR2)
            load.close()
        deadline = time.monotonic() + 10
        while not file.exists():
            if time.monotonic() > deadline:
                raise RuntimeError("nothing was counted: " + log.read_text()[-300:])
            time.sleep(0.05)
    rows = [(_short(path), name, count / units, calls / units) for path, name, count, calls in json.loads(file.read_text())]
    files: Counter[str] = Counter()
    for path, _, count, _ in rows:
        files[path] += count
    total = sum(files.values())
    calls = sum(row[3] for row in rows)
    print(f"## Interpreted instructions\n\n{total:,.0f} per {unit}, in {calls:,.0f} Python calls.\n")
    print(f"| file | instructions per {unit} | share |\n| --- | ---: | ---: |")
    for path, count in files.most_common(SHOWN):
        print(f"| {path} | {count:,.0f} | {100 * count / total:.1f} % |")
    print(f"\n| function | instructions per {unit} | calls per {unit} |\n| --- | ---: | ---: |")
    for path, name, count, calls in sorted(rows, key=lambda row: -row[2])[:SHOWN]:
        print(f"| `{name}` in {path} | {count:,.0f} | {calls:.0f} |")
    print()


def _ask(client: socket.socket, request: bytes, times: int) -> None:
    """Send a request several times, one after the other, with time for the server to finish each."""
    for _ in range(times):
        client.sendall(request)
        response = b""
        while b"\r\n\r\n" not in response:
            response += client.recv(65536) or b"\r\n\r\n"
        head, _, body = response.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
        if not head.startswith(b"HTTP/1.1 200 ") or length is None:
            raise RuntimeError(f"an unexpected response: {head[:100]!r}")
        while len(body) < int(length[1]):
            body += client.recv(65536)
        time.sleep(0.002)


# System calls and time


def _profiled(command: list[str | Path], work: Work, seconds: int) -> tuple[int, str]:
    """Load the process under a profiler that reports on stderr. Returns the number of requests or pieces, and the report."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as profiler:
        try:
            time.sleep(0.3)
            done, _ = work(seconds)
            profiler.send_signal(signal.SIGINT)
            return done, profiler.communicate(timeout=30)[1]
        finally:
            profiler.kill()


def _print_system_calls(contender: Running, work: Work, unit: str) -> None:
    if shutil.which("strace") is None:
        return
    done, report = _profiled(["strace", "-f", "-c", "-p", str(_pid(contender))], work, 2)
    rows = [line.split() for line in report.splitlines()]
    counts = {row[-1]: int(row[3]) / max(done, 1) for row in rows if len(row) >= 5 and row[3].isdigit() and row[-1] != "total"}
    print(f"## System calls\n\n| call | per {unit} |\n| --- | ---: |")
    for name, count in sorted(counts.items(), key=lambda item: -item[1]):
        if count >= 0.05:
            print(f"| `{name}` | {count:.2f} |")
    print()


def _print_samples(contender: Running, stage: Stage, work: Work, seconds: int, unit: str) -> None:
    spy = install_in_venv(CACHE, "py-spy", "py-spy==0.4.3") / "bin" / "py-spy"
    stacks = stage.directory / "stacks"
    command: list[str | Path] = [spy, "record", "--nonblocking", "-f", "raw", "-o", stacks, "-r", str(SAMPLES_PER_SECOND)]
    command += ["-d", str(seconds), "-p", str(_pid(contender))]
    cost = 0.0
    for _ in range(5):  # py-spy sometimes crashes, because it reads a running process
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as profiler:
            try:
                _, cost = work(seconds + 1)
                profiler.wait(timeout=30)
            finally:
                profiler.kill()
        if stacks.exists() or not is_alive(_pid(contender)):
            break
    if not stacks.exists():
        print("py-spy gave nothing.\n")
        return
    rooms: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for line in stacks.read_text().splitlines():
        text, _, count = line.rpartition(" ")
        frames = [match for match in map(_FRAME.match, text.split(";")) if match is not None]
        if frames:
            rooms[_room([frame["file"] for frame in frames])] += int(count)
            functions[f"`{frames[-1]['function']}` in {_short(frames[-1]['file'])}"] += int(count)
    for title, counts in (("room", rooms), ("function, its C code included", functions)):
        print(f"| {title} | µs per {unit} | share |\n| --- | ---: | ---: |")
        for name, count in counts.most_common(SHOWN):
            print(f"| {name} | {cost * count / counts.total():.1f} | {100 * count / counts.total():.1f} % |")
        print()


def _room(files: list[str]) -> str:
    """Return the room of a stack: that of its innermost frame that is in one."""
    for file in reversed(files):
        _, found, module = file.rpartition(PACKAGE)
        if found:
            return _LOOP if module.startswith(_BELOW_THE_LOOP) else module.rpartition("/")[0] or PIPELINE
        for library, room in _LIBRARIES.items():
            if library in file:
                return room
    return _LOOP


def _short(file: str) -> str:
    """Return a file's path in its library or package."""
    for marker in ("site-packages/", "/lib/python3"):
        _, found, rest = file.rpartition(marker)
        if found:
            return rest.partition("/")[2] if marker == "/lib/python3" else rest
    _, found, rest = file.rpartition(PACKAGE)
    return found + rest if found else file


def _print_binaries(contender: Running, stage: Stage, work: Work, seconds: int, unit: str) -> None:
    if shutil.which("perf") is None:
        return
    data = stage.directory / "perf.data"
    command: list[str | Path] = ["perf", "record", "-q", "-F", "997", "-o", data, "-p", str(_pid(contender))]
    with contextlib.suppress(subprocess.TimeoutExpired):
        _profiled(command, work, seconds)
    report = ["perf", "report", "-i", data, "--sort", "dso", "--stdio"]
    shown = subprocess.run(report, capture_output=True, text=True, check=False).stdout
    rows = [match for match in (re.match(r"\s*([\d.]+)%\s+(\S+)", line) for line in shown.splitlines()) if match is not None]
    if rows:
        print(f"| binary | share of the time per {unit} |\n| --- | ---: |")
        for row in rows:
            if float(row[1]) >= 0.5:
                print(f"| {row[2].partition('.cpython')[0]} | {row[1]} % |")


if __name__ == "__main__":
    main()
