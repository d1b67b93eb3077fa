"""Weighted sums of rewards: totals, components, None, and what is refused."""

import pytest

from reward_models import ArithmeticVerifier, InputError, RewardError, WeightedSum


def _constant(*values: float | None):
    return lambda prompts, completions, **columns: list(values)


def test_totals_and_components_are_kept_apart():
    scored = WeightedSum([("a", _constant(1.0, 2.0), 0.5), ("b", _constant(10.0, -10.0), 2.0)]).score(["p"] * 2, ["c"] * 2)
    assert scored.totals == [20.5, -19.0]
    assert scored.components == {"a": [1.0, 2.0], "b": [10.0, -10.0]}


def test_a_reward_that_does_not_apply_is_left_out():
    total = WeightedSum([("a", _constant(1.0, None, None), 1.0), ("b", _constant(2.0, 3.0, None), 10.0)])
    assert total(["p"] * 3, ["c"] * 3) == [21.0, 30.0, None]


def test_a_weighted_sum_is_itself_a_reward():
    inner = WeightedSum([("verifier", ArithmeticVerifier(), 2.0)])
    outer = WeightedSum([("inner", inner, 0.5), ("one", _constant(1.0), 1.0)])
    assert outer(prompts=["p"], completions=["#### 72"], reference=["72"]) == [2.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "reward 'bad' returned 1 values for 2 completions"),
        ([1.0, float("nan")], "reward 'bad' returned nan for row 1"),
        ([float("inf"), 1.0], "reward 'bad' returned inf for row 0"),
        ([1.0, "high"], "reward 'bad' returned 'high' for row 1"),
        (None, r"reward 'bad' failed \(TypeError"),
    ],
)
def test_a_reward_that_misbehaves_is_named(value: object, message: str):
    with pytest.raises(RewardError, match=message):
        WeightedSum([("bad", lambda **columns: value, 1.0)])(["p"] * 2, ["c"] * 2)  # pyright: ignore[reportArgumentType]


def test_an_exception_is_raised_again_with_the_name_and_the_cause():
    def broken(**columns: object) -> list[float | None]:
        raise KeyError("column")

    with pytest.raises(RewardError, match=r"reward 'broken' failed \(KeyError: 'column'\)") as caught:
        WeightedSum([("broken", broken, 1.0)])(["p"], ["c"])
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(InputError, match="reward 'verifier': there is no column 'reference'"):
        WeightedSum([("verifier", ArithmeticVerifier(), 1.0)])(["p"], ["c"])


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([], "at least one reward"),
        ([("a", _constant(), 1.0), ("a", _constant(), 1.0)], "two rewards are named 'a'"),
        ([("a", _constant(), float("nan"))], "reward 'a': its weight is nan"),
    ],
)
def test_a_sum_that_makes_no_sense_is_refused(rewards: list, message: str):
    with pytest.raises(InputError, match=message):
        WeightedSum(rewards)
