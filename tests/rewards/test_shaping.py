"""Rewards of form: the curves by hand, TRL's own as oracle, and patterns that would never end."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards import get_soft_overlong_punishment, think_format_reward

from reward_models import FormatReward, InputError, OverlongPenalty, RepetitionPenalty, WeightedSum


@pytest.mark.parametrize(("length", "penalty"), [(0, 0), (60, 0), (61, -0.025), (80, -0.5), (100, -1), (101, -1), (1000, -1)])
def test_length_is_punished_softly_over_the_buffer(length: int, penalty: float):
    reward = OverlongPenalty(limit=100, buffer=40)
    assert reward(["p"], ["c"], completion_ids=[list(range(length))]) == [pytest.approx(penalty)]
    assert OverlongPenalty(limit=100, buffer=40, unit="words")(["p"], ["w " * length]) == [pytest.approx(penalty)]
    chat = [{"role": "assistant", "content": "w" * length}]
    assert OverlongPenalty(limit=100, buffer=40, unit="characters")(["p"], [chat]) == [pytest.approx(penalty)]


@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 200))
def test_the_soft_punishment_is_that_of_trl(buffer: int, more: int, length: int):
    ids = [[1] * length]
    theirs = get_soft_overlong_punishment(max_completion_len=buffer + more, soft_punish_cache=buffer)(completion_ids=ids)
    assert OverlongPenalty(limit=buffer + more, buffer=buffer)(["p"], ["c"], completion_ids=ids) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("text", "n", "repeated"),
    [("a b a b a b", 2, 3 / 5), ("a b c d", 2, 0), ("a A a", 1, 2 / 3), ("one two", 3, 0), ("", 1, 0), ("a b c a b c a b c", 3, 4 / 7)],
)
def test_repeated_n_grams_are_punished_by_their_share(text: str, n: int, repeated: float):
    assert RepetitionPenalty(n=n)(["p"], [text]) == [pytest.approx(-repeated)]
    assert RepetitionPenalty(n=n, weight=0.5)(["p"], [text]) == [pytest.approx(-repeated / 2)]


THINK = r"<think>(?!.*<think>).*?</think>.*"


@pytest.mark.parametrize(
    "text", ["<think>\na\n</think>\nb", "<think>a", "x<think>a</think>", "<think><think>a</think>b", "", "<think></think>"]
)
def test_a_format_is_matched_as_trls_is(text: str):
    chat = [{"role": "assistant", "content": text}]
    assert FormatReward(pattern=THINK)(["p"], [chat]) == think_format_reward([chat])


def test_a_pattern_stands_for_the_whole_completion_or_is_somewhere_in_it():
    texts = ["#### 72", " #### 72\n", "so #### 72", "72"]
    assert FormatReward(pattern=r"#### \d+")(["p"] * 4, texts) == [1, 1, 0, 0]
    assert FormatReward(pattern=r"#### \d+", whole=False, right=0.5, wrong=-1)(["p"] * 4, texts) == [0.5, 0.5, 0.5, -1]


def test_a_match_that_would_not_end_is_given_up():
    reward, start = FormatReward(pattern="(a|aa)+c", seconds=0.2), time.perf_counter()
    assert reward(["p"] * 2, ["a" * 80 + "bc", "aac"]) == [0.0, 1.0]
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: OverlongPenalty(limit=5, buffer=6), "buffer is 6; it must be at least 1 and at most limit=5"),
        (lambda: OverlongPenalty(limit=5, buffer=0), "buffer is 0"),
        (lambda: OverlongPenalty(limit=5, buffer=1, unit="lines"), "unit is 'lines'"),  # pyright: ignore[reportArgumentType]
        (lambda: OverlongPenalty(limit=5, buffer=1)(["p"], ["c"]), "no column 'completion_ids' to count tokens in; set unit to words"),
        (lambda: RepetitionPenalty(n=0), "n is 0; it must be 1 or more"),
        (lambda: FormatReward(pattern="(a"), r"pattern '\(a' cannot be read \(missing \)"),
        (lambda: FormatReward(pattern="a", seconds=0), "seconds is 0; the time limit of a match must be positive"),
    ],
)
def test_what_makes_no_sense_is_refused(made, message: str):
    with pytest.raises(InputError, match=message):
        made()


def test_shaping_adds_to_a_verifier_in_a_sum():
    right = lambda prompts, completions, **columns: [1.0] * len(completions)
    total = WeightedSum([("right", right, 1.0), ("long", OverlongPenalty(limit=4, buffer=2), 0.5)])
    assert total(["p"] * 2, ["c"] * 2, completion_ids=[[1], [1] * 3]) == [1.0, 0.75]
