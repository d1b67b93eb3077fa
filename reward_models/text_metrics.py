"""Likeness to reference texts as a reward: ROUGE, BLEU, chrF, exact match, token F1. (Of a corpus: `corpus_metrics`.)"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

from reward_models.errors import InputError, nearest_hint
from reward_models.references import reference_column
from reward_models.text import completion_text

Several = Literal["best", "mean"]
TextScore = Callable[[str, str], float]
"""(prediction, reference) → score from 0 to 1."""

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextMetric:
    """Reward `metric(completion, reference)`, from 0 to 1; with several references the best of their scores, or the mean.

    Rows without a reference get None: the reward does not apply to them.

    Args:
        metric: `rouge1`, `rouge2`, `rougeL` (F-measures, Lin 2004, as `rouge_score` computes them), `bleu` (of the sentence, Papineni
            et al. 2002, with effective order and exponential smoothing) and `chrf` (Popović 2015), both as `sacrebleu` computes them,
            `exact_match` and `token_f1` (Rajpurkar et al. 2016: lower case, without punctuation and English articles).
        reference_field: the column of references: a text, or a list of several.
        several: what counts where a row has several references, `best` or `mean`.
        stemmer: ROUGE compares words by their English stems (Porter).
        tokenize: BLEU's tokenizer: `13a`, `intl`, `char`, `zh` or `none`.

    Raises:
        InputError: no metric of that name, or an option is out of range.
    """

    def __init__(
        self,
        *,
        metric: str = "rouge2",
        reference_field: str = "reference",
        several: Several = "best",
        stemmer: bool = False,
        tokenize: str = "13a",
    ) -> None:
        if several not in ("best", "mean"):
            raise InputError(f"several is '{several}'; choose best or mean")
        self.__name__ = metric  # trainers log a reward under this name
        self.reference_field, self.several = reference_field, several
        self._score = text_score(metric, stemmer, tokenize)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one reward for each completion; `columns` holds the references.

        Raises:
            InputError: there is no column of references, it has another length, or a reference is no text.
        """
        references = reference_column(columns, self.reference_field, len(completions))
        return [self.score(completion_text(one), of_row) for one, of_row in zip(completions, references, strict=True)]

    def score(self, prediction: str, references: Sequence[str]) -> float | None:
        """Return the score of one text against its references, None where there are none."""
        scores = [self._score(prediction, reference) for reference in references]
        if not scores:
            return None
        return max(scores) if self.several == "best" else sum(scores) / len(scores)


def text_score(metric: str, stemmer: bool = False, tokenize: str = "13a") -> TextScore:
    """Return the function that scores a prediction against one reference by `metric`; names and options as of `TextMetric`."""
    if metric not in METRICS:
        raise InputError(f"there is no text metric '{metric}'{nearest_hint(metric, METRICS)} (metrics: {', '.join(METRICS)})")
    if tokenize not in TOKENIZERS:
        raise InputError(f"tokenize is '{tokenize}'; choose one of {', '.join(TOKENIZERS)}")
    if metric.startswith("rouge"):
        scorer = rouge_scorer(metric, stemmer)
        return lambda prediction, reference: float(scorer.score(reference, prediction)[metric].fmeasure)
    if metric in ("bleu", "chrf"):
        library = _sentence_bleu(tokenize) if metric == "bleu" else _chrf()
        # a rounding error above 100 would be an answer better than its own reference
        return lambda prediction, reference: min(1.0, library.sentence_score(prediction, [reference]).score / 100)
    return _exact_match if metric == "exact_match" else token_f1


METRICS = ("rouge1", "rouge2", "rougeL", "bleu", "chrf", "exact_match", "token_f1")
TOKENIZERS = ("13a", "intl", "char", "zh", "none")


@cache
def rouge_scorer(metric: str, stemmer: bool) -> Any:
    """`rouge_score`'s scorer of one variant."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([metric], use_stemmer=stemmer)


@cache
def _sentence_bleu(tokenize: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenize, effective_order=True)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def token_f1(prediction: str, reference: str) -> float:
    """Return 2·P·R/(P + R) over the words that both texts share, counted; 1 where neither has words (SQuAD's measure)."""
    said, wanted = _words(prediction), _words(reference)
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


def _exact_match(prediction: str, reference: str) -> float:
    return float(_words(prediction) == _words(reference))


def _words(text: str) -> list[str]:
    """SQuAD's normal form: lower case, without punctuation, English articles and extra spaces."""
    return _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split()
