"""The memory storage: all or nothing, cheap, and bounded."""

import gc
import itertools
import sys

import pytest
from limits import RateLimitItemPerMinute
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string

from aisbreaker_mw.quotas import Bucket, QuotaLimiter
from aisbreaker_mw.quotas.memory import MemoryQuotaStorage

from .model import Clock, Reference, bucket, limits


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def storage(clock: Clock) -> MemoryQuotaStorage:
    return MemoryQuotaStorage(clock=clock)


def admitted(storage: MemoryQuotaStorage, *buckets: Bucket, times: int = 1) -> int:
    """How many of so many requests pass."""
    decisions = [storage.consume_now(buckets) for _ in range(times)]
    return sum(decision is not None and decision.admitted for decision in decisions)


def test_a_fresh_key_passes_exactly_its_limit_in_its_first_minute(storage: MemoryQuotaStorage, clock: Clock) -> None:
    clock.pass_seconds(31.7)
    token = bucket("token", minute=100)
    passed = 0
    for _ in range(1_000):
        passed += admitted(storage, token)
        clock.pass_seconds(0.05)
    assert passed == 100


def test_no_windows_no_decision(storage: MemoryQuotaStorage) -> None:
    assert storage.consume_now(()) is None
    assert storage.consume_now((bucket("token"),)) is None


def test_a_full_hour_leaves_the_other_windows_where_they_were(storage: MemoryQuotaStorage, clock: Clock) -> None:
    client = bucket("token:c", minute=100, hour=5, day=1000)
    token = bucket("token", minute=100, hour=100, day=1000)
    assert admitted(storage, token, client, times=50) == 5
    assert admitted(storage, client, token, times=50) == 0
    # At the hour's end its five still weigh five; a millisecond later less, which counts as four.
    assert storage.consume_now((client,)) == (False, "token-client", 5, 3600, 0, 3600.001)
    probe = storage.consume_now((token,))
    assert probe is not None
    assert (probe.limit, probe.remaining) == (100, 94)


def test_the_refusals_of_one_client_cost_another_nothing(storage: MemoryQuotaStorage) -> None:
    token = bucket("token", minute=100)
    a, b = bucket("token:a", minute=10), bucket("token:b", minute=90)
    assert admitted(storage, a, token, times=1_000) == 10
    assert admitted(storage, b, token, times=1_000) == 90


def test_the_nearest_window_is_told(storage: MemoryQuotaStorage) -> None:
    decision = storage.consume_now((bucket("token", minute=10, hour=8, day=20), bucket("token:c", minute=8, hour=9)), 2)
    assert decision == (True, "token", 8, 3600, 6, 3600.0)


def test_a_request_that_can_never_pass_is_refused_by_the_window_that_never_admits_it(storage: MemoryQuotaStorage) -> None:
    token = bucket("token", minute=3, hour=100)
    assert storage.consume_now((token,), 90) == (False, "token", 3, 60, 3, 60.0)
    assert len(storage) == 0


def test_a_refused_flood_makes_no_records(storage: MemoryQuotaStorage) -> None:
    token = bucket("token", minute=1)
    for i in range(1_000):
        storage.consume_now((bucket(f"token:{i}", minute=5), token))
    assert len(storage) == 2


