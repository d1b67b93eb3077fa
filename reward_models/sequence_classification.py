"""Reward from any sequence-classification checkpoint: the scalar of a reward model, or the probability of one label."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from reward_models.classifier import Classifier, Row
from reward_models.errors import InputError
from reward_models.template import RowTemplate


class SequenceClassificationReward:
    """Scores each prompt with its completion by a classifier with its own tokenizer.

    A head of one output gives its value; a head of several gives the probability of `label` (softmax; sigmoid for
    multi-label models). Chat messages go through the tokenizer's chat template where it has one, everything else through
    `template`.

    Args:
        model: folder of the checkpoint, or its name on a model hub.
        batch_size: sequences per forward pass; rows are sorted by length, results do not depend on it.
        max_length: tokens of the longest input; by default what the model and its tokenizer state.
        device: where the model runs; by default the first GPU, else the CPU.
        dtype: precision of the weights: float32, bfloat16 or float16.
        template: text of a row from `{prompt}`, `{completion}` and any other column.
        label: index or name of the rewarded label; needed where there are several, refused where there is one.
        truncate: the side to cut inputs that are too long; without it they are an error.
        trust_pickle: load `.bin` weights, which can run code while they load.
        offload: the weights wait in CPU memory, and are on the GPU only while they are asked.

    Raises:
        InputError: the checkpoint is missing, has no trained classification head or only pickled weights, or an option does
            not suit it.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        batch_size: int = 16,
        max_length: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
        template: str = "{prompt}{completion}",
        label: int | str | None = None,
        truncate: Literal["left", "right"] | None = None,
        trust_pickle: bool = False,
        offload: bool = False,
    ) -> None:
        if truncate not in (None, "left", "right"):
            raise InputError(f"truncate is '{truncate}'; choose left or right, or leave it out")
        self.template, self.truncate = RowTemplate(template), truncate
        self.classifier = Classifier(
            model,
            batch_size=batch_size,
            max_length=max_length,
            device=device,
            dtype=dtype,
            label=label,
            truncation_side=truncate or "right",
            trust_pickle=trust_pickle,
            offload=offload,
        )
        self.__name__ = self.classifier.name  # trainers log a reward under this name

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one reward for each row.

        Raises:
            InputError: the template names a column that is not there, or an input is too long and `truncate` is not set.
        """
        return list(self.classifier.scores([self._tokens(i, prompts[i], completions[i], columns) for i in range(len(completions))]))

    def _tokens(self, row: int, prompt: Any, completion: Any, columns: Mapping[str, Any]) -> Row:
        text, special_tokens = self._text(row, prompt, completion, columns)
        longest = self.classifier.max_length
        cut = {"truncation": True, "max_length": longest} if self.truncate else {"truncation": False}
        ids = self.classifier.tokenizer(text, add_special_tokens=special_tokens, verbose=False, **cut)["input_ids"]
        if len(ids) > longest:
            raise InputError(
                f"row {row} has {len(ids)} tokens for the reward model {self.__name__}, which reads {longest}; "
                "set truncate to left or right to cut it"
            )
        return {"input_ids": ids}

    def _text(self, row: int, prompt: Any, completion: Any, columns: Mapping[str, Any]) -> tuple[str, bool]:
        """The text of a row, and whether the tokenizer adds its special tokens (a chat template writes its own)."""
        if not isinstance(prompt, str) and prompt is not None and self.classifier.tokenizer.chat_template:
            answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
            return self.classifier.tokenizer.apply_chat_template([*prompt, *answer], tokenize=False), False
        return self.template.text(row, prompt, completion, columns), True
