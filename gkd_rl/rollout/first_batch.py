"""The sampled answers of a run's first step, shared by runs that begin alike: sampled by one of them, read by all.

They depend on the initial student, the prompts, the seed and how is sampled. The file holds all of this, the student and the prompts as
digests, and a run that begins otherwise refuses it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from gkd_rl.config.first_batch import first_batch_settings
from gkd_rl.config.run import Config
from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.models.tokenizers import prompt_tokens
from gkd_rl.rollout.buffer import pack_rollouts, unpack_rollouts
from gkd_rl.types import Example, Rollouts

_DIGESTS = {"student": "other weights of the student", "prompts": "other prompts"}
_ELEMENTS = 1024
"""Elements of each weight in a student's digest; a student that was trained in between differs in all of them."""


def first_answers(config: Config, student: LanguageModel, examples: Sequence[Example], sample: Callable[[], Rollouts]) -> Rollouts:
    """The answers to ``examples`` in ``rollout.first_batch``; where there is no such file, ``sample``'s, which go there.

    Of runs that come at the same time one samples and the others wait for it. Raises ``UserError`` for a file that was made by a run
    that begins otherwise, or cannot be read or written.
    """
    assert config.rollout.first_batch is not None
    path = Path(config.run_dir) / config.rollout.first_batch
    begins = {**first_batch_settings(config), "student": _digest_of_student(student), "prompts": _digest_of_prompts(student, examples)}
    with _alone(path):
        if not path.exists():
            _write(path, begins, sample())
    return _read(path, begins, student.device, examples)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Of all processes that come here with ``path``, one at a time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock").open("w")
    except OSError as error:
        raise _unwritten(path, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unwritten(path: Path, error: Exception) -> UserError:
    return UserError(f"rollout.first_batch={path} cannot be written ({error}); make room there, or choose another file")


def _digest_of_student(student: LanguageModel) -> str:
    """Of names, shapes and some elements of the weights that are not an adapter's."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in student.module.named_parameters():
        if "lora_" not in name:
            flat = weight.detach().flatten()
            digest.update(f"{name.replace('.base_layer', '')} {tuple(weight.shape)}".encode())
            digest.update(flat[:: -(-len(flat) // _ELEMENTS) or 1].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _digest_of_prompts(student: LanguageModel, examples: Sequence[Example]) -> str:
    asked = [(example.key, prompt_tokens(student.tokenizer, example.prompt)) for example in examples]
    return hashlib.blake2b(json.dumps(asked).encode(), digest_size=16).hexdigest()


def _write(path: Path, begins: Mapping[str, Any], rollouts: Rollouts) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save({"begins": json.dumps(begins), "rollouts": {**pack_rollouts(rollouts), "examples": []}}, aside)
        aside.rename(path)
    except (OSError, RuntimeError) as error:  # torch's writer has no error of its own for a full disk
        raise _unwritten(path, error) from error


def _read(path: Path, begins: Mapping[str, Any], device: torch.device, examples: Sequence[Example]) -> Rollouts:
    try:
        held = torch.load(path, map_location=device, weights_only=True)
        began, packed = json.loads(held["begins"]), held["rollouts"]
    except (RuntimeError, OSError, EOFError, UnpicklingError, KeyError, TypeError) as error:
        raise UserError(f"rollout.first_batch={path} is not readable as a first batch; remove it, and it is sampled anew") from error
    for key, value in json.loads(json.dumps(begins)).items():
        if began.get(key) != value:
            other = _DIGESTS.get(key, f"{key}={began.get(key)}, not {value}")
            raise UserError(f"rollout.first_batch={path} was sampled with {other}; remove the file, or leave rollout.first_batch out")
    rows = tuple(example for example in examples for _ in range(begins["rollout.per_prompt"]))
    return replace(unpack_rollouts(packed), examples=rows)
