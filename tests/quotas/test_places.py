"""A flood of addresses or tokens fills no more than the places of a shared storage, and takes nothing from known clients."""

import asyncio
from collections.abc import Iterator

import pytest

from aisbreaker_mw.quotas import Bucket, QuotaLimiter
from aisbreaker_mw.quotas.places import RECORDS, Places
from aisbreaker_mw.quotas.redis import RedisClusterQuotaStorage

from .model import Clock, bucket, limits
from .servers import Valkey, limiting, passes

MAX_CLIENTS = 2_000
PLACES = MAX_CLIENTS // RECORDS
SHARED = 3
"""Most shared records in a place, with windows of the same lengths."""


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


def records(valkey: Valkey) -> int:
    return sum(valkey.client.hlen(key) for key in valkey.client.scan_iter(count=1_000))  # type: ignore[misc]


def server_client(address: str, day: int = 5) -> Bucket:
    return Bucket(f"srv:c:{address}", "srv", "server-client", limits(day=day))


async def flood(limiter: QuotaLimiter, tokens: list[str], addresses: int) -> int:
    """Ask once from each address, with each token in turn. Returns how many passed."""
    passed = 0
    for first in range(0, addresses, 2_000):
        asking = [
            passes(limiter, server_client(f"flood{i}"), bucket(f"{tokens[i % len(tokens)]}:flood{i}", minute=5, hour=5))
            for i in range(first, first + 2_000)
        ]
        passed += sum(await asyncio.gather(*asking))
    return passed


async def test_a_flood_of_addresses_is_bounded_and_known_clients_lose_nothing(valkey: Valkey) -> None:
    async with limiting(valkey.uri, max_clients=MAX_CLIENTS, timeout=30) as limiter:
        known = [(server_client(f"known{i}"), bucket(f"quiet:known{i}", day=3)) for i in range(100)]
        assert all([await passes(limiter, *client) for client in known])
        passed = await flood(limiter, ["a", "b", "c", "d"], 100_000)
        assert valkey.client.dbsize() <= 2 * PLACES
        assert records(valkey) <= 2 * PLACES * (RECORDS + SHARED)
        assert passed >= MAX_CLIENTS - 100
        # The known ones have all that they had, and not one request more.
        for client in known:
            assert [await passes(limiter, *client) for _ in range(3)] == [True, True, False]


async def test_new_clients_of_a_quiet_token_are_served_during_a_flood_of_another(valkey: Valkey) -> None:
    async with limiting(valkey.uri, max_clients=MAX_CLIENTS, timeout=30) as limiter:
        for first in range(0, 20_000, 2_000):
            await asyncio.gather(*[passes(limiter, bucket(f"loud:{i}", day=2)) for i in range(first, first + 2_000)])
        assert records(valkey) == PLACES * (RECORDS + 1)
        assert not await passes(limiter, bucket("loud:new", day=2))
        assert all([await passes(limiter, bucket(f"quiet:new{i}", day=60)) for i in range(20)])


async def test_a_flood_of_tokens_is_bounded_too(valkey: Valkey) -> None:
    async with limiting(valkey.uri, max_clients=160, timeout=30) as limiter:
        asking = [passes(limiter, bucket(f"token{i}", day=2), bucket(f"token{i}:c", day=2)) for i in range(5_000)]
        passed = sum(await asyncio.gather(*asking))
        assert valkey.client.dbsize() == 2 * 10
        assert records(valkey) == 2 * 10 * (RECORDS + SHARED)
        assert 100 <= passed <= 2 * 10 * (RECORDS + SHARED)


async def test_clients_count_separately_again_when_the_flood_is_over(valkey: Valkey) -> None:
    clock = Clock()
    async with limiting(valkey.uri, max_clients=32, clock=clock) as limiter:
        for i in range(500):
            await limiter.consume([bucket(f"token:{i}", minute=3)])
        assert records(valkey) == 2 * (RECORDS + 1)
        clock.pass_seconds(120)
        later = [bucket(f"token:later{i}", minute=3) for i in range(10)]
        for client in later:
            assert [await passes(limiter, client) for _ in range(4)] == [True] * 3 + [False]


async def test_up_to_the_bound_nobody_shares(valkey: Valkey) -> None:
    """As far as chance spreads them evenly: at half the bound, one place in 250 is full."""
    async with limiting(valkey.uri, max_clients=20_000, timeout=30) as limiter:
        clients = [bucket(f"token:{i}", day=1) for i in range(2_000)]
        assert all(await asyncio.gather(*[passes(limiter, client) for client in clients]))
        assert not any(await asyncio.gather(*[passes(limiter, client) for client in clients]))
        assert records(valkey) == 2_000


async def test_the_storage_holds_no_address_and_no_token(valkey: Valkey) -> None:
    async with limiting(valkey.uri) as limiter:
        await limiter.consume([server_client("192.0.2.1"), bucket("tok:192.0.2.1", minute=5)])
        keys = valkey.client.scan_iter()
        held = b"".join([part for key in keys for part in (key, *valkey.client.hgetall(key))])  # type: ignore[misc]
        assert len(held) > 2 * 32
        assert b"192.0" not in held


async def test_a_place_stays_in_the_compact_form(valkey: Valkey) -> None:
    """Redis keeps a hash whose values are longer than 64 bytes in a form that takes twice as much."""
    windows = limits(60, 600, 2**31)
    async with limiting(valkey.uri, max_clients=16) as limiter:
        for i in range(20):
            await limiter.consume([Bucket(f"srv:c:{i}", "srv", "server-client", windows)], 1)
        (key,) = valkey.client.keys()
        assert valkey.client.object("encoding", key) in (b"listpack", b"ziplist")  # type: ignore[no-untyped-call]


def test_places_depend_on_the_secret_and_on_nothing_else() -> None:
    one, same, other = (Places("p", 100_000, 1, secret) for secret in (b"one", b"one", b"other"))
    clients = [bucket(f"token:{i}", minute=5) for i in range(50)]
    assert [one.find(client) for client in clients] == [same.find(client) for client in clients]
    assert not {one.find(client).fields for client in clients} & {other.find(client).fields for client in clients}
    assert [one.find(client).key for client in clients] != [other.find(client).key for client in clients]


def test_on_a_cluster_the_places_are_divided_among_the_slots() -> None:
    spread = RedisClusterQuotaStorage.SPREAD
    places = Places("p", 100 * RECORDS * spread, spread, b"")
    keys = {places.find(bucket(f"token{i}:c", minute=5)).key for i in range(20_000)}
    assert len(keys) <= 100 * spread
    assert {key.partition("}")[0] for key in keys} == {f"p:{{tok{i}" for i in range(spread)}
    # The buckets of a token stay together, and those of the server.
    token = Bucket("token1", "token1", "token", limits(1))
    assert places.find(token).key.partition("}")[0] == places.find(bucket("token1:c", 1)).key.partition("}")[0]
    assert places.find(server_client("c")).key.startswith("p:{srv}:server-client:")
