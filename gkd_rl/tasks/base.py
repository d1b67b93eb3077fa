"""What a task is, and how one is made from a configuration."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

from gkd_rl.config.run import Config, RewardConfig
from gkd_rl.errors import UserError
from gkd_rl.types import Example, Message
from reward_models.errors import InputError
from reward_models.loading import load_object


class Task(Protocol):
    """Yields examples, and names the rewards by which they are judged in training and evaluation alike."""

    @property
    def train_size(self) -> int | None:
        """Number of different training examples; None: without end."""
        ...

    def train_example(self, index: int) -> Example:
        """The ``index``-th training example (below ``train_size``); a pure function, so that a run resumes anywhere."""
        ...

    def held_out(self, count: int) -> list[Example]:
        """The first ``count`` held-out examples (fewer if there are no more)."""
        ...

    def default_rewards(self) -> list[RewardConfig]:
        """Rewards used where the configuration names none. The first decides accuracy: its answer is right where it gives 1."""
        ...


def make_task(config: Config) -> Task:
    """The task that ``config.task`` names, made with ``data_dir``, ``prompt_format`` and its own options."""
    options = {"data_dir": config.data_dir, "prompt_format": config.task.prompt_format, **config.task.options}
    task = load_object(config.task.path, options, kind="task")
    missing = [name for name in ("train_example", "held_out", "default_rewards") if not hasattr(task, name)]
    if missing:
        raise UserError(f"task.path: {config.task.path} is not a task: it has no {missing[0]}()")
    return task  # pyright: ignore[reportReturnType]


def metric_names(task: Task) -> tuple[str, ...]:
    """Corpus metrics that a task names in ``metrics``, which it need not have."""
    return tuple(getattr(task, "metrics", ()))


def cut_column(task: Task) -> str | None:
    """Column of the text that may be cut in a task's prompts, which it names in ``cut``; None: there is none."""
    return getattr(task, "cut", None)


def as_prompt(text: str, prompt_format: str, plain: str = "{text}\n", system: str | None = None) -> str | Sequence[Message]:
    """``text`` in the task's plain template, or as chat messages for the tokenizer's own template."""
    if prompt_format == "plain":
        return plain.format(text=text)
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": text}]


def stream_example(task: Task, index: int, seed: int, limit: int = 0) -> Example:
    """Example at place ``index`` of an endless stream: shuffled epochs over the task's examples (over the first ``limit`` of them).

    Tasks without end are read in an order of their own for each seed. The key of the example is its place in the stream. Raises
    ``UserError`` where the task fails.
    """
    size = min(limit, task.train_size or limit) if limit else task.train_size
    if size is None:
        return replace(training_example(task, (seed << 32) + index), key=index)
    epoch, place = divmod(index, size)
    return replace(training_example(task, _order(size, seed, epoch)[place]), key=index)


def training_example(task: Task, index: int) -> Example:
    """The task's own ``index``-th training example. Raises ``UserError`` with the index where the task fails."""
    try:
        return task.train_example(index)
    except (UserError, InputError):
        raise
    except Exception as error:
        raise UserError(
            f"task.path: {type(task).__name__}.train_example({index}) failed ({type(error).__name__}: {error}); mend the task, or what it "
            "reads (resume=auto continues a run that had begun)"
        ) from error


@lru_cache(maxsize=4)
def _order(rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(repr((rows, seed, epoch)).encode(), digest_size=8).digest()
    order = list(range(rows))
    random.Random(digest).shuffle(order)
    return tuple(order)
