"""Corpus metrics of an evaluation: from all answers to named values. A task names its own in ``metrics``, ``evaluation.metrics`` others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gkd_rl.errors import UserError
from reward_models.arithmetic import ArithmeticVerifier, reference_text
from reward_models.errors import nearest_hint
from reward_models.loading import load_reward
from reward_models.references import reference_column
from reward_models.report import PromptTally


@dataclass(frozen=True)
class Answers:
    """Everything that was answered to the held-out prompts."""

    greedy: Sequence[str]
    """one for each prompt"""
    samples: Sequence[Sequence[str]]
    """as many for each prompt"""
    columns: Mapping[str, Sequence[Any]]
    """the examples' columns; None where an example has none of that name"""


Metric = Callable[[Answers], dict[str, float]]


def metric_functions(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names: those below, or functions at a dotted path or ``file.py:name``.

    Raises ``UserError`` for a name that is neither.
    """
    return [_metric(name) for name in names]


def _metric(name: str) -> Metric:
    if name in METRICS:
        return METRICS[name]
    if "." not in name and ":" not in name:
        raise UserError(f"evaluation.metrics: there is no metric '{name}'{nearest_hint(name, METRICS)} (there are {', '.join(METRICS)})")
    return load_reward(name)  # pyright: ignore[reportReturnType]


def majority_vote(answers: Answers) -> dict[str, float]:
    """Share of prompts to which the answer that most samples give is right (of equals the first given); nothing for single samples.

    Answers are read by ``ArithmeticVerifier`` (self-consistency, arXiv 2203.11171). Prompts whose reference cannot be read are left out.
    """
    if len(answers.samples[0]) < 2:
        return {}
    verifier, votes = ArithmeticVerifier(), []
    for samples, reference in zip(answers.samples, _column(answers, "reference", "majority_vote"), strict=True):
        verdicts = [verifier.verify(sample, reference_text(reference)) for sample in samples]
        if verdicts[0].status == "bad_reference":
            continue
        tally = PromptTally()
        for verdict in verdicts:
            tally.add(verdict)
        votes.append(tally.majority_right())
    return {"majority_vote": sum(votes) / len(votes)} if votes else {}


def self_bleu(answers: Answers) -> dict[str, float]:
    """Mean BLEU (0 to 100) of each sample against the others of its prompt: the higher, the less diverse; nothing for single samples.

    Self-BLEU of Texygen (arXiv 1802.01886), per prompt. Sentence BLEU of sacrebleu, with its effective order, so that short samples
    count too.
    """
    if len(answers.samples[0]) < 2:
        return {}
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(effective_order=True)
    scores = [
        bleu.sentence_score(sample, [other for place, other in enumerate(samples) if place != number]).score
        for samples in answers.samples
        for number, sample in enumerate(samples)
    ]
    return {"self_bleu": sum(scores) / len(scores)}


def distinct(answers: Answers) -> dict[str, float]:
    """Distinct n-grams of words over all n-grams of a prompt's samples, for n = 1 and 2, mean over prompts (arXiv 1510.03055).

    Prompts whose samples hold no n-gram are left out.
    """
    words = [[sample.split() for sample in samples] for samples in answers.samples]
    single = [[(word,) for sample in samples for word in sample] for samples in words]
    pairs = [[pair for sample in samples for pair in pairwise(sample)] for samples in words]
    return {name: share for name, grams in (("distinct_1", single), ("distinct_2", pairs)) if (share := _distinct_share(grams)) is not None}


def _distinct_share(grams: Sequence[Sequence[tuple[str, ...]]]) -> float | None:
    shares = [len(set(found)) / len(found) for found in grams if found]
    return sum(shares) / len(shares) if shares else None


def _column(answers: Answers, name: str, metric: str) -> Sequence[Any]:
    if name not in answers.columns:
        raise UserError(f"evaluation.metrics: {metric} needs the column '{name}', which the held-out examples lack; leave the metric out")
    return answers.columns[name]


def _overlap(*names: str) -> Metric:
    """Likeness of the greedy answers to their references, 0 to 100, as ``reward_models.corpus_metrics`` has it.

    Prompts without a reference are left out; without any reference there is no value.
    """

    def overlap(answers: Answers) -> dict[str, float]:
        from reward_models.corpus_metrics import corpus_metrics

        references = reference_column(answers.columns, "reference", len(answers.greedy)) if "reference" in answers.columns else []
        pairs = [(text, given) for text, given in zip(answers.greedy, references, strict=False) if given]
        return corpus_metrics(names)(*zip(*pairs, strict=True)) if pairs else {}

    return overlap


METRICS: dict[str, Metric] = {
    "rouge": _overlap("rouge1", "rouge2", "rougeL"),
    "bleu": _overlap("bleu"),
    "chrf": _overlap("chrf"),
    "exact_match": _overlap("exact_match"),
    "token_f1": _overlap("token_f1"),
    "majority_vote": majority_vote,
    "self_bleu": self_bleu,
    "distinct": distinct,
}
"""What ``evaluation.metrics`` and a task's ``metrics`` name."""
