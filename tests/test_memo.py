"""The bounded memo."""

import pytest

from aisbreaker_mw.memo import SWEEP_INTERVAL, Memo, WeighedMemo


def remembered(memo: Memo[int, str], keys: range) -> list[int]:
    """Return the keys that are known, without using them."""
    return [key for key in keys if key in memo or key in memo._older]


def test_an_unknown_key_has_no_value_and_takes_no_room() -> None:
    memo: Memo[int, str] = Memo(2)
    assert memo[1] is None
    assert remembered(memo, range(5)) == []


def test_a_value_is_remembered_and_replaced() -> None:
    memo: Memo[int, str] = Memo(4)
    memo.remember(1, "a")
    assert memo[1] == "a"
    memo.remember(1, "b")
    assert memo[1] == "b"


@pytest.mark.parametrize("size", [2, 3, 4, 10, 11])
def test_no_more_than_size_values_are_remembered(size: int) -> None:
    memo: Memo[int, str] = Memo(size)
    for key in range(100):
        memo.remember(key, str(key))
        assert 1 <= len(remembered(memo, range(100))) <= size
        assert memo[key] == str(key)


def test_the_last_half_of_the_keys_is_remembered_and_the_unused_are_forgotten() -> None:
    memo: Memo[int, str] = Memo(10)
    for key in range(100):
        memo.remember(key, str(key))
        recent = range(max(0, key - 4), key + 1)
        assert remembered(memo, recent) == list(recent)
        assert remembered(memo, range(key - 9)) == []


def test_a_value_that_is_used_outlives_others() -> None:
    memo: Memo[int, str] = Memo(4)
    memo.remember(0, "used")
    for key in range(1, 100):
        memo.remember(key, str(key))
        assert memo[0] == "used"
    assert remembered(memo, range(97)) == [0]


def test_a_replaced_value_does_not_come_back_from_the_older_generation() -> None:
    memo: Memo[int, str] = Memo(4)
    for key in range(4):
        memo.remember(key, "old")
    memo.remember(1, "new")
    assert memo[1] == "new"
    memo.forget(1)
    assert memo[1] is None


@pytest.mark.parametrize("others", [0, 1, 2, 3], ids=lambda number: f"{number} later")
def test_a_forgotten_value_is_gone_from_both_generations(others: int) -> None:
    memo: Memo[int, str] = Memo(4)
    memo.remember(0, "a")
    for key in range(1, others + 1):
        memo.remember(key, "b")
    memo.forget(0)
    memo.forget(0)
    assert memo[0] is None
    assert all(memo[key] == "b" for key in range(1, others + 1))


# --- By weight ---------------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def weighed(budget: int, clock: Clock | None = None) -> WeighedMemo[int, str]:
    """A memo of strings that weigh their length. Those that are digits expire then."""
    return WeighedMemo(
        budget, lambda _, value: len(value), lambda value: int(value) if value.isdigit() else None, clock or Clock()
    )


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_the_weight_is_bounded(length: int) -> None:
    memo = weighed(10)
    for key in range(100):
        memo.remember(key, "x" * length)
        assert length <= len(remembered(memo, range(100))) * length <= 10
        assert memo[key] == "x" * length


def test_what_is_too_heavy_is_not_remembered_and_replaces_what_was() -> None:
    memo = weighed(10)
    memo.remember(1, "light")
    memo.remember(2, "y")
    memo.remember(1, "heavier")
    assert memo[1] is None
    assert memo[2] == "y"


def test_a_value_in_use_outlives_heavy_others() -> None:
    memo = weighed(10)
    memo.remember(0, "used")
    for key in range(1, 50):
        memo.remember(key, "zz")
        assert memo[0] == "used"


def test_expired_values_leave_both_generations_and_make_room() -> None:
    clock = Clock()
    memo = weighed(10, clock)
    memo.remember(1, "50")
    memo.remember(2, "99")
    memo.remember(3, "a")
    memo.remember(4, "60")  # the others are the older generation now
    clock.now = SWEEP_INTERVAL
    memo.remember(5, "bbb")
    assert remembered(memo, range(10)) == [2, 3, 5]
    memo.remember(6, "cc")
    assert remembered(memo, range(10)) == [2, 3, 5, 6]
