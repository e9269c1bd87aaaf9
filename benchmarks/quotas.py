"""
What counting costs: `python benchmarks/quotas.py [--clients 1000000]`

One request is counted in twelve windows: minute, hour and day, of the server and of a token, per client and together. Prints a
Markdown table. Times are the least of several runs, as whatever else the machine does only adds.
"""

import argparse
import asyncio
import multiprocessing
import platform
import random
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import redis
from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from aisbreaker_mw.quotas import Bucket, Buckets, QuotaLimiter
from aisbreaker_mw.quotas.embedded import EmbeddedValkey

ASKED = 20_000
"""Requests in a run, each of a client by chance."""
RUNS = 12
CONCURRENCY = 64
FEW = 1_000

Consume: TypeAlias = Callable[[Buckets], Coroutine[Any, Any, Any]]


def limits(amount: int) -> tuple[RateLimitItem, ...]:
    return RateLimitItemPerMinute(amount), RateLimitItemPerHour(amount), RateLimitItemPerDay(amount)


LIMITS = limits(10**9)
SERVER = Bucket("srv", "srv", "server", LIMITS)
SERVER_CLIENT = Bucket("srv:c", "srv", "server-client", LIMITS)
TOKEN = Bucket("tok:Zm9vYmFyYmF6cXV4MTIzNA", "tok:Zm9vYmFyYmF6cXV4MTIzNA", "token", LIMITS)
TOKEN_CLIENT = Bucket("tok:Zm9vYmFyYmF6cXV4MTIzNA:c", "tok:Zm9vYmFyYmF6cXV4MTIzNA", "token-client", LIMITS)


def address(client: int) -> str:
    return f"2001:db8:{client >> 16:x}:{client & 0xFFFF:x}::/64"


def twelve_windows(client: int) -> Buckets:
    name = address(client)
    return (
        SERVER_CLIENT.with_key(f"srv:c:{name}"),
        SERVER,
        TOKEN_CLIENT.with_key(f"{TOKEN.key}:c:{name}"),
        TOKEN,
    )


def resident_bytes() -> int:
    """Memory of this process that is in use, by the kernel's account."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def ask(clients: list[int], consume: Consume) -> float:
    """Microseconds per request, from the client's address to the decision."""
    began = time.perf_counter()
    for client in clients:
        await consume(twelve_windows(client))
    return (time.perf_counter() - began) / len(clients) * 1e6


def in_memory(few: int, many: int) -> tuple[float, float, float]:
    """Microseconds per request among few and among many clients, and what of it is to name the twelve windows."""

    async def name_only(buckets: Buckets) -> None:
        pass

    async def measure() -> tuple[float, float, float]:
        limiters = []
        for clients in (few, many):
            limiter = QuotaLimiter(max_clients=clients)
            for client in range(clients):
                await limiter.consume(twelve_windows(client))
            generator = random.Random(1)
            limiters.append((limiter, [generator.randrange(clients) for _ in range(ASKED)]))
        # By turns, so that what else the machine does meets all alike.
        runs = [
            [await ask(asked, limiter.consume) for limiter, asked in limiters] + [await ask(limiters[0][1], name_only)]
            for _ in range(RUNS)
        ]
        few_us, many_us, naming_us = map(min, zip(*runs, strict=True))
        return few_us, many_us, naming_us

    return asyncio.run(measure())


def in_memory_of_limits(clients: int) -> float:
    """Microseconds per request by limits' own storage and strategy: twelve hits, then back to the loop as a server goes."""

    async def measure() -> float:
        storage = MemoryStorage()
        strategy = SlidingWindowCounterRateLimiter(storage)
        # As the storage would be after so many clients came; to let them come would take too long.
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
    """Bytes of memory per client with three windows."""

    async def measure() -> float:
        limiter = QuotaLimiter(max_clients=clients)
        before = resident_bytes()
        for client in range(clients):
            await limiter.consume((TOKEN_CLIENT.with_key(f"{TOKEN.key}:c:{address(client)}"),))
        return (resident_bytes() - before) / clients

    return asyncio.run(measure())


def on_valkey(uri: str) -> tuple[float, float]:
    """Requests per second on Valkey, and commands that the server got per request."""

    async def measure() -> tuple[float, float]:
        limiter = QuotaLimiter(uri, timeout=5)
        await limiter.consume(twelve_windows(0))
        with redis.Redis(unix_socket_path=uri.removeprefix("redis+unix://")) as client:
            client.config_resetstat()
            await limiter.consume(twelve_windows(0))
            for client_number in range(999):
                await limiter.consume(twelve_windows(client_number))
            statistics: dict[str, Any] = client.info("commandstats")  # type: ignore[assignment]
        # What the script runs is counted too, and is no round trip.
        commands = ("evalsha", "eval", "script|load")
        trips = sum(statistics.get(f"cmdstat_{command}", {}).get("calls", 0) for command in commands)
        rate = await requests_per_second(limiter.consume, 20_000)
        await limiter.aclose()
        return rate, trips / 1000

    return asyncio.run(measure())


def on_valkey_by_limits(uri: str) -> float:
    """Requests per second of limits' own storage and strategy: twelve hits."""

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


async def requests_per_second(consume: Consume, count: int) -> float:
    requests = [twelve_windows(client % 1000) for client in range(count)]

    async def work() -> None:
        while requests:
            await consume(requests.pop())

    began = time.perf_counter()
    await asyncio.gather(*[work() for _ in range(CONCURRENCY)])
    return count / (time.perf_counter() - began)


def alone(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Measure in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1_000_000, help="how many are many (default: 1000000)")
    many = parser.parse_args().clients

    print(f"Python {platform.python_version()}, {platform.machine()}, one process; requests in twelve windows\n")
    print("| measured | result |")
    print("| --- | --- |")
    few_us, many_us, naming_us = alone(in_memory, FEW, many)
    print(f"| memory, {FEW:,} clients | {few_us:.1f} µs, {naming_us:.1f} µs of it to name the windows |")
    print(f"| memory, {many:,} clients | {many_us:.1f} µs, {many_us / few_us:.2f} times as much |")
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
