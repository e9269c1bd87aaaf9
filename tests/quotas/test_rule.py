"""Memory, Valkey and a reference of ten lines decide alike, request by request, and what they say is true."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aisbreaker_mw.quotas import Bucket, Decision, QuotaLimiter
from aisbreaker_mw.quotas.memory import MemoryQuotaStorage

from .model import Clock, Reference, bucket, fresh, limits
from .servers import Valkey

DAY = 86_400_000

amounts = st.none() | st.integers(1, 12)
few_windows = st.tuples(amounts, amounts, amounts)
# Mostly bursts, then pauses around the length of each window, up to what empties all of them.
pauses = st.one_of(
    st.integers(0, 3_000),
    st.integers(20_000, 130_000),
    st.sampled_from([0, 0, 0, 1, 59_999, 60_000, 60_001, 119_999, 120_000, 3_599_999, 3_600_000, 7_200_000]),
    st.integers(0, 2 * DAY + 1),
)
requests = st.tuples(pauses, st.integers(0, 2), st.integers(1, 3))
traffic = st.lists(requests, min_size=1, max_size=60)


def name_buckets(windows: tuple[tuple[int | None, ...], ...], tag: str, client: int) -> list[Bucket]:
    per_client, together = (limits(*each) for each in windows)
    return [
        Bucket(f"{tag}:c:{client}", tag, "token-client", per_client),
        Bucket(tag, tag, "token", together),
    ]


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


def check_decision(decision: Decision, reference: Reference, buckets: list[Bucket], cost: int, now: int) -> None:
    """Hold a decision to the reference, before that counts the request."""
    assert decision.admitted == reference.admits(buckets, cost, now, count=False)
    if decision.admitted:
        assert decision == reference.admitted(buckets, cost, now)
        return
    if cost > decision.limit:
        assert decision.reset_after == decision.window
        return
    # The wait is honest, and not a millisecond longer than need be.
    wait = round(decision.reset_after * 1000)
    assert reference.admits(buckets, cost, now + wait, count=False)
    assert not reference.admits(buckets, cost, now + wait - 1, count=False)


@settings(max_examples=300, deadline=None)
@given(windows=st.tuples(few_windows, few_windows), traffic=traffic)
async def test_memory_follows_the_rule(windows: Any, traffic: list[tuple[int, int, int]]) -> None:
    clock = Clock()
    limiter = QuotaLimiter(clock=clock)
    reference = Reference()
    for pause, client, cost in traffic:
        clock.milliseconds += pause
        buckets = name_buckets(windows, "token", client)
        decision = await limiter.consume(buckets, cost)
        if decision is None:
            assert not any(each.limits for each in buckets)
            continue
        check_decision(decision, reference, buckets, cost, clock.milliseconds)
        assert decision.admitted == reference.admits(buckets, cost, clock.milliseconds)


# Limits that are often alike, so that windows are equally near them, and that leave room for many requests in a row: the memory
# does not look at every window at every request, and whatever it knows from before has to be as true as a look.
roomy = st.none() | st.sampled_from([6, 20, 20, 60, 60, 60, 200, 1_000])
roomy_windows = st.tuples(roomy, roomy, roomy)
four_buckets = st.tuples(roomy_windows, roomy_windows, roomy_windows, roomy_windows)
runs = st.lists(
    st.tuples(
        st.one_of(
            st.sampled_from([0, 1, 500, 9_000, 30_000, 59_999, 60_000, 60_001, 119_999, 120_000, 1_800_000, 3_600_000]),
            st.integers(0, 90_000),
            st.integers(0, 2 * DAY + 1),
        ),
        st.integers(1, 25),
        st.sampled_from([0, 0, 1, 13, 250, 2_000]),
        st.sampled_from([1, 1, 1, 2, 5]),
        st.sampled_from([0, 0, 0, 1]),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(before=four_buckets, after=four_buckets, uniform=st.booleans(), runs=runs)
def test_runs_of_requests_follow_the_rule_and_so_does_what_they_are_told(
    before: Any, after: Any, uniform: bool, runs: list[tuple[int, int, int, int, int, int]]
) -> None:
    """Requests of two clients in four buckets, whose limits change now and then while the keys stay."""
    clock = Clock()
    storage = MemoryQuotaStorage(clock=clock)
    reference = Reference()
    for pause, times, step, cost, changed, client in runs:
        clock.milliseconds += pause
        windows = [limits(*each) for each in (after if changed else before)]
        if uniform:
            windows = windows[:1] * 4
        buckets = [
            Bucket(f"srv:c:{client}", "srv", "server-client", windows[0]),
            Bucket("srv", "srv", "server", windows[1]),
            Bucket(f"tok:c:{client}", "tok", "token-client", windows[2]),
            Bucket("tok", "tok", "token", windows[3]),
        ]
        # A key always comes with windows of the same lengths.
        buckets = [
            Bucket(f"{bucket.key}/{[length for _, length in bucket.windows]}", bucket.slot, bucket.policy, bucket.limits)
            for bucket in buckets
            if bucket.windows
        ]
        for _ in range(times):
            clock.milliseconds += step
            decision = storage.consume_now(buckets, cost)
            if decision is None:
                assert not buckets
                continue
            check_decision(decision, reference, buckets, cost, clock.milliseconds)
            assert decision.admitted == reference.admits(buckets, cost, clock.milliseconds)


@settings(max_examples=200, deadline=None)
@given(
    burst=st.integers(100, 400),
    rooms=st.lists(st.integers(0, 500), min_size=3, max_size=3),
    length=st.sampled_from([60_000, 3_600_000, DAY]),
    begin=st.floats(1, 1.9),
    steps=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 3)), min_size=20, max_size=60),
)
def test_who_is_nearest_is_true_while_a_burst_fades(
    burst: int, rooms: list[int], length: int, begin: float, steps: list[tuple[int, int]]
) -> None:
    """Its window has more and more left, until another one is nearer its limit."""
    clock = Clock()
    storage = MemoryQuotaStorage(clock=clock)
    reference = Reference()
    minute, hour, day = (burst + room for room in rooms)
    buckets = [bucket("token", minute=minute, hour=hour, day=day)]
    for pause, cost in [(0, burst), (round(begin * length), 1)] + [(step * length // 1_000, cost) for step, cost in steps]:
        clock.milliseconds += pause
        decision = storage.consume_now(buckets, cost)
        assert decision is not None
        check_decision(decision, reference, buckets, cost, clock.milliseconds)
        assert decision.admitted == reference.admits(buckets, cost, clock.milliseconds)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(windows=st.tuples(few_windows, few_windows), traffic=traffic)
async def test_valkey_says_exactly_what_memory_says(valkey: Valkey, windows: Any, traffic: list[tuple[int, int, int]]) -> None:
    clock = Clock()
    memory = QuotaLimiter(clock=clock)
    shared = QuotaLimiter(f"redis+unix://{valkey.socket}", timeout=5, clock=clock)
    tag = fresh()
    try:
        for pause, client, cost in traffic:
            clock.milliseconds += pause
            buckets = name_buckets(windows, tag, client)
            assert await shared.consume(buckets, cost) == await memory.consume(buckets, cost)
    finally:
        await shared.aclose()


async def test_a_refused_request_does_not_begin_the_next_window(valkey: Valkey) -> None:
    clock = Clock()
    memory = QuotaLimiter(clock=clock)
    shared = QuotaLimiter(f"redis+unix://{valkey.socket}", timeout=5, clock=clock)
    token = bucket(fresh(), minute=2)
    try:
        for limiter in (memory, shared):
            clock.milliseconds = 1_800_000_000_000
            assert await limiter.consume([token], 2)
            clock.pass_seconds(61)
            assert await limiter.consume([token], 2) == (False, "token", 2, 60, 1, 29.001)
            clock.pass_seconds(64)
            assert await limiter.consume([token]) == (True, "token", 2, 60, 1, 60.0)
    finally:
        await shared.aclose()


@pytest.mark.parametrize("amount", [1, 7, 100, 2**31], ids=str)
async def test_large_limits_fade_exactly_alike(valkey: Valkey, amount: int) -> None:
    """Counts times milliseconds leave the integers that Lua has."""
    clock = Clock()
    memory = QuotaLimiter(clock=clock)
    shared = QuotaLimiter(f"redis+unix://{valkey.socket}", timeout=5, clock=clock)
    token = bucket(fresh(), day=amount)
    try:
        for pause, cost in ((0, amount), (DAY + 1, 1), (12_345, amount // 3 + 1), (40_000_000, amount), (DAY // 3, 1)):
            clock.milliseconds += pause
            assert await shared.consume([token], cost) == await memory.consume([token], cost)
    finally:
        await shared.aclose()


@settings(max_examples=100, deadline=None)
@given(
    amount=st.integers(1, 30),
    gaps=st.lists(st.integers(0, 20_000) | st.sampled_from([0, 60_000, 1_200_000]), min_size=50, max_size=300),
)
async def test_over_a_day_no_window_admits_more_than_its_limit(amount: int, gaps: list[int]) -> None:
    """Counted afresh from the times of the admitted requests, not from any counter."""
    clock = Clock()
    limiter = QuotaLimiter(clock=clock)
    token = bucket("token", minute=amount)
    times: list[int] = []
    begin = 0
    for gap in gaps:
        clock.milliseconds += gap
        now = clock.milliseconds
        if not times or now >= begin + 120_000:
            begin = now
        elif now >= begin + 60_000:
            begin += 60_000
        before = sum(begin - 60_000 <= time < begin for time in times)
        since = sum(begin <= time for time in times)
        decision = await limiter.consume([token])
        assert decision is not None
        assert decision.admitted == (before * (begin + 60_000 - now) // 60_000 + since + 1 <= amount)
        if decision.admitted:
            times.append(now)
