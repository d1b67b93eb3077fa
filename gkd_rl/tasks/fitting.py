"""Rows that do not fit the limits: refused (by the run itself), left out, or cut; always with a count of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from gkd_rl.config.run import Config, RewardConfig
from gkd_rl.errors import UserError
from gkd_rl.models.tokenizers import completion_tokens, prompt_tokens
from gkd_rl.tasks.base import Task, cut_column, metric_names, training_example
from gkd_rl.types import Example, Message


def fit(task: Task, config: Config, tokenizer: PreTrainedTokenizerBase) -> Task:
    """``task`` without rows that are too long, or with their prompts cut, as ``task.long_prompts`` and ``task.long_completions`` say.

    A task without end stays as it is where rows are to be left out: the run does that as it meets them.
    Raises ``UserError`` where a prompt is to be cut and the task does not say in which part of it.
    """
    drops = "drop" in (config.task.long_prompts, config.task.long_completions)
    return FittedTask(task, config, tokenizer) if drops or config.task.long_prompts == "truncate" else task


def uses_completions(config: Config) -> bool:
    """Whether the dataset's completions are trained on."""
    return config.rollout.on_policy_share < 1 and config.rollout.completions == "dataset"


class FittedTask:
    """A task whose rows fit; see ``fit``."""

    def __init__(self, task: Task, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        self.task, self.config, self.tokenizer = task, config, tokenizer
        self.metrics = metric_names(task)
        self.column = cut_column(task)
        if config.task.long_prompts == "truncate" and self.column is None:
            raise UserError(
                f"task.long_prompts is 'truncate', but {config.task.path} does not say which part of a prompt may be cut; set it to "
                "drop or error"
            )
        self.cut: dict[str, set[int]] = {"training": set(), "held-out": set()}
        """Examples, by their numbers, whose prompts were cut"""
        self.seen = 0
        """Held-out examples"""
        self.said: list[str] = []
        self.places = self._fitting() if task.train_size is not None else None

    @property
    def train_size(self) -> int | None:
        return self.task.train_size if self.places is None else len(self.places)

    def train_example(self, index: int) -> Example:
        example = self._cut(training_example(self.task, index if self.places is None else self.places[index]))
        return replace(example, key=index)

    def held_out(self, count: int) -> list[Example]:
        examples = [self._cut(example, "held-out") for example in self.task.held_out(count)]
        self.seen = len(examples)
        if self.config.task.long_prompts != "drop":
            return examples
        kept = [example for example in examples if self._tokens(example.prompt) <= self.config.task.max_prompt_tokens]
        self._say_left_out(len(examples) - len(kept), len(examples), "held-out")
        return kept

    def default_rewards(self) -> list[RewardConfig]:
        return self.task.default_rewards()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out or cut, in sentences."""
        whole = {"training": self.train_size, "held-out": self.seen}
        limit = f"task.max_prompt_tokens={self.config.task.max_prompt_tokens}"
        cut = [f"{len(keys)} of {whole[kind]} {kind} prompts are cut to {limit}" for kind, keys in self.cut.items() if keys]
        return (*getattr(self.task, "notes", ()), *self.said, *cut)

    def _fitting(self) -> Sequence[int]:
        """Numbers of the training examples that fit; as many as ``task.train_examples`` asks for."""
        size = self.task.train_size or 0
        wanted = self.config.task.train_examples or size
        if "drop" not in (self.config.task.long_prompts, self.config.task.long_completions):
            return range(min(size, wanted))
        kept: list[int] = []
        seen = 0
        while seen < size and len(kept) < wanted:
            kept += [seen] if self._fits(training_example(self.task, seen)) else []
            seen += 1
        self._say_left_out(seen - len(kept), seen, "training")
        return kept

    def _fits(self, example: Example) -> bool:
        settings, limit = self.config.task, self.config.rollout.max_new_tokens
        if settings.long_prompts == "drop" and self._tokens(example.prompt) > settings.max_prompt_tokens:
            return False
        checked = settings.long_completions == "drop" and uses_completions(self.config)
        return not checked or len(completion_tokens(self.tokenizer, example, None)) <= limit

    def _say_left_out(self, count: int, whole: int, kind: str) -> None:
        if count:
            task, limits = self.config.task, []
            if task.long_prompts == "drop":
                limits.append(f"task.max_prompt_tokens={task.max_prompt_tokens}")
            if kind == "training" and task.long_completions == "drop":
                limits.append(f"rollout.max_new_tokens={self.config.rollout.max_new_tokens}")
            self.said.append(f"{count} of {whole} {kind} rows are over {' or '.join(limits)} and are left out")

    def _tokens(self, prompt: str | Sequence[Message]) -> int:
        return len(prompt_tokens(self.tokenizer, prompt))

    def _cut(self, example: Example, kind: str = "training") -> Example:
        limit = self.config.task.max_prompt_tokens
        if self.config.task.long_prompts != "truncate" or self._tokens(example.prompt) <= limit:
            return example
        assert self.column is not None
        self.cut[kind].add(example.key)
        return replace(example, prompt=self._shortened(example, self.column, limit))

    def _shortened(self, example: Example, column: str, limit: int) -> str | Sequence[Message]:
        """The prompt with as many whole words of the column's text, from its beginning, as the limit has room for."""
        text = example.columns.get(column)
        if not isinstance(text, str) or not any(text in part for part in _texts(example.prompt)):
            raise UserError(
                f"the prompt of example {example.key} is too long and does not hold column '{column}' as it is, so it cannot be cut"
            )
        low, high = 0, len(text)  # characters that fit, and that do not
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._tokens(_with(example.prompt, text, text[:middle])) <= limit
            low, high = (middle, high) if fits else (low, middle)
        kept = text[:low]
        if not text[low].isspace() and kept[-1:].strip():  # within a word
            kept = kept[: -len(kept.split()[-1])]
        while kept.strip() and self._tokens(prompt := _with(example.prompt, text, kept.rstrip())) > limit:  # fewer letters, more tokens
            kept = kept.rstrip()[: -len(kept.split()[-1])]
        if not kept.strip():
            raise UserError(
                f"the prompt of example {example.key} is over task.max_prompt_tokens={limit} even without its column '{column}'; raise it"
            )
        return prompt  # pyright: ignore[reportPossiblyUnboundVariable]


def _texts(prompt: str | Sequence[Message]) -> Iterable[str]:
    return [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]


def _with(prompt: str | Sequence[Message], old: str, new: str) -> str | Sequence[Message]:
    """The prompt with the last place of ``old`` in it replaced."""
    if isinstance(prompt, str):
        before, _, after = prompt.rpartition(old)
        return f"{before}{new}{after}"
    place = max(i for i, message in enumerate(prompt) if old in message["content"])
    changed = {**prompt[place], "content": _with(prompt[place]["content"], old, new)}
    return [*prompt[:place], changed, *prompt[place + 1 :]]  # pyright: ignore[reportReturnType]
