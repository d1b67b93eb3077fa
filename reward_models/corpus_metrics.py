"""Text metrics of a whole corpus, for evaluation: `evaluate` metrics of our own, which need no network."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import evaluate

from reward_models.errors import InputError
from reward_models.text_metrics import METRICS, Several, TextMetric, text_score

_DESCRIPTION = "Mean ROUGE F-measures, corpus BLEU, chrF, exact match and token F1 against one or several references, from 0 to 100."


class CorpusMetric(evaluate.Metric):
    """An `evaluate` metric: `compute(predictions=texts, references=lists of texts)` → value by name, from 0 to 100.

    ROUGE, exact match and token F1 are means over the texts, of each text's best reference or of the mean of all (`several`). BLEU
    and chrF are of the corpus, over all references at once as `sacrebleu` defines them.

    Args:
        names: which of `reward_models.text_metrics.METRICS`.
        several, stemmer, tokenize: as of `reward_models.TextMetric`.

    Raises:
        InputError: no metric of that name, or an option is out of range.
    """

    def __init__(self, names: Sequence[str] = METRICS, several: Several = "best", stemmer: bool = False, tokenize: str = "13a") -> None:
        for name in names:
            text_score(name, stemmer, tokenize)
        self.names, self.tokenize = tuple(names), tokenize
        self._of_texts = {name: TextMetric(metric=name, several=several, stemmer=stemmer) for name in names if name not in ("bleu", "chrf")}
        self._folder = TemporaryDirectory()  # `evaluate` makes a folder even where all stays in memory
        super().__init__(cache_dir=self._folder.name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", features=features)

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]], **options: Any) -> dict[str, float]:
        return {name: self._value(name, predictions, references) for name in self.names}

    def _value(self, name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        if name not in self._of_texts:
            return _sacrebleu(name, self.tokenize, predictions, references)
        scores = [self._of_texts[name].score(one, list(of_text)) for one, of_text in zip(predictions, references, strict=True)]
        return 100 * sum(score for score in scores if score is not None) / len(scores)


def corpus_metrics(
    names: Sequence[str] = METRICS, several: Several = "best", stemmer: bool = False, tokenize: str = "13a"
) -> Callable[[Sequence[str], Sequence[str | Sequence[str]]], dict[str, float]]:
    """Return the function (predictions, references) → value by name, from 0 to 100; see `CorpusMetric`.

    Raises (the function): `InputError` for no texts, another number of references, or a text without one.
    """
    metric = CorpusMetric(names, several, stemmer, tokenize)

    def values(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
        lists = [[one] if isinstance(one, str) else list(one) for one in references]
        if not predictions or len(predictions) != len(lists):
            raise InputError(
                f"{len(predictions)} predictions came with {len(lists)} references; give one of each per row, and at least one"
            )
        if [] in lists:
            raise InputError(f"row {lists.index([])} has no reference; leave it out")
        clean = [[_writable(text) for text in of_text] for of_text in lists]
        found = metric.compute(predictions=[_writable(text) for text in predictions], references=clean)
        assert found is not None, "there is one process"
        return found

    return values


def _sacrebleu(name: str, tokenize: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    library = BLEU(tokenize=tokenize) if name == "bleu" else CHRF()
    return float(library.corpus_score(list(predictions), list(zip_longest(*references))).score)


def _writable(text: str) -> str:
    """Half of a surrogate pair, which Arrow does not store, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
