"""The embedded task: word problems made by this package, without end, with held-out problems that training never meets."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence

from gkd_rl.config.run import RewardConfig
from gkd_rl.errors import UserError
from gkd_rl.tasks.arithmetic_problems import MAX_LEVEL, Problem, make_problem, problems
from gkd_rl.tasks.base import as_prompt
from gkd_rl.types import Example


class ArithmeticTask:
    """Problems of the given ``levels`` (number of operations); ``held_out_levels`` may be harder ones."""

    metrics = ("majority_vote",)

    def __init__(
        self,
        levels: Sequence[int] = (1, 2, 3),
        held_out_levels: Sequence[int] | None = None,
        data_dir: str | None = None,
        prompt_format: str = "plain",
    ) -> None:
        del data_dir  # the generator needs no files
        self.levels = _checked(levels, "levels")
        self.held_out_levels = _checked(held_out_levels, "held_out_levels") if held_out_levels else self.levels
        self.prompt_format = prompt_format

    @property
    def train_size(self) -> int | None:
        return None

    def train_example(self, index: int) -> Example:
        digest = hashlib.blake2b(f"arithmetic/{self.levels}/{index}".encode(), digest_size=8).digest()
        rng = random.Random(digest)
        while (problem := make_problem(rng, rng.choice(self.levels))).held_out:
            pass
        return self._example(problem, index)

    def held_out(self, count: int) -> list[Example]:
        """The same problems for every seed, so that runs compare."""
        stream = itertools.islice(problems("test", 0, self.held_out_levels), count)
        return [self._example(problem, index) for index, problem in enumerate(stream)]

    def default_rewards(self) -> list[RewardConfig]:
        return [RewardConfig(path="reward_models.ArithmeticVerifier", name="correct")]

    def _example(self, problem: Problem, key: int) -> Example:
        return Example(
            prompt=as_prompt(problem.question, self.prompt_format),
            completion=problem.solution,
            columns={"reference": str(problem.answer), "level": problem.level},
            key=key,
        )


def _checked(levels: Sequence[int], name: str) -> tuple[int, ...]:
    if not levels or not all(isinstance(level, int) and 1 <= level <= MAX_LEVEL for level in levels):
        raise UserError(f"task.options.{name} is a list of whole numbers from 1 to {MAX_LEVEL}, not {list(levels)}")
    return tuple(levels)
