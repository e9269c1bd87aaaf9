"""
The cost of counting: `python benchmarks/quotas.py [--clients 1000000]`

Each request is counted in twelve windows: minute, hour and day, of the server and of a token, per client and for all clients
together. It goes the way of the product: `BucketPlan` names its buckets, `QuotaLimiter` counts it in a storage. Prints a
Markdown table. A time is the least of several runs, because other programs can only add to it.
"""

import argparse
import asyncio
import multiprocessing
import platform
import random
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import redis
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from aisbreaker_mw.quotas import Buckets, Decision, QuotaLimiter
from aisbreaker_mw.quotas.buckets import BucketPlan
from aisbreaker_mw.quotas.embedded import EmbeddedValkey
from aisbreaker_mw.tokens.claims import RequestLimits, RequestQuotas, TokenClaims

ASKED = 20_000
"""Requests in a run, each of a random client."""
RUNS = 12
CONCURRENCY = 64
FEW = 1_000

Consume: TypeAlias = Callable[[Buckets], Coroutine[Any, Any, Any]]

_WINDOWS = RequestLimits(requests_per_minute=10**9, requests_per_hour=10**9, requests_per_day=10**9)
QUOTAS = RequestQuotas(per_client_request_limits=_WINDOWS, global_request_limits=_WINDOWS)
TOKEN = TokenClaims("Zm9vYmFyYmF6cXV4MTIzNA", 0, 2**40, QUOTAS, ())
PLAN = BucketPlan(QUOTAS)


def address(client: int) -> str:
    """Return the address of a client, by its number."""
    return f"2001:db8:{client >> 16:x}:{client & 0xFFFF:x}::/64"


def twelve_windows(client: int) -> Buckets:
    """Return the buckets of a client's request."""
    return PLAN.for_request(address(client), TOKEN)


async def count(limiter: QuotaLimiter, buckets: Buckets) -> Decision | None:
    """Count a request as `quotas.gate` does."""
    return limiter.consume_now(buckets) if limiter.local else await limiter.consume(buckets)


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def ask(clients: list[int], consume: Consume) -> float:
    """Return the microseconds per request, from the client's address to the decision."""
    began = time.perf_counter()
    for client in clients:
        await consume(twelve_windows(client))
    return (time.perf_counter() - began) / len(clients) * 1e6


def in_memory(few: int, many: int) -> tuple[float, ...]:
    """Return the microseconds per request, and those to name the windows, among few clients and then among many."""

    async def name_only(buckets: Buckets) -> None:
        pass

    async def measure() -> tuple[float, ...]:
        limiters = []
        for clients in (few, many):
            limiter = QuotaLimiter(max_clients=clients)
            for client in range(clients):
                await count(limiter, twelve_windows(client))
            generator = random.Random(1)
            limiters.append((limiter, [generator.randrange(clients) for _ in range(ASKED)]))
        # In turns, so that other programs disturb all of them alike.
        runs = [
            [await ask(asked, consume) for limiter, asked in limiters for consume in (partial(count, limiter), name_only)]
            for _ in range(RUNS)
        ]
        return tuple(map(min, zip(*runs, strict=True)))

    return asyncio.run(measure())


def in_memory_of_limits(clients: int) -> float:
    """Return the microseconds per request of limits' own storage and strategy: twelve hits, then a turn of the event loop."""

    async def measure() -> float:
        storage = MemoryStorage()
        strategy = SlidingWindowCounterRateLimiter(storage)
        # The state after so many clients. To count them one by one would take too long.
        now = time.time()
        for client in range(clients):
            for each in twelve_windows(client):
                for item in each.limits:
                    _, current = storage.sliding_window_keys(item.key_for(each.key), item.get_expiry(), now)
                    storage.storage[current] = 1
                    storage.expirations[current] = now + 2 * item.get_expiry()

        async def hits(buckets: Buckets) -> None:
            for each in buckets:
                for item in each.limits:
                    await strategy.hit(item, each.key)
            await asyncio.sleep(0)

        took = min([await ask(list(range(200)), hits) for _ in range(3)])
        if storage.timer is not None:
            storage.timer.cancel()
        return took

    return asyncio.run(measure())


