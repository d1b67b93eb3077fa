"""The parts of a run, made one by one as checks ask for them, so that one that cannot be made leaves the others to be checked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from gkd_rl.build import check_context, load_student, make_backend, make_reference, make_sampler, task_rewards
from gkd_rl.config.run import Config
from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.models.lora import has_lora
from gkd_rl.models.source import resolve
from gkd_rl.models.tokenizers import load_tokenizer, prompt_tokens
from gkd_rl.models.trained import mark_trained
from gkd_rl.preflight.finding import Unavailable
from gkd_rl.processes import Processes
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.sampler import Sampler
from gkd_rl.run_folder import nearest_folder
from gkd_rl.tasks.base import Task, make_task, training_example
from gkd_rl.tasks.fitting import fit
from gkd_rl.teacher.build import Teaching, build_teaching
from gkd_rl.teacher.local import LocalTeacher
from gkd_rl.types import Example, Rollouts
from reward_models.combine import WeightedSum

PROMPTS = 16
"""Real prompts that models are tried on."""
LONGEST = 32
"""Tokens of an answer to one of them."""
SEEN = 1000
"""Training examples looked at of a task that has more."""

Part = TypeVar("Part")


class Trial:
    """``config`` with the parts that it describes. What a part leaves on the disk goes to a folder that ``close`` removes."""

    def __init__(self, config: Config, ranks: int = 1) -> None:
        """``ranks``: processes that the run is meant to have."""
        self.config = config
        self.ranks = ranks
        self._made: dict[str, Any] = {}
        self._failed: set[str] = set()

    def close(self) -> None:
        if "scratch" in self._made:
            shutil.rmtree(self._made["scratch"], ignore_errors=True)

    def _once(self, what: str, make: Callable[[], Part]) -> Part:
        """The part, made at its first use. Raises ``Unavailable`` at later ones if it could not be made."""
        if what in self._failed:
            raise Unavailable(what)
        if what not in self._made:
            try:
                self._made[what] = make()
            except Exception:
                self._failed.add(what)
                raise
        return self._made[what]

    @property
    def source(self) -> str:
        return self._once("the student's files", lambda: resolve(self.config.student.path, "student.path"))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        trust = self.config.student.trust_remote_code
        return self._once("the student's tokenizer", lambda: load_tokenizer(self.source, "student.path", trust))

    @property
    def settings(self) -> PreTrainedConfig:
        """The student's ``config.json``."""

        def read() -> PreTrainedConfig:
            try:
                return AutoConfig.from_pretrained(self.source, trust_remote_code=self.config.student.trust_remote_code)
            except (OSError, ValueError) as error:
                raise UserError(f"student.path: {self.source} could not be read: {str(error).strip().splitlines()[0]}") from None

        return self._once("the student's config.json", read)

    @property
    def task(self) -> Task:
        return self._once("the task", lambda: make_task(self.config))

    @property
    def held_out(self) -> list[Example]:
        def examples() -> list[Example]:
            found = self.task.held_out(self.config.evaluation.examples)
            if not found or self.task.train_size == 0:
                kind = "training" if found else "held-out"
                raise UserError(f"task.path: {self.config.task.path} has no {kind} examples; give it some")
            return found

        return self._once("held-out examples", examples)

    @property
    def training(self) -> list[Example]:
        """At most ``SEEN`` training examples, evenly spaced over those that the run uses."""

        def examples() -> list[Example]:
            whole = self.task.train_size
            limit = self.config.task.train_examples
            size = limit or SEEN if whole is None else min(whole, limit or whole)
            count = min(size, SEEN)
            return [training_example(self.task, i * size // count) for i in range(count)]

        return self._once("training examples", examples)

    @property
    def rewards(self) -> tuple[WeightedSum, WeightedSum]:
        """What is rewarded, and what decides whether an answer is right."""
        asked = None if self.config.rewards is None else [replace(one, cache=False) for one in self.config.rewards]
        return self._once("the rewards", lambda: task_rewards(replace(self.config, rewards=asked), self.task))

    @property
    def scratched(self) -> Config:
        """The configuration with a folder beside the run's in its place: what is written goes there."""

        def folder() -> str:
            return tempfile.mkdtemp(prefix=".gkd-rl-check-", dir=nearest_folder(Path(self.config.run_dir)))

        return replace(self.config, run_dir=self._once("scratch", folder))

    @property
    def processes(self) -> Processes:
        return self._once("this process", lambda: Processes(self.config.engine.threads, self.config.engine.timeout))

    @property
    def student(self) -> LanguageModel:
        def load() -> LanguageModel:
            model = load_student(self.config, self.source, "student.path", self.processes)
            check_context(self.config, model.module.config)
            mark_trained(model.module, self.config.student, self.config.seed)
            return model

        return self._once("the student", load)

    @property
    def adapted(self) -> LanguageModel | None:
        return self.student if has_lora(self.student.module) else None

    @property
    def teaching(self) -> Teaching:
        return self._once("the teacher", lambda: build_teaching(self.config, self.processes, self.tokenizer, self.adapted))

    @property
    def reference(self) -> LocalTeacher | None:
        make = lambda: make_reference(self.config, self.processes, self.source, "student.path", self.adapted)
        return self._once("the reference", make)

    @property
    def sampler(self) -> Sampler:
        def make() -> Sampler:
            backend = make_backend(self.scratched, self.processes) if self.config.rollout.sampler == "vllm" else None
            sampler = make_sampler(self.config, self.processes, self.student, backend)
            sampler.sync(0)
            return sampler

        return self._once("the sampler", make)

    @property
    def prompts(self) -> list[Example]:
        """A few training examples whose prompts fit."""

        def fitting() -> list[Example]:
            task, limit = fit(self.task, self.config, self.tokenizer), self.config.task.max_prompt_tokens
            count = min(task.train_size or SEEN, SEEN)
            found: list[Example] = []
            for example in (training_example(task, i) for i in range(count)):
                if 0 < len(prompt_tokens(self.tokenizer, example.prompt)) <= limit:
                    found.append(example)
                if len(found) == PROMPTS:
                    break
            if not found:
                raise UserError(f"none of {count} prompts is within task.max_prompt_tokens={limit}; raise it")
            return found

        return self._once("prompts that fit", fitting)

    @property
    def rollouts(self) -> Rollouts:
        """One answer to each of ``prompts``, drawn by the run's sampler from the student itself: temperature 1, nothing cut away."""
        params = SamplingParams(min(self.config.rollout.max_new_tokens, LONGEST))
        return self._once("sampled answers", lambda: self.sampler.sample(self.prompts, 1, params, self.config.seed))
