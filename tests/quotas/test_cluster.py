"""Quotas in a real Cluster of three: a refusal or a failure in one slot leaves nothing counted in another."""

import asyncio
import contextlib
import gc
from collections.abc import Iterator

import pytest
import redis

from aisbreaker_mw.exceptions import QuotaStorageUnavailable
from aisbreaker_mw.quotas.places import Places
from aisbreaker_mw.quotas.redis import _CONSUME, RedisClusterQuotaStorage

from .model import Clock, bucket, fresh
from .servers import Valkey, cluster, hammer, limiting, passes, wait_until


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Valkey]]:
    with cluster() as nodes:
        yield nodes


@pytest.fixture
def uri(nodes: list[Valkey]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


async def test_a_refusal_gives_back_what_other_slots_counted(uri: str) -> None:
    server, token = bucket(fresh("server"), minute=5, day=50), bucket(fresh(), hour=2)
    async with limiting(uri) as limiter:
        assert [await passes(limiter, server, token) for _ in range(6)] == [True] * 2 + [False] * 4
        # Two were counted; all the others were given back.
        decision = await limiter.consume([server])
        assert decision is not None
        assert (decision.limit, decision.remaining) == (5, 2)


async def test_what_is_given_back_is_taken_from_the_window_that_counted_it(uri: str) -> None:
    clock = Clock()
    server = bucket(fresh("server"), minute=10)
    storage = RedisClusterQuotaStorage(uri, timeout=5, clock=clock)
    reply = await storage._evaluate(_CONSUME, storage._command([server], 7))
    clock.pass_seconds(60)
    assert await storage.consume([server])  # the next window begins, with the seven before it
    await storage._give_back([([server], reply)], 3)
    decision = await storage.consume([server])
    assert decision is not None
    assert decision.remaining == 10 - 4 - 2
    await storage.aclose()


async def test_a_thousand_requests_at_once_pass_exactly_a_hundred_times(nodes: list[Valkey]) -> None:
    assert await hammer(nodes[0].uri.replace("redis:", "redis+cluster:"), 2, 1_000) == (100, 900)


async def test_the_nearest_window_of_all_slots_is_told(uri: str) -> None:
    server, token = bucket(fresh("server"), minute=5), bucket(fresh(), minute=5, hour=5)
    async with limiting(uri) as limiter:
        decision = await limiter.consume([server, token])
        assert decision is not None
        assert (decision.window, decision.remaining) == (3600, 4)


async def test_one_round_trip_per_slot(uri: str, nodes: list[Valkey]) -> None:
    name = fresh()
    buckets = [bucket(fresh("server"), minute=100), bucket(name, minute=100), bucket(f"{name}:c", minute=100)]
    async with limiting(uri) as limiter:
        await limiter.consume(buckets)
        before = sum(node.calls("evalsha") for node in nodes)
        for _ in range(10):
            await limiter.consume(buckets)
        assert sum(node.calls("evalsha") for node in nodes) - before == 20


async def test_the_first_requests_already_go_to_the_right_node(uri: str, nodes: list[Valkey]) -> None:
    def strays() -> int:
        return sum(node.client.info("errorstats").get("errorstat_MOVED", {}).get("count", 0) for node in nodes)

    before = strays()
    async with limiting(uri) as limiter:
        tokens = [bucket(fresh(), minute=1) for _ in range(50)]
        assert all(await asyncio.gather(*[passes(limiter, token) for token in tokens]))
    assert strays() == before


async def test_a_node_that_is_down_counts_nothing_on_the_others() -> None:
    with cluster() as nodes:
        uri = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        async with limiting(uri, timeout=1) as limiter:
            alive = bucket(name_on(nodes[0]), minute=2)
            dead = bucket(name_on(nodes[1]), minute=100)
            assert await passes(limiter, alive, dead)
            (key,) = nodes[0].client.keys()
            counted_once = nodes[0].client.hgetall(key)
            nodes[1].kill()
            with pytest.raises(QuotaStorageUnavailable):
                await limiter.consume([alive, dead])
            # What was counted is given back without anybody waiting for it.
            await asyncio.to_thread(wait_until, lambda: nodes[0].client.hgetall(key) == counted_once)
            nodes[1].start()
            wait_until(lambda: nodes[0].client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
            assert [await passes(limiter, alive) for _ in range(2)] == [True, False]


def name_on(node: Valkey) -> str:
    """A name whose slot a node serves."""
    while True:
        name = fresh("slot")
        place = Places("aisbreaker", 1_000_000, RedisClusterQuotaStorage.SPREAD, b"").find(bucket(name, minute=1))
        with contextlib.suppress(redis.ResponseError):
            node.client.hlen(place.key)
            return name


async def test_connections_that_the_nodes_closed_are_replaced(uri: str, nodes: list[Valkey]) -> None:
    """As a node closes them that is told to by `timeout`, or by whoever maintains it."""
    async with limiting(uri) as limiter:
        tokens = [bucket(name_on(node), minute=50) for node in nodes]
        assert all(await asyncio.gather(*[passes(limiter, *tokens) for _ in range(10)]))
        for node in nodes:
            node.client.client_kill_filter(_type="normal", skipme=True)  # type: ignore[no-untyped-call]
        await asyncio.sleep(0.01)
        assert all(await asyncio.gather(*[passes(limiter, *tokens) for _ in range(10)]))
        decision = await limiter.consume(tokens)
        assert decision is not None
        assert decision.remaining == 50 - 21


# redis-py leaves the nodes of a client that lost one to the garbage collector, and warns there.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_request_whose_reply_is_lost_is_not_sent_again() -> None:
    """A node that counts and then closes: a second copy would be counted too."""
    counted = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal counted
        with contextlib.closing(writer):
            while line := await reader.readline():
                words = []
                for _ in range(int(line[1:])):
                    length = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(length + 2))[:-2])
                if words[0] == b"EVALSHA":
                    counted += 1
                    return
                if words[:2] == [b"CLUSTER", b"SLOTS"]:
                    writer.write(b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % port)
                else:
                    writer.write(b"*0\r\n" if words[0] == b"COMMAND" else b"+OK\r\n")

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        storage = RedisClusterQuotaStorage(f"redis+cluster://127.0.0.1:{port}", timeout=5)
        with pytest.raises(redis.RedisError):
            await storage.consume([bucket(fresh(), minute=1)])
        await storage.aclose()
    del storage
    gc.collect()
    assert counted == 1