class TestWhatIsKnownFromBefore:
    """Who is nearest its limit is looked up once, and then known until a window ends or another one may be nearer."""

    @pytest.fixture
    def looks(self, storage: MemoryQuotaStorage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The buckets of which all windows were looked at."""
        keys: list[str] = []
        look = storage._look

        def note(bucket: Bucket, *arguments: int) -> tuple[int, int, int]:
            keys.append(bucket.key)
            return look(bucket, *arguments)

        monkeypatch.setattr(storage, "_look", note)
        return keys

    @pytest.mark.parametrize("minute", [10_000, 50_000], ids=["the-minute-is-nearest", "the-day-is-nearest"])
    def test_no_window_is_looked_at_twice_a_minute(
        self, storage: MemoryQuotaStorage, clock: Clock, looks: list[str], minute: int
    ) -> None:
        buckets = [bucket(key, minute=minute, hour=50_000, day=50_000) for key in ("a", "b", "c", "d")]
        for _ in range(3):
            for _ in range(600):
                assert admitted(storage, *buckets) == 1
                clock.pass_seconds(0.1)
        assert len(looks) <= 3 * 2 * len(buckets)

    @pytest.mark.parametrize(
        ("minute", "hour", "seconds", "nearest"),
        [(10_000, 13_000, 89.5, [60, 3600]), (7_000, 10_000, 5_399.5, [3600, 60])],
        ids=["by-a-longer-one", "by-a-shorter-one"],
    )
    def test_a_leader_that_fades_is_overtaken_at_the_very_millisecond(
        self, storage: MemoryQuotaStorage, clock: Clock, minute: int, hour: int, seconds: float, nearest: list[int]
    ) -> None:
        reference = Reference()
        buckets = [bucket("token", minute=minute, hour=hour)]
        told = []
        for cost, pause in [(6_000, seconds)] + [(1, 0.001)] * 1_000:
            decision = storage.consume_now(buckets, cost)
            assert decision == reference.admitted(buckets, cost, clock.milliseconds)
            assert reference.admits(buckets, cost, clock.milliseconds)
            told.append(decision.window)
            clock.pass_seconds(pause)
        assert [window for window, _ in itertools.groupby(told[1:])] == nearest

    def test_other_limits_are_looked_at_anew(self, storage: MemoryQuotaStorage) -> None:
        assert admitted(storage, bucket("token", minute=100, hour=50), times=9) == 9
        assert storage.consume_now((bucket("token", minute=40, hour=50),)) == (True, "token", 40, 60, 30, 60.0)
        assert storage.consume_now((bucket("token", minute=10, hour=50),)) == (False, "token", 10, 60, 0, 60.001)
        assert storage.consume_now((bucket("token", minute=100, hour=50),)) == (True, "token", 50, 3600, 39, 3600.0)

    def test_what_was_counted_before_another_bucket_refused_is_given_back(self, storage: MemoryQuotaStorage) -> None:
        a, b, c = bucket("a", minute=100), bucket("b", minute=9), bucket("c", minute=100)
        assert admitted(storage, a, b, c, times=1_000) == 9
        assert admitted(storage, a, bucket("new", minute=1), b, c, times=1_000) == 0
        for each in (a, c):
            decision = storage.consume_now((each,))
            assert decision is not None
            assert decision.remaining == 90

    def test_a_cost_beyond_all_integers_is_refused(self, storage: MemoryQuotaStorage) -> None:
        token = bucket("token", minute=10)
        assert admitted(storage, token, times=5) == 5
        assert storage.consume_now((token,), 2**70) == (False, "token", 10, 60, 5, 60.0)
        assert storage.consume_now((), 2**70) is None
        assert admitted(storage, token, times=9) == 5


def test_records_whose_windows_ran_out_are_dropped_little_by_little(storage: MemoryQuotaStorage, clock: Clock) -> None:
    for i in range(1_000):
        storage.consume_now((bucket(f"token:{i}", minute=5, hour=5),))
    size = len(storage._table.data)
    clock.pass_seconds(7_199)
    for _ in range(1_200):
        storage.consume_now((bucket("token", minute=10_000),))
    assert len(storage) == 1_001
    clock.pass_seconds(1)
    for _ in range(1_200):
        storage.consume_now((bucket("token", minute=10_000),))
    assert len(storage) == 1
    for i in range(900):
        storage.consume_now((bucket(f"token:again{i}", minute=5, hour=5),))
    assert len(storage._table.data) < size + 10, "the room of dropped records is used again"


def test_a_dropped_record_leaves_nothing_to_the_next_key(storage: MemoryQuotaStorage, clock: Clock) -> None:
    assert admitted(storage, bucket("token:a", minute=5, hour=5, day=5), times=9) == 5
    clock.pass_seconds(2 * 86_400)
    for _ in range(3):
        storage.consume_now((bucket("token", minute=10),))
    assert admitted(storage, bucket("token:b", minute=5, hour=5, day=5), times=9) == 5


def test_no_live_record_is_ever_dropped(storage: MemoryQuotaStorage, clock: Clock) -> None:
    clients = [bucket(f"token:{i}", minute=2, day=3) for i in range(50)]
    for _ in range(100):
        for client in clients:
            storage.consume_now((client,))
        clock.pass_seconds(800)
    # 80,000 seconds: within the first day of every client.
    assert sum(admitted(storage, client, times=5) for client in clients) == 0


def test_steady_growth_keeps_what_ran_out_small(storage: MemoryQuotaStorage, clock: Clock) -> None:
    """One new client every 10 ms for an hour of two-minute records: 12,000 are alive at a time."""
    for i in range(60_000):
        storage.consume_now((bucket(f"token:{i}", minute=5),))
        clock.pass_seconds(0.01)
    assert len(storage) < 24_000


class TestFlood:
    @pytest.fixture
    def storage(self, clock: Clock) -> MemoryQuotaStorage:
        return MemoryQuotaStorage(max_clients=100, clock=clock)

    def test_new_clients_of_a_token_share_one_window(self, storage: MemoryQuotaStorage) -> None:
        known = [bucket(f"token:{i}", minute=3) for i in range(100)]
        assert sum(admitted(storage, client) for client in known) == 100
        flood = [bucket(f"token:new{i}", minute=3) for i in range(10_000)]
        assert sum(admitted(storage, client) for client in flood) == 3
        assert len(storage) == 101
        assert sum(admitted(storage, client, times=9) for client in known) == 200, "nobody lost a request"

    def test_a_client_counts_once_however_many_windows_and_buckets_it_has(self, storage: MemoryQuotaStorage) -> None:
        token, server = bucket("token", minute=9_999), Bucket("server", "server", "server", limits(hour=9_999))
        clients = [
            (Bucket(f"server:{i}", "server", "server-client", limits(2)), bucket(f"token:{i}", minute=2, day=2))
            for i in range(100)
        ]
        assert sum(admitted(storage, *client, token, server) for client in clients) == 100
        assert sum(admitted(storage, *client, times=3) for client in clients) == 100

    def test_another_token_is_not_touched(self, storage: MemoryQuotaStorage) -> None:
        for i in range(1_000):
            storage.consume_now((bucket(f"flooded:{i}", minute=3), bucket("flooded", minute=1_000)))
        assert admitted(storage, bucket("quiet:c", minute=3), bucket("quiet", minute=2), times=9) == 2
        assert admitted(storage, bucket("other:c", minute=3), bucket("other", minute=9), times=9) == 3

    def test_buckets_with_other_limits_share_the_window_too(self, storage: MemoryQuotaStorage, clock: Clock) -> None:
        """Each is decided by its own limits, and what either counts the other has."""
        for i in range(100):
            storage.consume_now((bucket(f"token:{i}", minute=3, hour=9),))
        wide, narrow = bucket("token:wide", minute=8, hour=20), bucket("token:narrow", minute=5, hour=30)
        assert storage.consume_now((wide,)) == (True, "token-client", 8, 60, 7, 60.0)
        assert storage.consume_now((narrow,)) == (True, "token-client", 5, 60, 3, 60.0)
        assert storage.consume_now((wide,)) == (True, "token-client", 8, 60, 5, 60.0)
        # In one request both count.
        assert storage.consume_now((wide, narrow)) == (True, "token-client", 5, 60, 1, 60.0)
        assert admitted(storage, narrow, times=9) == 0
        assert admitted(storage, wide, times=9) == 3
        clock.pass_seconds(60)
        assert storage.consume_now((narrow,))[:2] == (False, "token-client")  # type: ignore[index]
        clock.pass_seconds(60)
        assert storage.consume_now((wide,)) == (True, "token-client", 8, 60, 7, 60.0)
        assert storage.consume_now((narrow,)) == (True, "token-client", 5, 60, 3, 60.0)

    def test_the_second_bucket_of_a_request_counts_where_the_first_took_the_last_place(self, clock: Clock) -> None:
        storage = MemoryQuotaStorage(max_clients=2, clock=clock)
        for key in ("token:a", "token:b"):
            storage.consume_now((bucket(key, minute=5),))
        assert admitted(storage, bucket("token:c", minute=5, hour=9)) == 1
        clock.pass_seconds(120)
        for _ in range(64):
            storage.consume_now((bucket("token", minute=1_000),))
        assert len(storage) == 2, "a and b ran out, but not what c was counted in"
        assert admitted(storage, bucket("token:d", minute=5, hour=9), bucket("token:e", minute=5, hour=9)) == 1
        assert storage.consume_now((bucket("token:f", minute=5, hour=9),)) == (True, "token-client", 5, 60, 3, 60.0)

    def test_a_flood_of_tokens_is_bounded_too(self, storage: MemoryQuotaStorage) -> None:
        passed = sum(admitted(storage, bucket(f"token{i}", minute=3), bucket(f"token{i}:c", minute=2)) for i in range(9_000))
        assert len(storage) < 2 * 115
        assert 100 <= passed < 130

    def test_new_clients_count_separately_again_when_the_flood_is_over(self, storage: MemoryQuotaStorage, clock: Clock) -> None:
        for i in range(1_000):
            storage.consume_now((bucket(f"token:{i}", minute=3),))
        clock.pass_seconds(120)
        for _ in range(200):
            storage.consume_now((bucket("token", minute=1_000),))
        later = [bucket(f"token:later{i}", minute=3) for i in range(90)]
        assert sum(admitted(storage, client, times=9) for client in later) == 270

    def test_what_ran_out_is_found_behind_records_that_have_not(self, clock: Clock) -> None:
        """The flood has gone, but the inspection has thousands of living records before it."""
        storage = MemoryQuotaStorage(max_clients=10_000, clock=clock)
        for i in range(10_000):
            storage.consume_now((Bucket(f"srv:c:{i}", "srv", "server-client", limits(day=100)),))
        for i in range(30_000):
            storage.consume_now((bucket(f"token:flood{i}", minute=3),))
        clock.pass_seconds(3 * 3_600)
        refused = 0
        for i in range(1_000):
            refused += not admitted(storage, bucket(f"token:later{i}", minute=3))
            clock.pass_seconds(0.01)
        assert refused < 50  # a search in steps of 256

    def test_a_search_without_success_rests_for_a_second(self, clock: Clock) -> None:
        storage = MemoryQuotaStorage(max_clients=1_000, clock=clock)
        for i in range(1_000):
            storage.consume_now((bucket(f"token:{i}", minute=3),))
        table = storage._table
        for i in range(20):
            storage.consume_now((bucket(f"token:new{i}", minute=300),))
        assert table._next_search == clock.milliseconds + 1_000
        searched = table._searched
        for i in range(20):
            storage.consume_now((bucket(f"token:newer{i}", minute=300),))
        assert table._searched == searched


def test_a_client_costs_less_than_a_kilobyte(storage: MemoryQuotaStorage) -> None:
    """Its key included, as long as keys get."""
    count = 2_000
    for i in range(count):
        storage.consume_now((bucket(f"{'k' * 190}:{i}", minute=5, hour=50, day=500),))
    table = storage._table
    size = sum(sys.getsizeof(each) for each in (table.records, table._keys, table._ring, table.data))
    size += sum(sys.getsizeof(key) + sys.getsizeof(record) for key, record in table.records.items() if key)
    assert size / count < 1_000


def test_the_garbage_collector_visits_no_client(storage: MemoryQuotaStorage) -> None:
    for i in range(100):
        storage.consume_now((bucket(f"token:{i}", minute=5),))
    assert not gc.is_tracked(storage._table.records)
    assert not gc.is_tracked(storage._table._keys)


async def test_a_limiter_counts_in_memory_by_default() -> None:
    limiter = QuotaLimiter()
    token = bucket("token", minute=2)
    passed = [await limiter.consume([token]) for _ in range(3)]
    assert [decision is not None and decision.admitted for decision in passed] == [True, True, False]
    assert limiter.health == "ok"
    await limiter.aclose()


class TestStrategiesOfLimits:
    """The storage is one of limits' own, under a scheme of ours."""

    async def test_sliding_window_counter(self, clock: Clock) -> None:
        storage = storage_from_string("aisbreaker+memory://", clock=clock)  # type: ignore[arg-type]
        strategy = SlidingWindowCounterRateLimiter(storage)
        item = RateLimitItemPerMinute(10)
        assert [await strategy.hit(item, "a") for _ in range(12)] == [True] * 10 + [False] * 2
        assert not await strategy.test(item, "a")
        assert await strategy.test(item, "b")
        clock.pass_seconds(90)
        assert (await strategy.get_window_stats(item, "a")).remaining == 5
        assert await strategy.hit(item, "a", cost=5)
        assert not await strategy.hit(item, "a")
        await strategy.clear(item, "a")
        assert await strategy.hit(item, "a", cost=10)
        clock.pass_seconds(180)
        assert (await strategy.get_window_stats(item, "a")).remaining == 10

    async def test_fixed_window(self, clock: Clock) -> None:
        storage = MemoryQuotaStorage(clock=clock)
        strategy = FixedWindowRateLimiter(storage)
        item = RateLimitItemPerMinute(2)
        assert [await strategy.hit(item, "a") for _ in range(3)] == [True, True, False]
        clock.pass_seconds(60)
        assert await strategy.test(item, "a")
        assert await strategy.hit(item, "a")
        assert await storage.reset() == 1
        assert await storage.check()
        assert await storage.get(item.key_for("a")) == 0

    async def test_one_key_for_both_windows_and_a_clear_in_between(self, clock: Clock) -> None:
        """Nobody should; but if, nothing is made up."""
        storage = MemoryQuotaStorage(clock=clock)
        token = bucket("a", minute=10)
        assert admitted(storage, token, times=4) == 4
        assert await storage.get("a") == 4
        assert await storage.incr("a", 60, 2) == 6
        assert admitted(storage, token, times=9) == 4
        await storage.clear("a")
        assert await storage.get("a") == 0
        assert admitted(storage, token, times=19) == 10


async def test_a_fixed_window_that_was_cleared_begins_anew(storage: MemoryQuotaStorage, clock: Clock) -> None:
    assert await storage.incr("a", 60) == 1
    clock.pass_seconds(40)
    await storage.clear("a")
    assert await storage.incr("a", 60) == 1
    clock.pass_seconds(40)
    assert await storage.incr("a", 60) == 2
