"""Metrics of all answers of an evaluation: hand-computed, and against sacrebleu where it has the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from sacrebleu import corpus_bleu, sentence_bleu

from gkd_rl.build import try_metrics
from gkd_rl.errors import UserError
from gkd_rl.evaluation.metrics import METRICS, Answers, metric_functions
from gkd_rl.types import Example


def answers(samples: list[list[str]], references: list | None = None, greedy: list[str] | None = None) -> Answers:
    columns = {} if references is None else {"reference": references}
    return Answers(greedy or [texts[0] for texts in samples], samples, columns)


def test_the_majority_decides_and_of_equals_the_first():
    samples = [["#### 4", "#### 5", "4"], ["#### 5", "#### 4", "#### 5"], ["#### 4", "#### 5", "none"], ["#### 5", "#### 4", "?"]]
    assert METRICS["majority_vote"](answers(samples, ["4"] * 4)) == {"majority_vote": 0.5}
    assert METRICS["majority_vote"](answers([["?", "none"]], ["4"])) == {"majority_vote": 0.0}
    assert METRICS["majority_vote"](answers([["#### 4", "4"], ["1", "2"]], ["4", "a few"])) == {"majority_vote": 1.0}


def test_what_needs_several_samples_says_nothing_of_single_ones():
    single = answers([["#### 4"]], ["4"])
    assert METRICS["majority_vote"](single) == METRICS["self_bleu"](single) == {}


def test_self_bleu_is_each_sample_against_the_others():
    samples = [["the cat sat on the mat", "the cat sat on a mat", "a dog ran off"], ["x y z w", "x y z w", "x y z w"]]
    expected = [
        sentence_bleu(text, texts[:i] + texts[i + 1 :], use_effective_order=True).score for texts in samples for i, text in enumerate(texts)
    ]
    assert METRICS["self_bleu"](answers(samples))["self_bleu"] == pytest.approx(sum(expected) / 6)
    assert METRICS["self_bleu"](answers([samples[1]]))["self_bleu"] == pytest.approx(100)
    assert METRICS["self_bleu"](answers([["a b c d", "e f g h"]]))["self_bleu"] < 10


def test_distinct_shares_are_of_each_prompts_own_samples():
    samples = [["a b a b", "a b"], ["c d", "e"], ["", ""]]
    assert METRICS["distinct"](answers(samples)) == {"distinct_1": (2 / 6 + 1) / 2, "distinct_2": (2 / 4 + 1) / 2}
    assert METRICS["distinct"](answers([["", ""]])) == {}


def test_overlap_is_that_of_greedy_answers_with_their_references():
    given = answers([["unused"]] * 3, ["the cat sat down", ["a dog ran", "the dog ran off"], None], ["the cat sat", "the dog ran off", "x"])
    bleu = corpus_bleu(["the cat sat", "the dog ran off"], [["the cat sat down", "a dog ran"], [None, "the dog ran off"]])  # pyright: ignore
    assert METRICS["bleu"](given)["bleu"] == pytest.approx(bleu.score)
    rouge = METRICS["rouge"](given)
    assert rouge["rouge1"] == pytest.approx(100 * (6 / 7 + 1) / 2)
    assert set(rouge) == {"rouge1", "rouge2", "rougeL"}
    assert METRICS["bleu"](answers([["a"]], [None])) == METRICS["bleu"](answers([["a"]])) == {}


def test_a_metric_may_be_a_function_of_the_users(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def words(answers):\n    return {'words': sum(len(a.split()) for a in answers.greedy)}\n")
    (metric,) = metric_functions([f"{tmp_path / 'mine.py'}:words"])
    assert metric(answers([["a b c"]])) == {"words": 3}


def test_a_metric_that_is_not_there_or_lacks_its_column_is_named():
    with pytest.raises(UserError, match=r"evaluation\.metrics: there is no metric 'roug'; did you mean 'rouge'"):
        metric_functions(["roug"])
    with pytest.raises(UserError, match="majority_vote needs the column 'reference'"):
        METRICS["majority_vote"](answers([["1", "2"]]))


def test_the_validation_score_is_a_figure_that_evaluations_give():
    examples = [Example("q", "the cat sat", {"reference": "the cat sat"})] * 3
    for score in ("accuracy", "reward", "rougeL"):
        try_metrics(metric_functions(["rouge"]), examples, score)
    with pytest.raises(UserError, match=r"evaluation\.score is 'self_bleu', and evaluations of this run give accuracy, reward, rouge1"):
        try_metrics(metric_functions(["rouge", "self_bleu"]), examples, "self_bleu")
