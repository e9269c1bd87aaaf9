"""The slots of one origin: shares, turns, and what becomes of waits that end."""

import asyncio
import sys

import httpx
import pytest

from aisbreaker_mw.upstream.transport.slots import NOBODY, Asker, Slots

from ...support import WAIT


def fill(slots: Slots, asker: Asker) -> int:
    """Take slots until none is given, and return how many were."""
    taken = 0
    while slots.take(object(), asker):
        taken += 1
    return taken


@pytest.mark.parametrize(
    ("limit", "share", "alone"),
    [(1000, 4, 800), (100, 4, 80), (20, 4, 16), (7, 4, 6), (2, 4, 1), (1, 4, 1), (100, 1, 50), (100, 1000, 95)],
)
@pytest.mark.parametrize("asker", [("one", None), (None, "one"), ("one", "one")])
def test_one_alone_has_its_share(limit: int, share: int, alone: int, asker: Asker) -> None:
    assert fill(Slots(limit, share), asker) == alone


def test_whoever_cannot_hold_too_many_gets_all() -> None:
    assert fill(Slots(20), NOBODY) == 20


def test_a_share_is_smaller_the_more_there_are() -> None:
    slots = Slots(1000)
    held = [fill(slots, (f"client{number}", f"token{number}")) for number in range(52)]
    assert held == [800, 150] + [1] * 50
    assert not slots.take(object(), ("latest", None))


def test_nothing_is_counted_before_slots_are_scarce_and_after() -> None:
    slots = Slots(20)
    uses = [object() for _ in range(16)]
    assert all(slots.take(use, ("one", "one")) for use in uses)
    assert not slots.counted
    assert not slots.take(object(), ("one", "one"))
    assert slots.counted
    for use in uses:
        slots.free(use)
    assert not slots.counted
    assert not slots.taken
    assert fill(slots, ("one", "one")) == 16


async def wait(slots: Slots, client: str, token: str, order: list[str], seconds: float | None = None) -> object:
    use = object()
    await slots.wait(use, (client, token), seconds)
    order.append(client + token)
    return use


async def test_clients_have_turns_and_a_token_that_has_too_many_is_passed_over() -> None:
    slots, order = Slots(1), list[str]()
    use: object = object()
    assert slots.take(use, ("z", "0"))
    asked = [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("c", "1")]
    tasks = [asyncio.create_task(wait(slots, client, token, order)) for client, token in asked]
    await asyncio.sleep(0)
    assert slots.waited_for
    for turn in range(5):
        slots.free(use)
        await asyncio.sleep(0)
        assert len(order) == turn + 1
        use = next(iter(slots.taken))
    assert order == ["a1", "b1", "c1", "a2", "a3"]
    await asyncio.gather(*tasks)
    slots.free(use)
    assert not slots.waited_for
    assert not slots.taken


async def test_a_wait_that_is_over_or_cancelled_takes_nothing() -> None:
    slots, order = Slots(1), list[str]()
    use = object()
    assert slots.take(use, NOBODY)
    with pytest.raises(httpx.PoolTimeout):
        await slots.wait(object(), ("a", None), 0.001)
    task = asyncio.create_task(wait(slots, "b", "1", order))
    await asyncio.sleep(0)
    slots.free(use)  # given to the task, which ends before it knows
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not slots.taken
    assert not slots.waited_for
    assert slots.take(object(), ("c", None))


async def test_waits_whose_token_has_too_many_have_turns_when_it_has_fewer_again() -> None:
    slots, order = Slots(20), list[str]()
    theirs, others = [object() for _ in range(16)], [object() for _ in range(3)]
    for number, use in enumerate(theirs):
        assert slots.take(use, (f"holder{number}", "t"))
    for use in others:
        assert slots.take(use, (str(use), str(use)))
    asked = ["a", "a", "b", "c"]
    waits = [asyncio.create_task(wait(slots, client, "t", order)) for client in asked]
    ended = asyncio.create_task(wait(slots, "d", "t", order))
    timed_out = asyncio.create_task(wait(slots, "e", "t", order, 0.01))
    await asyncio.sleep(0)
    slots.free(others.pop())  # they are looked at
    ended.cancel()
    assert isinstance((await asyncio.gather(ended, timed_out, return_exceptions=True))[1], httpx.PoolTimeout)
    assert not order
    assert slots.waited_for
    while theirs:
        slots.free(theirs.pop())
        await asyncio.sleep(0)
    assert order == ["at", "bt", "ct", "at"]
    for use in [*others, *await asyncio.gather(*waits)]:
        slots.free(use)
    assert not slots.waited_for
    assert not slots.taken


@pytest.mark.parametrize("one", ["client", "token"])
async def test_a_slot_is_given_at_once_however_many_wait_that_may_not_have_it(one: str) -> None:
    """Measured in calls of functions, of which a look at each of a thousand waits takes thousands."""
    slots = Slots(100)
    held = [object() for _ in range(80)]
    tasks = []
    for number, use in enumerate(held):
        assert slots.take(use, ("them", f"t{number}") if one == "client" else (f"c{number}", "theirs"))
    others = [object() for _ in range(20)]
    for number, use in enumerate(others):
        assert slots.take(use, (f"other{number}", f"other{number}"))
    order = list[str]()
    for number in range(1000):
        client, token = ("them", f"w{number}") if one == "client" else (f"w{number}", "theirs")
        tasks.append(asyncio.create_task(wait(slots, client, token, order)))
    await asyncio.sleep(0)
    slots.free(others.pop())
    tasks.append(asyncio.create_task(wait(slots, "last", "last", order)))
    taken = object()
    assert slots.take(taken, ("newcomer", "newcomer"))
    await asyncio.sleep(0)
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    slots.free(others.pop())
    sys.setprofile(None)
    await asyncio.sleep(0)
    assert order == ["lastlast"]
    assert calls < 200
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not slots.waited_for


async def test_every_wait_ends_with_the_transport() -> None:
    slots = Slots(20)
    uses = [object() for _ in range(20)]
    for number, use in enumerate(uses):
        assert slots.take(use, (f"c{number}", "theirs" if number < 16 else f"t{number}"))
    tasks = [asyncio.create_task(wait(slots, client, "theirs", [])) for client in "ab"]
    await asyncio.sleep(0)
    slots.free(uses.pop())
    tasks.append(asyncio.create_task(wait(slots, "c", "theirs", [])))
    await asyncio.sleep(0)
    slots.end_waits(lambda: httpx.ConnectError("closed"))
    async with asyncio.timeout(WAIT):
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [httpx.ConnectError] * 3
    assert not slots.waited_for


async def test_a_slot_that_comes_with_the_end_of_a_wait_goes_to_another() -> None:
    slots, order = Slots(1), list[str]()
    use = object()
    assert slots.take(use, NOBODY)
    late = asyncio.create_task(wait(slots, "a", "1", order, 0))
    other = asyncio.create_task(wait(slots, "b", "1", order))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0, slots.free, use)  # in the turn of the loop in which the wait of `late` ends
    with pytest.raises(httpx.PoolTimeout):
        await late
    await other
    assert order == ["b1"]
