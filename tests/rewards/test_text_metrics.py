"""Text metrics as rewards and over a corpus: by hand, against `rouge_score` and `sacrebleu`, and with several references."""

import json
import math
import os
import random
from gzip import open as open_gzip
from pathlib import Path

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from reward_models import InputError, TextMetric, WeightedSum
from reward_models.corpus_metrics import CorpusMetric, corpus_metrics
from reward_models.text_metrics import METRICS, token_f1

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", ",", "und", "der", "Fuß", "schlief", ".", "12", "years'"]


def _texts(seed: int, count: int, longest: int = 25) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(0, longest))) for _ in range(count)]


PREDICTIONS, FIRST, SECOND = _texts(0, 60), _texts(1, 60), _texts(2, 60)
BOTH = [list(pair) for pair in zip(FIRST, SECOND, strict=True)]


def _rewards(metric: str, predictions, references, **options) -> list[float | None]:
    return TextMetric(metric=metric, **options)(prompts=[""] * len(predictions), completions=predictions, reference=references)


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "score"),
    [
        ("rouge1", "the cat sat", "the cat ran off", 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),
        ("rouge2", "the cat sat", "the cat ran off", 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)),
        ("rougeL", "the big cat sat", "the cat on sat", 3 / 4),
        ("bleu", "a b c d e", "a b c d e", 1.0),
        ("bleu", "a b c d x", "a b c d e", (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)),
        ("bleu", "a b c d", "a b c d e", math.exp(1 - 5 / 4)),
        ("chrf", "abc", "abc", 1.0),
        ("exact_match", "The Cat, sat!", "a cat sat", 1.0),
        ("exact_match", "cats sat", "cat sat", 0.0),
        ("token_f1", "the cat cat sat", "cat sat down", 2 * (2 / 3) * (2 / 3) / (4 / 3)),
        ("token_f1", "the", "an", 1.0),
        ("token_f1", "the", "cat", 0.0),
    ],
)
def test_a_metric_is_what_it_is_by_hand(metric: str, prediction: str, reference: str, score: float):
    assert _rewards(metric, [prediction], [reference]) == [pytest.approx(score)]


@pytest.mark.parametrize("stemmer", [False, True])
@pytest.mark.parametrize("metric", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_that_of_its_library(metric: str, stemmer: bool):
    scorer = RougeScorer([metric], use_stemmer=stemmer)
    best = [scorer.score_multi(of_row, one)[metric].fmeasure for one, of_row in zip(PREDICTIONS, BOTH, strict=True)]
    assert _rewards(metric, PREDICTIONS, BOTH, stemmer=stemmer) == pytest.approx(best)
    assert corpus_metrics([metric], stemmer=stemmer)(PREDICTIONS, BOTH) == {metric: pytest.approx(100 * sum(best) / len(best))}
    assert max(best) > 0.2
    stems = RougeScorer(["rouge1"], use_stemmer=stemmer).score("dog", "dogs")["rouge1"].fmeasure
    assert _rewards("rouge1", ["dogs"], ["dog"], stemmer=stemmer) == [stems]


@pytest.mark.parametrize("tokenize", ["13a", "char"])
def test_bleu_and_chrf_are_those_of_their_library(tokenize: str):
    of_rows = [sacrebleu.sentence_bleu(one, [of_row], tokenize=tokenize).score for one, of_row in zip(PREDICTIONS, FIRST, strict=True)]
    assert [100 * (value or 0) for value in _rewards("bleu", PREDICTIONS, FIRST, tokenize=tokenize)] == pytest.approx(of_rows)
    of_rows = [sacrebleu.sentence_chrf(one, [of_row]).score for one, of_row in zip(PREDICTIONS, FIRST, strict=True)]
    assert [100 * (value or 0) for value in _rewards("chrf", PREDICTIONS, FIRST)] == pytest.approx(of_rows)
    found = corpus_metrics(["bleu", "chrf"], tokenize=tokenize)(PREDICTIONS, BOTH)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, [FIRST, SECOND], tokenize=tokenize).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(PREDICTIONS, [FIRST, SECOND]).score)


def test_texts_may_have_different_numbers_of_references():
    some = [of_row[: 1 + number % 2] for number, of_row in enumerate(BOTH)]
    found = corpus_metrics(["bleu", "chrf"])(PREDICTIONS, some)
    repeated = [FIRST, [of_row[-1] for of_row in some]]  # a reference given twice adds nothing
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, repeated).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(PREDICTIONS, repeated).score)


