"""What a plan can say of the data: how many examples there are, and how long they are, where files and tokenizer are at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from gkd_rl.config.run import Config
from gkd_rl.errors import UserError
from gkd_rl.models.source import resolve
from gkd_rl.models.tokenizers import completion_tokens, load_tokenizer, prompt_tokens
from gkd_rl.tasks.base import make_task
from gkd_rl.tasks.sources import HUB
from gkd_rl.types import Example
from reward_models.errors import InputError

SEEN = 256
"""Examples whose lengths are measured at most."""


@dataclass(frozen=True)
class DataPlan:
    """The task's data, as far as it is known without loading anything from a hub."""

    said: str
    examples: int | None
    """Number of different training examples; None: without end, or not read"""
    prompt: float
    completion: float
    """tokens: means, or the longest allowed where they could not be measured"""
    lengths: str
    """which of the two"""


def data_plan(config: Config) -> DataPlan:
    """Read what is local. Raises ``UserError`` for data that is there and cannot be used."""
    longest = float(config.task.max_prompt_tokens), float(config.rollout.max_new_tokens)
    unmeasured = "the longest allowed"
    if _names_hub(config.task.options):
        return DataPlan("of the hub, not loaded for a plan", None, *longest, unmeasured)
    try:
        task = make_task(config)
    except (UserError, InputError) as error:
        if config.data_dir is not None:
            raise
        return DataPlan(f"not read: {error}", None, *longest, unmeasured)
    whole = task.train_size
    examples = config.task.train_examples or None if whole is None else min(whole, config.task.train_examples or whole)
    said = "without end" if whole is None else "read"
    try:
        tokenizer = load_tokenizer(resolve(config.student.path, "student.path"), "student.path", config.student.trust_remote_code)
    except UserError:
        return DataPlan(said, examples, *longest, unmeasured)
    seen = [task.train_example(i) for i in range(min(whole or SEEN, SEEN))]
    return DataPlan(said, examples, *_means(config, tokenizer, seen), f"means of {len(seen)} training examples")


def _means(config: Config, tokenizer: PreTrainedTokenizerBase, seen: list[Example]) -> tuple[float, float]:
    """Mean tokens of prompts, and of the dataset's completions (the longest allowed where there are none)."""
    limit, room = config.task.max_prompt_tokens, config.rollout.max_new_tokens
    prompts = [len(prompt_tokens(tokenizer, example.prompt)) for example in seen]
    if config.task.long_prompts == "drop":
        prompts = [length for length in prompts if length <= limit]
    answers = [min(room, len(completion_tokens(tokenizer, e, None))) for e in seen if e.completion is not None]
    prompt = sum(min(limit, length) for length in prompts) / len(prompts) if prompts else float(limit)
    return prompt, sum(answers) / len(answers) if answers else float(room)


def _names_hub(value: Any) -> bool:
    if isinstance(value, str):
        return value.startswith(HUB)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return any(_names_hub(part) for part in parts)
