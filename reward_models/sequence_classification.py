"""Reward from any sequence-classification checkpoint: the scalar of a reward model, or the probability of one label."""

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from reward_models.errors import InputError, nearest_hint
from reward_models.text import completion_text

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    ) -> None:
        _check_options(batch_size, max_length, dtype, truncate)
        path = _existing(model)
        self.__name__ = Path(path).name  # trainers log a reward under this name
        self.template, self.batch_size, self.truncate = template, batch_size, truncate
        self.fields = _template_fields(template)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = _load_model(path, _DTYPES[dtype], trust_pickle).to(self.device).eval()
        self.tokenizer = _load_tokenizer(path, truncate)
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.label = _label_index(path, self.model.config, label)
        self.multi_label = self.model.config.problem_type == "multi_label_classification"
        self.max_length = max_length or _longest_input(self.tokenizer, self.model.config)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one reward for each row.

        Raises:
            InputError: the template names a column that is not there, or an input is too long and `truncate` is not set.
        """
        rows = [self._token_ids(i, prompts[i], completions[i], columns) for i in range(len(completions))]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        rewards: list[float | None] = [None] * len(rows)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for i, score in zip(batch, self._scores([rows[i] for i in batch]), strict=True):
                rewards[i] = score
        return rewards

    @torch.inference_mode()
    def _scores(self, rows: list[list[int]]) -> list[float]:
        padded = self.tokenizer.pad({"input_ids": rows}, padding=True, padding_side="right", return_tensors="pt")
        inputs = {name: padded[name].to(self.device) for name in ("input_ids", "attention_mask")}
        return self._rewards(self.model(**inputs).logits.float()).tolist()

    def _rewards(self, logits: Tensor) -> Tensor:
        if self.label is None:
            return logits[:, 0]
        probabilities = logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)
        return probabilities[:, self.label]

    def _token_ids(self, row: int, prompt: Any, completion: Any, columns: Mapping[str, Any]) -> list[int]:
        text, special_tokens = self._text(row, prompt, completion, columns)
        cut = {"truncation": True, "max_length": self.max_length} if self.truncate else {"truncation": False}
        ids = self.tokenizer(text, add_special_tokens=special_tokens, verbose=False, **cut)["input_ids"]
        if len(ids) > self.max_length:
            raise InputError(
                f"row {row} has {len(ids)} tokens for the reward model {self.__name__}, which reads {self.max_length}; "
                "set truncate to left or right to cut it"
            )
        return ids

    def _text(self, row: int, prompt: Any, completion: Any, columns: Mapping[str, Any]) -> tuple[str, bool]:
        """The text of a row, and whether the tokenizer adds its special tokens (a chat template writes its own)."""
        if not isinstance(prompt, str) and prompt is not None and self.tokenizer.chat_template:
            answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
            return self.tokenizer.apply_chat_template([*prompt, *answer], tokenize=False), False
        fields: dict[str, Any] = {"prompt": _plain_prompt(prompt), "completion": completion_text(completion)}
        for name in self.fields - fields.keys():
            if name not in columns:
                raise InputError(f"the template needs a column '{name}'{nearest_hint(name, columns)}")
            fields[name] = columns[name][row]
        return self.template.format(**fields), True


def _plain_prompt(prompt: Any) -> str:
    """A prompt as text; messages without a chat template are joined by line breaks."""
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    return "".join(f"{completion_text([{**message, 'role': 'assistant'}])}\n" for message in prompt)


def _check_options(batch_size: int, max_length: int | None, dtype: str, truncate: str | None) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be 1 or more")
    if max_length is not None and max_length < 1:
        raise InputError(f"max_length is {max_length}; it must be 1 or more")
    if dtype not in _DTYPES:
        raise InputError(f"dtype is '{dtype}'; choose one of {', '.join(_DTYPES)}")
    if truncate not in (None, "left", "right"):
        raise InputError(f"truncate is '{truncate}'; choose left or right, or leave it out")


def _template_fields(template: str) -> set[str]:
    try:
        return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise InputError(f"template {template!r} cannot be read ({error}); double a brace that stands for itself") from error


def _existing(model: str | Path) -> str:
    """The checkpoint's folder; a name of the form `owner/name` that is no folder is left to the model hub."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"'{model}' is not a checkpoint: it has no config.json")
        return str(path)
    hub_name = isinstance(model, str) and model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if hub_name and not path.parent.is_dir():
        return str(model)
    siblings = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
    raise InputError(f"there is no reward model at '{model}'{nearest_hint(str(path), siblings)}")


def _load_model(path: str, dtype: torch.dtype, trust_pickle: bool) -> Any:
    folder = Path(path)
    if folder.is_dir() and not trust_pickle and not list(folder.glob("*.safetensors")):
        raise InputError(f"'{path}' has no safetensors weights; pickled weights can run code (trust_pickle=true loads them)")
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=AutoConfig.from_pretrained(path, trust_remote_code=False),
            dtype=dtype,
            use_safetensors=None if trust_pickle else True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be loaded as a sequence classifier: {str(error).splitlines()[0]}") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        missing = ", ".join(sorted(map(str, info["missing_keys"] or info["mismatched_keys"]))[:3])
        raise InputError(f"'{path}' is not a trained sequence classifier: its weights lack {missing}")
    return model


def _load_tokenizer(path: str, truncate: str | None) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' has no tokenizer that can be loaded: {str(error).splitlines()[0]}") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(f"the tokenizer of '{path}' has neither a padding nor an end token; give it one")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.truncation_side = truncate or "right"
    return tokenizer


def _label_index(path: str, config: Any, label: int | str | None) -> int | None:
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    if config.num_labels == 1:
        if label is not None:
            raise InputError(f"'{path}' has one output, whose value is the reward; leave label out")
        return None
    if label is None:
        raise InputError(f"'{path}' has {len(names)} labels; choose the rewarded one by label: {', '.join(names)}")
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    raise InputError(f"'{path}' has no label {label!r}{nearest_hint(str(label), names)} (labels: {', '.join(names)})")


def _longest_input(tokenizer: Any, config: Any) -> int:
    """The tokenizer's limit and the number of positions; tokenizers without a limit state an astronomically large one."""
    return min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length)