def bytes_per_client(clients: int) -> float:
    """Return the bytes of memory per client with three windows."""

    async def measure() -> float:
        limiter = QuotaLimiter(max_clients=clients)
        bucket = next(each for each in twelve_windows(0) if each.policy == "token-client")
        before = resident_bytes()
        for client in range(clients):
            # Not by the plan, whose memo is bounded and would be counted as well.
            await count(limiter, (replace(bucket, key=f"{bucket.slot}:c:{address(client)}"),))
        return (resident_bytes() - before) / clients

    return asyncio.run(measure())


def on_valkey(uri: str) -> tuple[float, float]:
    """Return the requests per second on Valkey, and the round trips per request."""

    async def measure() -> tuple[float, float]:
        limiter = QuotaLimiter(uri, timeout=5)
        await limiter.consume(twelve_windows(0))
        with redis.Redis(unix_socket_path=uri.removeprefix("redis+unix://")) as client:
            client.config_resetstat()
            await limiter.consume(twelve_windows(0))
            for client_number in range(999):
                await limiter.consume(twelve_windows(client_number))
            statistics: dict[str, Any] = client.info("commandstats")  # type: ignore[assignment]
        # Valkey also counts the commands that the script runs, which are no round trips.
        commands = ("evalsha", "eval", "script|load")
        trips = sum(statistics.get(f"cmdstat_{command}", {}).get("calls", 0) for command in commands)
        rate = await requests_per_second(partial(count, limiter), 20_000)
        await limiter.aclose()
        return rate, trips / 1000

    return asyncio.run(measure())


def on_valkey_by_limits(uri: str) -> float:
    """Return the requests per second of limits' own storage and strategy: twelve hits."""

    async def measure() -> float:
        storage = RedisStorage(uri, implementation="redispy")
        strategy = SlidingWindowCounterRateLimiter(storage)

        async def hits(buckets: Buckets) -> None:
            for each in buckets:
                for item in each.limits:
                    await strategy.hit(item, each.key)

        rate = await requests_per_second(hits, 2_000)
        await storage.bridge.storage.aclose()  # type: ignore[attr-defined]
        return rate

    return asyncio.run(measure())


async def requests_per_second(consume: Consume, total: int) -> float:
    """Return the requests per second of `total` requests, `CONCURRENCY` of them at once."""
    requests = [twelve_windows(client % 1000) for client in range(total)]

    async def work() -> None:
        while requests:
            await consume(requests.pop())

    began = time.perf_counter()
    await asyncio.gather(*[work() for _ in range(CONCURRENCY)])
    return total / (time.perf_counter() - began)


def alone(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Run a measurement in a fresh process, and return its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1_000_000, help="number of many clients (default: 1000000)")
    many = parser.parse_args().clients

    print(f"Python {platform.python_version()}, {platform.machine()}, one process; requests in twelve windows\n")
    print("| measured | result |")
    print("| --- | --- |")
    few_us, naming_us, many_us, naming_many_us = alone(in_memory, FEW, many)
    print(f"| memory, {FEW:,} clients | {few_us:.1f} µs, {naming_us:.1f} µs of it to name the windows |")
    print(f"| memory, {many:,} clients | {many_us:.1f} µs, {naming_many_us:.1f} µs of it to name the windows |")
    size = alone(bytes_per_client, many)
    print(f"| memory per client with three windows, {many:,} clients | {size:.0f} bytes |", flush=True)
    theirs_us = alone(in_memory_of_limits, FEW)
    print(
        f"| limits' own memory and strategy, {FEW:,} clients | {theirs_us:,.0f} µs, {theirs_us / few_us:,.0f} times as much |"
    )
    with EmbeddedValkey() as uri:
        rate, trips = alone(on_valkey, uri)
        print(f"| Valkey, round trips per request | {trips:.2f} |")
        print(f"| Valkey, {CONCURRENCY} at once | {rate:,.0f} requests/s |", flush=True)
        theirs = alone(on_valkey_by_limits, uri)
        label = f"limits' own storage and strategy on Valkey, {CONCURRENCY} at once"
        print(f"| {label} | {theirs:,.0f} requests/s, ours {rate / theirs:.0f} times as many |")


if __name__ == "__main__":
    main()
