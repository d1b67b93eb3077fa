"""A sequence-classification checkpoint with its own tokenizer: loaded with care, and asked in batches of like length."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from reward_models.errors import InputError, nearest_hint

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Row = Mapping[str, Sequence[int]]
"""What a tokenizer makes of one input: `input_ids`, and where the model reads them `token_type_ids`."""


class Classifier:
    """A model with a classification head, and what it says of tokenized rows.

    Args:
        model: folder of the checkpoint, or its name on a model hub.
        batch_size: sequences per forward pass; rows are sorted by length, results do not depend on it.
        max_length: tokens of the longest input; by default what the model and its tokenizer state.
        device: where the model runs; by default the first GPU, else the CPU.
        dtype: precision of the weights: float32, bfloat16 or float16.
        label: index or name of the label whose probability counts; needed where there are several, refused where there is one.
        truncation_side: the side at which the tokenizer cuts, where it is asked to.
        trust_pickle: load `.bin` weights, which can run code while they load.
        offload: the weights wait in CPU memory, and are on the device only while they are asked.

    Raises:
        InputError: the checkpoint is missing, has no trained classification head or only pickled weights, or an option does
            not suit it.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        batch_size: int,
        max_length: int | None,
        device: str | None,
        dtype: str,
        label: int | str | None,
        truncation_side: str,
        trust_pickle: bool,
        offload: bool = False,
    ) -> None:
        _check_options(batch_size, max_length, dtype)
        path = _existing(model)
        self.name = Path(path).name
        self.batch_size = batch_size
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if offload and self.device.type == "cpu":
            raise InputError("offload is for a model on a GPU, and this one runs on the CPU; leave offload out, or give a device")
        self.home = torch.device("cpu") if offload else self.device
        self.model = _load_model(path, _DTYPES[dtype], trust_pickle).to(self.home).eval()
        self.tokenizer = _load_tokenizer(path, truncation_side)
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.label = _label_index(path, self.model.config, label)
        self.multi_label = self.model.config.problem_type == "multi_label_classification"
        self.max_length = max_length or _longest_input(self.tokenizer, self.model.config)

    def scores(self, rows: Sequence[Row]) -> list[float]:
        """Return the value of a head of one output for each row, or the probability of `label` (softmax; sigmoid if multi-label)."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        scores = [0.0] * len(rows)
        with self._at_work():
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                for i, score in zip(batch, self._batch([rows[i] for i in batch]), strict=True):
                    scores[i] = score
        return scores

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Within it the model is on its device."""
        if self.home == self.device:
            yield
            return
        self.model.to(self.device)
        try:
            yield
        finally:
            self.model.to(self.home)

    @torch.inference_mode()
    def _batch(self, rows: list[Row]) -> list[float]:
        names = [name for name in ("input_ids", "token_type_ids") if name in rows[0]]
        columns = {name: [list(row[name]) for row in rows] for name in names}
        padded = self.tokenizer.pad(columns, padding=True, padding_side="right", return_tensors="pt")
        inputs = {name: padded[name].to(self.device) for name in (*names, "attention_mask")}
        return self._probabilities(self.model(**inputs).logits.float()).tolist()

    def _probabilities(self, logits: Tensor) -> Tensor:
        if self.label is None:
            return logits[:, 0]
        probabilities = logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)
        return probabilities[:, self.label]


def _check_options(batch_size: int, max_length: int | None, dtype: str) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be 1 or more")
    if max_length is not None and max_length < 1:
        raise InputError(f"max_length is {max_length}; it must be 1 or more")
    if dtype not in _DTYPES:
        raise InputError(f"dtype is '{dtype}'; choose one of {', '.join(_DTYPES)}")


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


def _load_tokenizer(path: str, truncation_side: str) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' has no tokenizer that can be loaded: {str(error).splitlines()[0]}") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(f"the tokenizer of '{path}' has neither a padding nor an end token; give it one")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.truncation_side = truncation_side
    return tokenizer


def _label_index(path: str, config: Any, label: int | str | None) -> int | None:
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    if config.num_labels == 1:
        if label is not None:
            raise InputError(f"'{path}' has one output, whose value is the reward; leave label out")
        return None
    if label is None:
        raise InputError(f"'{path}' has {len(names)} labels; choose the rewarded one by label: {', '.join(names)}")
    if isinstance(label, str) and label.lower() in (lower := [name.lower() for name in names]):
        return names.index(label) if label in names else lower.index(label.lower())
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    raise InputError(f"'{path}' has no label {label!r}{nearest_hint(str(label), names)} (labels: {', '.join(names)})")


def _longest_input(tokenizer: Any, config: Any) -> int:
    """The tokenizer's limit and the number of positions; tokenizers without a limit state an astronomically large one."""
    return min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length)
