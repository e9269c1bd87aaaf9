"""The slots of one origin: shares, turns, and what becomes of waits that end."""

import asyncio

import httpx
import pytest

from aisbreaker_mw.upstream.transport.slots import NOBODY, Asker, Slots


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
