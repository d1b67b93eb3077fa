"""Weighted sums of rewards: totals, components, None, and what is refused."""

import pytest

from reward_models import ArithmeticVerifier, InputError, LinearWeight, Requirement, RewardError, WeightedSum


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


class Counting:
    """A reward that gives its row's `value` and keeps which it was asked for."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def __call__(self, prompts: list, completions: list, value: list, **columns: object) -> list[float | None]:
        self.asked += completions
        return list(value)


def test_a_reward_counts_only_where_the_required_one_is_high_enough():
    correct = Counting()
    rewards = [("format", _constant(1.0, 0.0, 0.5, None), 1.0), ("correct", correct, 10.0)]
    scored = WeightedSum(rewards, requires={"correct": Requirement("format", 0.5)}).score(
        ["p"] * 4, ["a", "b", "c", "d"], value=[1.0, 1.0, -1.0, 1.0]
    )
    assert scored.totals == [11.0, 0.0, -9.5, None]
    assert scored.components == {"format": [1.0, 0.0, 0.5, None], "correct": [1.0, None, -1.0, None]}
    assert correct.asked == ["a", "c"]


def test_a_required_reward_may_itself_require_one_and_closed_rows_are_not_asked():
    last = Counting()
    rewards = [("a", _constant(1.0, 0.0), 1.0), ("b", lambda **columns: [2.0] * len(columns["prompts"]), 1.0), ("c", last, 1.0)]
    total = WeightedSum(rewards, requires={"b": Requirement("a"), "c": Requirement("b")})
    assert total(["p"] * 2, ["x", "y"], value=[5.0, 7.0]) == [8.0, 0.0]
    assert last.asked == ["x"]
    nobody = WeightedSum(rewards, requires={"c": Requirement("a", 2.0)})
    assert nobody(["p"] * 2, ["x", "y"], value=[5.0, 7.0]) == [3.0, 2.0]
    assert last.asked == ["x"]


def test_a_reward_may_require_one_that_is_listed_after_it():
    first = Counting()
    rewards = [("correct", first, 1.0), ("format", lambda **columns: [1.0, 0.0], 0.5)]
    scored = WeightedSum(rewards, {"correct": Requirement("format")}).score(["p"] * 2, ["x", "y"], value=[1.0, 1.0])
    assert (scored.totals, first.asked) == ([1.5, 0.0], ["x"])
    assert list(scored.components.items()) == [("correct", [1.0, None]), ("format", [1.0, 0.0])]


def test_a_row_that_is_no_reward_is_named_by_its_place_in_the_whole_batch():
    total = WeightedSum([("a", _constant(0.0, 1.0), 1.0), ("b", _constant(float("nan")), 1.0)], requires={"b": Requirement("a")})
    with pytest.raises(RewardError, match=r"reward 'b' returned nan for row 1; .*the completion is 'y'"):
        total(["p"] * 2, ["x", "y"])


def test_a_weight_goes_from_its_start_to_its_end():
    total = WeightedSum([("a", _constant(1.0), LinearWeight(2.0, 0.0, 4)), ("b", _constant(1.0), 1.0)])
    assert [total.at(step)(["p"], ["c"])[0] for step in (0, 1, 2, 4, 9)] == [3.0, 2.5, 2.0, 1.0, 1.0]
    assert total(["p"], ["c"]) == [1.0]
    assert (total.scheduled, total.at(1).weights) == (["a"], {"a": 1.5, "b": 1.0})


def test_rewards_are_normalised_one_by_one_before_they_are_weighted():
    rewards = [("a", _constant(), 2.0), ("b", _constant(), 1.0), ("c", _constant(), 1.0)]
    total = WeightedSum(rewards, normalize={"a": "group", "b": "batch"})
    components = {"a": [0.0, 2.0, 5.0, 5.0], "b": [1.0, None, 2.0, 3.0], "c": [10.0, 10.0, None, 10.0]}
    one = 1 / (2**0.5 + 1e-4)
    of_a, of_b = [-one, one, 0.0, 0.0], [-1 / 1.0001, 0.0, 0.0, 1 / 1.0001]
    found = total.normalised(components, [7, 7, 9, 9])
    assert found == pytest.approx([2 * a + b + c for a, b, c in zip(of_a, of_b, [10, 10, 0, 10], strict=True)])
    assert WeightedSum(rewards).normalised(components, [7, 7, 9, 9]) == [11.0, 14.0, 12.0, 23.0]


def test_a_closed_row_adds_nothing_to_a_normalised_sum_and_an_unknown_one_has_none():
    total = WeightedSum([("a", _constant(), 0.0), ("b", _constant(), 1.0)], {"b": Requirement("a")}, {"b": "batch"})
    found = total.normalised({"a": [1.0, 1.0, 0.0, None], "b": [1.0, 3.0, None, None]}, [0] * 4)
    one = 1 / (2**0.5 + 1e-4)
    assert found == [pytest.approx(-one), pytest.approx(one), 0.0, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"requires": {"b": Requirement("aa")}}, "reward 'b' requires 'aa', which is none of them; did you mean 'a'"),
        ({"requires": {"b": Requirement("b")}}, "reward 'b' requires what requires it again; remove one of the requirements"),
        ({"requires": {"a": Requirement("b"), "b": Requirement("a")}}, "reward 'a' requires what requires it again"),
        ({"normalize": {"a": "all"}}, "reward 'a': normalize is 'all'; choose none, group or batch"),
    ],
)
def test_requirements_and_scopes_that_make_no_sense_are_refused(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        WeightedSum([("a", _constant(), 1.0), ("b", _constant(), 1.0)], **options)
    with pytest.raises(InputError, match="its weight changes over 0 steps"):
        WeightedSum([("a", _constant(), LinearWeight(0, 1, 0))])
