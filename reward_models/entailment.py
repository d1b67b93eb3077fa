"""Does the document entail the completion? A reward by any classifier of natural-language inference."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from reward_models.classifier import Classifier, Row
from reward_models.errors import InputError, nearest_hint
from reward_models.sentences import split_sentences
from reward_models.text import completion_text, plain_prompt


class EntailmentReward:
    """Probability that a document entails the completion, by a classifier of (premise, hypothesis) pairs.

    `reward = agg_s max_w p(label | window_w of the document, hypothesis_s)`: the document is cut into windows that fit into the
    model with the hypothesis, and the best supporting window counts. Hypotheses are the whole completion, or its sentences, of which
    the minimum or the mean is taken (as SummaC, Laban et al. 2022). An empty completion gets 0: it says nothing, which any document
    entails.

    Args:
        model: folder of the checkpoint, or its name on a model hub.
        document_field: the column of documents; None takes the prompts.
        per_sentence: None takes the whole completion as one hypothesis, `min` and `mean` its sentences.
        label: index or name (case does not count) of the label whose probability counts.
        overlap: tokens that consecutive windows share.
        truncate: `right` cuts hypotheses to half of `max_length`; without it longer ones are an error.
        batch_size, max_length, device, dtype, trust_pickle, offload: as of `SequenceClassificationReward`.

    Raises:
        InputError: the checkpoint cannot serve (see `Classifier`), has no label of that name, or an option is out of range.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        document_field: str | None = "document",
        per_sentence: Literal["min", "mean"] | None = None,
        label: int | str = "entailment",
        overlap: int = 64,
        truncate: Literal["right"] | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
        trust_pickle: bool = False,
        offload: bool = False,
    ) -> None:
        if per_sentence not in (None, "min", "mean"):
            raise InputError(f"per_sentence is '{per_sentence}'; choose min or mean, or leave it out")
        if truncate not in (None, "right"):
            raise InputError(f"truncate is '{truncate}'; choose right, or leave it out")
        self.document_field, self.per_sentence, self.overlap, self.truncate = document_field, per_sentence, overlap, truncate
        self.classifier = Classifier(
            model,
            batch_size=batch_size,
            max_length=max_length,
            device=device,
            dtype=dtype,
            label=label,
            truncation_side="right",
            trust_pickle=trust_pickle,
            offload=offload,
        )
        self.__name__ = "entailment"  # trainers log a reward under this name
        self.longest_hypothesis = self.classifier.max_length // 2
        room = self.classifier.max_length - self.longest_hypothesis - self.classifier.tokenizer.num_special_tokens_to_add(pair=True)
        if not 0 <= overlap < room:
            raise InputError(f"overlap is {overlap}; it must be at least 0 and below {room}, the least tokens of a window")

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one reward for each row, None where its document is null.

        Raises:
            InputError: there is no column of documents, or a hypothesis is too long and `truncate` is not set.
        """
        documents = self._documents(prompts, columns)
        inputs: list[Row] = []
        places: list[tuple[int, int]] = []  # (row, hypothesis) of each input
        counts = [0] * len(completions)
        for row, (document, completion) in enumerate(zip(documents, completions, strict=True)):
            if document is None:
                continue
            for hypothesis in self._hypotheses(completion_text(completion)):
                windows = list(self._windows(row, document, hypothesis))
                inputs += windows
                places += [(row, counts[row])] * len(windows)
                counts[row] += 1
        best: dict[tuple[int, int], float] = {}
        for place, score in zip(places, self.classifier.scores(inputs), strict=True):
            best[place] = max(score, best.get(place, score))
        supports = [[best[row, number] for number in range(count)] for row, count in enumerate(counts)]
        return [None if document is None else self._reward(of_row) for document, of_row in zip(documents, supports, strict=True)]

    def _reward(self, supports: list[float]) -> float:
        if not supports:
            return 0.0
        return min(supports) if self.per_sentence == "min" else sum(supports) / len(supports)

    def _documents(self, prompts: Sequence[Any], columns: dict[str, Any]) -> list[str | None]:
        if self.document_field is None:
            return [plain_prompt(prompt) for prompt in prompts]
        if self.document_field not in columns:
            raise InputError(f"there is no column '{self.document_field}' with the documents{nearest_hint(self.document_field, columns)}")
        return list(columns[self.document_field])

    def _hypotheses(self, completion: str) -> list[str]:
        if self.per_sentence is None:
            return [completion.strip()] if completion.strip() else []
        return split_sentences(completion)

    def _windows(self, row: int, document: str, hypothesis: str) -> Iterator[Row]:
        """The pairs of window and hypothesis as the model reads them; consecutive windows share `overlap` tokens."""
        tokenizer = self.classifier.tokenizer
        length = len(tokenizer(hypothesis, add_special_tokens=False, verbose=False)["input_ids"])
        if length > self.longest_hypothesis:
            if self.truncate is None:
                raise InputError(
                    f"row {row} has a hypothesis of {length} tokens, and at most half of max_length={self.classifier.max_length} is "
                    "read of one; set per_sentence, or truncate to right"
                )
            cut = tokenizer(hypothesis, add_special_tokens=False, truncation=True, max_length=self.longest_hypothesis)["input_ids"]
            hypothesis = tokenizer.decode(cut)
        pairs = tokenizer(
            document,
            hypothesis,
            truncation="only_first",
            max_length=self.classifier.max_length,
            stride=self.overlap,
            return_overflowing_tokens=True,
        )
        for number in range(len(pairs["input_ids"])):
            yield {name: pairs[name][number] for name in ("input_ids", "token_type_ids") if name in pairs}
