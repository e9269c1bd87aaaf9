"""
Memory under mixed load: `python benchmarks/soak.py [--minutes 10]`

The load on `aisbreaker serve` is everything that happens in a day: JSON responses, streams that their clients leave, bodies
that break off, wrong tokens, unknown paths, upstream errors, upstreams that close without a response, and new connections all
the time. The resident memory is sampled every few seconds. Prints its growth after the warm-up: the slope of a line through the
samples, and the last third against the first. The exit status is 1 if it grew by more than `--allowed`, or if a response was
wrong.
"""

import argparse
import contextlib
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path

from contenders import CONTENDERS, OURS, Call, Running, Stage, Unavailable, check
from datapath import load_requests, prepare_cache, upstreams
from processes import LOAD_CORES, end_on_signals, memory_bytes
from sse_client import Streams

STREAMS = 100
ROUND = 5
"""Seconds of one round of load. The memory is sampled after each."""


def main() -> None:
    """Load, sample, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--warm-up", type=float, default=None, help="minutes; default a fifth of --minutes, at most 2")
    parser.add_argument("--allowed", type=float, default=2.0, help="MiB that the memory may grow after the warm-up")
    arguments = parser.parse_args()
    warm_up = 60 * (min(2.0, arguments.minutes / 5) if arguments.warm_up is None else arguments.warm_up)
    end_on_signals()
    os.sched_setaffinity(0, LOAD_CORES)
    prepare_cache()
    ours = next(each for each in CONTENDERS if each.key == OURS)
    samples: list[tuple[float, int]] = []
    done: Counter[str] = Counter()
    with upstreams() as (stage, load), ours.running(stage) as contender:
        if contender.process is None:
            raise RuntimeError("the server has no process")
        began = time.monotonic()
        with _trouble(contender, done):
            while (elapsed := time.monotonic() - began) < arguments.minutes * 60:
                _one_round(contender, stage, load, done)
                memory = memory_bytes(contender.process.pid)
                samples.append((elapsed, memory))
                _say(f"{elapsed / 60:5.1f} min {memory / 2**20:7.1f} MiB")
        check(contender)
    if not _print_result([sample for sample in samples if sample[0] >= warm_up], done, arguments.allowed):
        sys.exit(1)


def _one_round(contender: Running, stage: Stage, load: Streams, done: Counter[str]) -> None:
    """Send requests of every kind through wrk while streams are opened, fed and left."""
    request = stage.directory / "sse.request"
    request.write_bytes(contender.sse.raw)
    good = contender.json
    wrong = replace(good, headers={**good.headers, "Authorization": "Bearer aisbreaker_eyJ2ZXIiOiJub25lIn0.AAAA"})
    calls = [good] * 12 + [
        wrong,
        replace(good, headers={name: value for name, value in good.headers.items() if name != "Authorization"}),
        replace(good, path="/nowhere/v1/chat/completions"),
        replace(good, path="/openai/v1/files"),
    ]
    streaming = threading.Thread(target=_stream, args=(contender, load, request, done))
    streaming.start()
    try:
        result = load_requests(calls, stage, 64, ROUND - 1)
        done["requests"] += result["requests"]
        done["of them refused, as they should be"] += result["not_2xx"]
        done["broken connections"] += result["broken"]
    finally:
        streaming.join()
    for connections in (1, 200):  # the pool grows and shrinks
        result = load_requests([good], stage, connections, 1)
        done["requests"] += result["requests"]
        done["unexpected responses"] += result["not_2xx"]


def _stream(contender: Running, load: Streams, request: Path, done: Counter[str]) -> None:
    opened = load.open(contender.sse.port, STREAMS, 5, request)
    done["streams"] += opened["open"]
    done["streams that did not open"] += opened["failed"]
    done["pieces"] += load.run(1, 1)["pieces"]
    done["pieces"] += load.run(0, 0.5)["pieces"]
    done["streams that the upstream did not see closed"] += load.close()["lingering"]


@contextlib.contextmanager
def _trouble(contender: Running, done: Counter[str]) -> Iterator[None]:
    """Make trouble in a thread: clients that disconnect at any point, and upstream errors."""
    over = threading.Event()

    def work() -> None:
        chance = random.Random(1)
        call = contender.json
        vendor_error = replace(call, path="/openai/v1/embeddings")
        no_response = replace(call, path="/openai/v1/audio/speech")
        while not over.wait(0.01):
            with contextlib.suppress(OSError, HTTPException):
                kind = chance.randrange(4)
                if kind == 0:
                    _break_off(call, chance)
                    done["requests that broke off"] += 1
                elif kind == 1:
                    _leave(contender.sse, chance)
                    done["streams left early"] += 1
                elif kind == 2:
                    vendor_error.send()
                    done["upstream errors"] += 1
                else:
                    no_response.send()
                    done["upstreams that closed without a response"] += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _break_off(call: Call, chance: random.Random) -> None:
    """Send the beginning of a request, and disconnect."""
    with socket.create_connection(("127.0.0.1", call.port), timeout=5) as client:
        client.sendall(call.raw[: chance.randrange(len(call.raw))])


def _leave(call: Call, chance: random.Random) -> None:
    """Request a stream, read a little of it, and disconnect."""
    with socket.create_connection(("127.0.0.1", call.port), timeout=5) as client:
        client.sendall(call.raw.replace(b"stream-000000", b"stream=000000"))
        if chance.random() < 0.5:
            client.recv(chance.randrange(1, 400))


def _print_result(samples: list[tuple[float, int]], done: Counter[str], allowed: float) -> bool:
    """Print the counts and the growth of the memory. Returns whether all is well."""
    for what, count in sorted(done.items(), key=lambda item: -item[1]):
        print(f"{count:12,} {what}")
    if len(samples) < 3:
        print("too short to say anything about memory")
        return True
    times, sizes = [sample[0] / 60 for sample in samples], [sample[1] / 2**20 for sample in samples]
    middle, mean = sum(times) / len(times), sum(sizes) / len(sizes)
    slope = sum((t - middle) * (size - mean) for t, size in zip(times, sizes, strict=True))
    slope /= sum((t - middle) ** 2 for t in times)
    third = max(1, len(sizes) // 3)
    growth = sum(sizes[-third:]) / third - sum(sizes[:third]) / third
    print(
        f"memory after the warm-up: {min(sizes):.1f} to {max(sizes):.1f} MiB in {times[-1] - times[0]:.1f} minutes; "
        f"{slope:+.3f} MiB a minute; {growth:+.2f} MiB from the first third to the last"
    )
    unexpected = done["unexpected responses"]
    if unexpected:
        print(f"{unexpected} responses were wrong")
    return growth <= allowed and not unexpected


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        try:
            main()
        except Unavailable as reason:
            sys.exit(f"the server did not start, or no longer responds: {reason}")