@pytest.mark.parametrize("metric", METRICS)
def test_of_several_references_the_best_counts_or_the_mean(metric: str):
    one, other = _rewards(metric, PREDICTIONS, FIRST), _rewards(metric, PREDICTIONS, SECOND)
    pairs = [(a or 0.0, b or 0.0) for a, b in zip(one, other, strict=True)]
    assert _rewards(metric, PREDICTIONS, BOTH) == pytest.approx([max(pair) for pair in pairs])
    assert _rewards(metric, PREDICTIONS, BOTH, several="mean") == pytest.approx([sum(pair) / 2 for pair in pairs])
    assert all(0 <= value <= 1 for pair in pairs for value in pair)


@pytest.mark.parametrize("metric", METRICS)
def test_a_text_is_fully_like_itself_and_unlike_another(metric: str):
    assert _rewards(metric, ["ein Satz mit sechs schönen Wörtern", "xyz"], ["ein Satz mit sechs schönen Wörtern", "ABC"]) == [1.0, 0.0]


def test_corpus_means_are_means_of_the_rewards():
    for several in ("best", "mean"):
        found = corpus_metrics(["exact_match", "token_f1"], several=several)(PREDICTIONS, BOTH)
        for metric, value in found.items():
            rewards = [reward or 0.0 for reward in _rewards(metric, PREDICTIONS, BOTH, several=several)]
            assert value == pytest.approx(100 * sum(rewards) / len(rewards))
    assert found["token_f1"] > 5


def test_the_metric_of_evaluate_takes_batches_and_says_what_it_is():
    metric = CorpusMetric(["rouge1", "bleu"])
    for start in range(0, 60, 20):
        metric.add_batch(predictions=PREDICTIONS[start : start + 20], references=BOTH[start : start + 20])
    assert metric.compute() == pytest.approx(corpus_metrics(["rouge1", "bleu"])(PREDICTIONS, BOTH))
    assert "references" in metric.features and "ROUGE" in metric.description


def test_rows_without_reference_do_not_apply_and_chats_are_read():
    chat = [{"role": "assistant", "content": "the cat"}]
    rewards = TextMetric(metric="exact_match")(
        prompts=["p"] * 5, completions=[chat, "the cat", "x", "", "a"], reference=["cat", [chat, "dog"], None, [], ["b", "c"]]
    )
    assert rewards == [1.0, 1.0, None, None, 0.0]
    total = WeightedSum([("rouge", TextMetric(metric="rouge1", reference_field="summary"), 2.0)])
    assert total(["p"], ["one two"], summary=["one two"]) == [2.0]


def test_hostile_text_has_a_score():
    odd = ["", "\x00", "\ud800 word", "𝔘" * 50, " \n\t", "....", "a" * 5000]
    for metric in METRICS:
        for reward in _rewards(metric, odd, odd[::-1]):
            assert reward is not None and 0 <= reward <= 1
    assert set(corpus_metrics()(odd, odd[::-1])) == set(METRICS)
    assert token_f1("\ud800 word", "word") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("options", "columns", "message"),
    [
        ({"metric": "rouge3"}, {}, r"there is no text metric 'rouge3'; did you mean 'rouge"),
        ({"several": "worst"}, {}, "several is 'worst'; choose best or mean"),
        ({"metric": "bleu", "tokenize": "14a"}, {}, "tokenize is '14a'; choose one of 13a"),
        ({}, {"referense": ["a"]}, "no column 'reference' with the references; did you mean 'referense'"),
        ({}, {"reference": ["a", "b"]}, "1 completions came with 2 references"),
        ({}, {"reference": [3]}, "column 'reference', row 0: a reference is a text or a list of texts, not int"),
    ],
)
def test_what_cannot_be_scored_is_refused(options: dict, columns: dict, message: str):
    with pytest.raises(InputError, match=message):
        TextMetric(**options)(prompts=["p"], completions=["c"], **columns)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "0 predictions came with 0 references"),
        (["a"], ["a", "b"], "1 predictions came with 2 references"),
        (["a", "b"], ["a", []], "row 1 has no reference"),
    ],
)
def test_a_corpus_that_cannot_be_scored_is_refused(predictions: list, references: list, message: str):
    with pytest.raises(InputError, match=message):
        corpus_metrics(["bleu"])(predictions, references)


def test_real_summaries_with_several_references_score_as_in_the_libraries():
    folder = Path(os.environ.get("GKD_RL_DATA", "")) / "scitldr"
    if not (folder / "test.jsonl.gz").is_file():
        pytest.skip("GKD_RL_DATA names no folder with scitldr/test.jsonl.gz")
    with open_gzip(folder / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:100]
    leads, targets = [row["source"][0] for row in rows], [row["target"] for row in rows]
    scorer = RougeScorer(["rouge2"])
    expected = [scorer.score_multi(of_row, lead)["rouge2"].fmeasure for lead, of_row in zip(leads, targets, strict=True)]
    assert corpus_metrics(["rouge2"])(leads, targets)["rouge2"] == pytest.approx(100 * sum(expected) / len(expected))
    assert any(len(of_row) > 1 for of_row in targets)
