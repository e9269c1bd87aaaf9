"""Quotas in a real Valkey: exact across processes, one round trip, and back by itself after every fault."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator

import pytest
from limits import RateLimitItemPerMinute
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string

from aisbreaker_mw.exceptions import QuotaStorageUnavailable
from aisbreaker_mw.quotas import Decision
from aisbreaker_mw.quotas.embedded import EmbeddedValkey
from aisbreaker_mw.quotas.places import Places

from .model import Clock, bucket, fresh
from .servers import Address, Valkey, hammer, limiting, passes, sentinel, wait_until


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    """One for everybody who does it no harm."""
    with Valkey() as server:
        yield server


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


class TestExactness:
    async def test_a_thousand_requests_at_once_pass_exactly_a_hundred_times(self, valkey: Valkey) -> None:
        async with limiting(valkey.uri) as limiter:
            token = bucket(fresh(), minute=100, hour=500)
            passed = await asyncio.gather(*[passes(limiter, token) for _ in range(1_000)])
        assert sum(passed) == 100

    async def test_from_four_processes_too(self, own_valkey: Valkey) -> None:
        assert await hammer(own_valkey.uri, 4, 1_000) == (100, 900)

    async def test_on_the_embedded_server_too(self) -> None:
        with EmbeddedValkey() as uri:
            assert await hammer(uri, 4, 1_000) == (100, 900)

    async def test_a_full_hour_leaves_the_other_windows_where_they_were(self, valkey: Valkey) -> None:
        name = fresh()
        client = bucket(f"{name}:c", minute=100, hour=5, day=1000)
        token = bucket(name, minute=100, hour=100, day=1000)
        async with limiting(valkey.uri, clock=Clock()) as limiter:
            assert [await passes(limiter, token, client) for _ in range(20)] == [True] * 5 + [False] * 15
            assert await limiter.consume([client]) == (False, "token-client", 5, 3600, 0, 3600.001)
            probe = await limiter.consume([token])
        assert probe is not None
        assert (probe.limit, probe.remaining) == (100, 94)

    async def test_the_refusals_of_one_client_cost_another_nothing(self, valkey: Valkey) -> None:
        name = fresh()
        token, a, b = bucket(name, minute=100), bucket(f"{name}:a", minute=10), bucket(f"{name}:b", minute=90)
        async with limiting(valkey.uri) as limiter:
            assert sum(await asyncio.gather(*[passes(limiter, a, token) for _ in range(500)])) == 10
            assert sum(await asyncio.gather(*[passes(limiter, token, b) for _ in range(500)])) == 90

    async def test_a_waiting_caller_that_gives_up_leaves_the_others_alone(self, valkey: Valkey) -> None:
        async with limiting(valkey.uri) as limiter:
            token = bucket(fresh(), minute=100)
            await limiter.consume([token])
            asking = [asyncio.create_task(passes(limiter, token)) for _ in range(100)]
            await asyncio.sleep(0)
            for task in asking[::2]:
                task.cancel()
            answers = await asyncio.gather(*asking, return_exceptions=True)
        assert [answer for answer in answers if isinstance(answer, bool)] == [True] * 50


class TestServer:
    async def test_one_round_trip_per_request(self, own_valkey: Valkey) -> None:
        name = fresh()
        buckets = [bucket(f"{name}:{i}", minute=1_000, hour=1_000, day=1_000) for i in range(4)]
        async with limiting(own_valkey.uri) as limiter:
            await limiter.consume(buckets)
            own_valkey.client.config_resetstat()
            for _ in range(50):
                await limiter.consume(buckets)
            statistics = own_valkey.client.info("commandstats")
        # What the script itself runs is counted too: the server's own business.
        inside = {"cmdstat_hget", "cmdstat_hset", "cmdstat_pttl", "cmdstat_time", "cmdstat_info", "cmdstat_config|resetstat"}
        assert {name: statistics[name]["calls"] for name in statistics.keys() - inside} == {"cmdstat_evalsha": 50}

    async def test_requests_that_come_together_travel_together(self, own_valkey: Valkey) -> None:
        async with limiting(own_valkey.uri) as limiter:
            token = bucket(fresh(), minute=10_000)
            await asyncio.gather(*[passes(limiter, token) for _ in range(1_000)])
            assert own_valkey.client.info("stats")["total_connections_received"] <= 1 + 1

    async def test_keys_expire_when_their_windows_ran_out(self, valkey: Valkey) -> None:
        name = fresh()
        async with limiting(valkey.uri) as limiter:
            await limiter.consume([bucket(name, minute=10, hour=10)])
        key = Places("aisbreaker", 1_000_000, 1, b"").find(bucket(name, minute=10, hour=10)).key
        assert key.startswith("aisbreaker:{tok0}:token:")
        assert 7_190_000 < valkey.client.pttl(key) <= 7_200_000

    async def test_windows_that_a_bucket_keeps_keep_their_counts_when_others_change(self, valkey: Valkey) -> None:
        name = fresh()
        async with limiting(valkey.uri) as limiter:
            for _ in range(3):
                await limiter.consume([bucket(name, minute=10, hour=10)])
            decision = await limiter.consume([bucket(name, hour=5, day=100)])
            assert decision is not None
            assert (decision.window, decision.remaining) == (3600, 1)

    async def test_a_clock_that_goes_back_gives_nothing_away(self, valkey: Valkey) -> None:
        clock = Clock()
        token = bucket(fresh(), minute=10)
        async with limiting(valkey.uri, clock=clock) as limiter:
            assert await passes(limiter, token, cost=4)
            clock.pass_seconds(90)
            assert await passes(limiter, token, cost=1)
            clock.pass_seconds(-3_600)
            # Four before and one now, as at the window's beginning.
            assert not await passes(limiter, token, cost=6)
            assert await passes(limiter, token, cost=5)
            assert not await passes(limiter, token)

    @pytest.mark.parametrize("scheme", ["redis", "valkey", "async+redis", "async+valkey"])
    async def test_every_spelling_of_the_uri_is_the_same_storage(self, valkey: Valkey, scheme: str) -> None:
        token = bucket(fresh(), minute=2)
        uris = (f"{scheme}://127.0.0.1:{valkey.port}", f"{scheme}://127.0.0.1:{valkey.port}/0")
        for uri in (*uris, f"{scheme}+unix://{valkey.socket}"):
            async with limiting(uri) as limiter:
                last = await passes(limiter, token)
        assert not last

    async def test_a_password_is_used_and_a_wrong_one_is_not_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        with Valkey("--requirepass", "se-cret") as server:
            async with limiting(f"redis://:se-cret@127.0.0.1:{server.port}") as limiter:
                assert await passes(limiter, bucket(fresh(), minute=1))
            async with limiting(f"redis://:wrong-one@127.0.0.1:{server.port}") as limiter:
                with pytest.raises(QuotaStorageUnavailable):
                    await limiter.consume([bucket(fresh(), minute=1)])
        assert "AuthenticationError" in caplog.text
        assert "wrong-one" not in caplog.text

    async def test_limits_own_strategies_run_on_the_storage(self, valkey: Valkey) -> None:
        storage = storage_from_string(f"aisbreaker+redis://127.0.0.1:{valkey.port}")
        strategy = SlidingWindowCounterRateLimiter(storage)
        item = RateLimitItemPerMinute(2)
        assert [await strategy.hit(item, "a") for _ in range(3)] == [True, True, False]
        await storage.aclose()  # type: ignore[union-attr]


class TestFaults:
    async def test_flushall(self, own_valkey: Valkey) -> None:
        token = bucket(fresh(), minute=1)
        async with limiting(own_valkey.uri) as limiter:
            assert [await passes(limiter, token) for _ in range(2)] == [True, False]
            own_valkey.client.flushall()
            assert [await passes(limiter, token) for _ in range(2)] == [True, False]
            assert limiter.health == "ok"

    async def test_script_flush(self, own_valkey: Valkey) -> None:
        token = bucket(fresh(), minute=3)
        async with limiting(own_valkey.uri) as limiter:
            assert await passes(limiter, token)
            own_valkey.client.script_flush()
            passed = await asyncio.gather(*[passes(limiter, token) for _ in range(20)])
            assert sum(passed) == 2
            assert limiter.health == "ok"

    async def test_killed_and_restarted(self, own_valkey: Valkey, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "aisbreaker_mw.quotas")
        token = bucket(fresh(), minute=3)
        async with limiting(own_valkey.uri) as limiter:
            assert await passes(limiter, token)
            own_valkey.kill()
            for _ in range(3):
                with pytest.raises(QuotaStorageUnavailable):
                    await limiter.consume([token])
            assert limiter.health == "unavailable"
            own_valkey.start()
            assert await passes(limiter, token)
            assert limiter.health == "ok"
        levels = [record.levelname for record in caplog.records if record.name == "aisbreaker_mw.quotas"]
        assert levels == ["WARNING", "INFO"]

    async def test_restarted_between_two_requests(self, own_valkey: Valkey) -> None:
        """The old connections are found dead before anything is sent on them."""
        token = bucket(fresh(), minute=3)
        async with limiting(own_valkey.uri) as limiter:
            assert await passes(limiter, token)
            own_valkey.kill()
            own_valkey.start()
            await asyncio.sleep(0.01)
            assert await passes(limiter, token)

    async def test_accepts_and_never_answers(self, own_valkey: Valkey) -> None:
        token = bucket(fresh(), minute=1_000)
        async with limiting(own_valkey.uri, timeout=0.5) as limiter:
            assert await passes(limiter, token)
            with own_valkey.paused():
                began = time.monotonic()
                answers = await asyncio.gather(*[limiter.consume([token]) for _ in range(300)], return_exceptions=True)
                assert time.monotonic() - began < 1.0  # none waited twice, or for another
                assert {type(answer) for answer in answers} == {QuotaStorageUnavailable}
            await asyncio.sleep(0)
            assert await passes(limiter, token)

    async def test_never_answers_from_the_start(self) -> None:
        connections: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(lambda _, writer: connections.append(writer), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with limiting(f"redis://127.0.0.1:{port}", timeout=0.3) as limiter:
            began = time.monotonic()
            with pytest.raises(QuotaStorageUnavailable):
                await limiter.consume([bucket("token", minute=1)])
            assert time.monotonic() - began < 0.9
        server.close()
        for connection in connections:
            connection.close()

    async def test_while_it_is_down_one_request_at_a_time_tries(self, own_valkey: Valkey) -> None:
        token = bucket(fresh(), minute=1_000)
        async with limiting(own_valkey.uri, timeout=0.5) as limiter:
            with own_valkey.paused():
                with pytest.raises(QuotaStorageUnavailable):
                    await limiter.consume([token])
                probe = asyncio.create_task(limiter.consume([token]))
                await asyncio.sleep(0)
                for _ in range(100):
                    with pytest.raises(QuotaStorageUnavailable):
                        await limiter.consume([token])
                assert not probe.done()  # nobody else has waited
                with pytest.raises(QuotaStorageUnavailable):
                    await probe

    async def test_read_only_after_a_failover_behind_one_address(self) -> None:
        """The address leads to the new primary, open connections still to the old one."""
        token = bucket(fresh(), minute=2)
        with Valkey() as old, Valkey() as new:
            async with (
                Address(old.port).listening() as address,
                limiting(f"redis://127.0.0.1:{address.port}") as limiter,
            ):
                assert await passes(limiter, token)
                old.client.replicaof("127.0.0.1", new.port)  # type: ignore[no-untyped-call]
                wait_until(lambda: old.client.info("replication")["master_link_status"] == "up")
                address.target = new.port
                with pytest.raises(QuotaStorageUnavailable):
                    await limiter.consume([token])
                assert [await passes(limiter, token) for _ in range(3)] == [True, True, False]

    async def test_failover_by_a_sentinel(self) -> None:
        token = bucket(fresh(), minute=3)
        with Valkey() as one, Valkey("--replicaof", f"127.0.0.1 {one.port}") as two:
            wait_until(lambda: two.client.info("replication")["master_link_status"] == "up")
            with sentinel(one, "quotas") as port:
                async with limiting(f"redis+sentinel://127.0.0.1:{port}/quotas", timeout=1) as limiter:
                    assert await passes(limiter, token)
                    wait_until(lambda: two.client.keys("aisbreaker:*"))
                    one.kill()
                    wait_until(lambda: two.client.info("replication")["role"] == "master", seconds=20)

                    async def ask() -> Decision | None:
                        with contextlib.suppress(QuotaStorageUnavailable):
                            return await limiter.consume([token])
                        await asyncio.sleep(0.02)
                        return None

                    deadline = time.monotonic() + 10
                    while (decision := await ask()) is None:
                        assert time.monotonic() < deadline
                    assert (decision.admitted, decision.remaining) == (True, 1)

    async def test_out_of_memory_refuses_rather_than_forgets(self) -> None:
        with Valkey("--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
            async with limiting(server.uri) as limiter:
                token = bucket(fresh(), minute=10)
                assert await passes(limiter, token)
                server.client.config_set("maxmemory", "1mb")
                with pytest.raises(QuotaStorageUnavailable):
                    await limiter.consume([token])
                server.client.config_set("maxmemory", "0")
                decision = await limiter.consume([token])
                assert decision is not None
                assert decision.remaining == 8


class TestPolicies:
    async def test_local_counts_in_this_process_meanwhile(self, own_valkey: Valkey) -> None:
        token = bucket(fresh(), minute=2)
        async with limiting(own_valkey.uri, on_storage_error="local") as limiter:
            assert await passes(limiter, token, cost=2)
            own_valkey.kill()
            assert [await passes(limiter, token) for _ in range(3)] == [True, True, False]
            assert limiter.health == "local"
            own_valkey.start()
            assert [await passes(limiter, token) for _ in range(3)] == [True, True, False]
            assert limiter.health == "ok"

    async def test_allow_counts_nothing_meanwhile(self, own_valkey: Valkey) -> None:
        token = bucket(fresh(), minute=1)
        async with limiting(own_valkey.uri, on_storage_error="allow") as limiter:
            own_valkey.kill()
            assert [await limiter.consume([token]) for _ in range(3)] == [None] * 3
            assert limiter.health == "allow"
            own_valkey.start()
            assert [await passes(limiter, token) for _ in range(2)] == [True, False]

    async def test_without_windows_nobody_asks_the_storage(self) -> None:
        async with limiting("redis://127.0.0.1:1") as limiter:
            for health in ("ok", "unavailable"):
                assert await limiter.consume([]) is None
                assert await limiter.consume([bucket("token")]) is None
                assert limiter.health == health
                with pytest.raises(QuotaStorageUnavailable):
                    await limiter.consume([bucket("token", minute=1)])
