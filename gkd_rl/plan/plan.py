"""A run's plan: work, memory and time, from its configuration and the sizes of its models. Nothing is downloaded but ``config.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from gkd_rl.config.run import Config
from gkd_rl.config.teachers import teacher_configs
from gkd_rl.config.validate import needs_teacher, validate
from gkd_rl.errors import UserError
from gkd_rl.objective.schedule import value_at
from gkd_rl.plan.activations import micro_batch_memory
from gkd_rl.plan.data import DataPlan, data_plan
from gkd_rl.plan.memory import Bytes, rank_memory, total, uses_reference
from gkd_rl.plan.sizes import ModelSize, student_size, teacher_sizes, without_adapter
from gkd_rl.run_log import flops


@dataclass(frozen=True)
class Plan:
    """What a run would take. None: unknown."""

    student: ModelSize
    teachers: dict[str, ModelSize]
    data: DataPlan
    epochs: float | None
    """None: the data is without end, or was not read"""
    ranks: int
    steps: int
    updates: int
    prompts: int
    """per step, like the three that follow"""
    completions: int
    sampled_completions: float
    tokens: float
    """read by teacher and student, of prompts and completions"""
    flops: dict[str, float | None]
    """of a step, by phase"""
    memory: dict[str, Bytes]
    """of one rank, by part"""
    flops_per_second: float
    """of one rank"""
    rate: str
    """where that number comes from"""

    @property
    def step_flops(self) -> float | None:
        return total(self.flops)

    @property
    def step_seconds(self) -> float | None:
        """FLOPs / (rate · ranks): of arithmetic alone. Decoding waits for memory, and ranks for each other."""
        return None if self.step_flops is None else self.step_flops / (self.flops_per_second * self.ranks)

    def as_json(self) -> dict[str, Any]:
        """One object with everything, totals of the run included."""
        sizes = {"student": self.student, **self.teachers}
        models = {key: {name: getattr(size, name) for name in ("path", "parameters", "trained", "source")} for key, size in sizes.items()}
        work, seconds = self.step_flops, self.step_seconds
        step = {name: getattr(self, name) for name in ("prompts", "completions", "sampled_completions", "tokens")}
        return {
            "models": models,
            "data": {**asdict(self.data), "epochs": self.epochs},
            "ranks": self.ranks,
            "steps": self.steps,
            "updates": self.updates,
            "step": {**step, "flops": work, **self.flops, "seconds": seconds},
            "run": {
                **{name: value * self.steps for name, value in step.items()},
                "flops": None if work is None else work * self.steps,
                "seconds": None if seconds is None else seconds * self.steps,
            },
            "memory_per_rank": {**self.memory, "total": total(self.memory)},
            "flops_per_second": self.flops_per_second,
            "flops_per_second_from": self.rate,
        }


def plan(config: Config, ranks: int, flops_per_second: float, rate: str) -> Plan:
    """The plan of ``config`` on ``ranks`` processes of which each reaches ``flops_per_second``, a number that comes from ``rate``.

    Raises ``UserError`` for what would be refused of configuration, models' folders and local data.
    """
    validate(config)
    if ranks < 1 or flops_per_second <= 0:
        raise UserError(f"--ranks is {ranks} and --flops-per-second {flops_per_second:g}; both must be above 0")
    student = student_size(config.student)
    teachers = teacher_sizes(config, student)
    data = data_plan(config)
    rollout = config.rollout
    completions = rollout.prompts_per_step * rollout.per_prompt
    return Plan(
        student=student,
        teachers=teachers,
        data=data,
        epochs=config.max_steps * rollout.prompts_per_step / data.examples if data.examples else None,
        ranks=ranks,
        steps=config.max_steps,
        updates=config.max_steps * rollout.passes * rollout.updates_per_pass,
        prompts=rollout.prompts_per_step,
        completions=completions,
        sampled_completions=completions * mean_share(config),
        tokens=completions * (data.prompt + data.completion),
        flops=_flops(config, student, teachers, completions, data),
        memory={
            **rank_memory(config, student, teachers, ranks, ceil(completions / ranks)),
            **micro_batch_memory(config, ceil(completions / ranks / rollout.updates_per_pass)),
        },
        flops_per_second=flops_per_second,
        rate=rate,
    )


def mean_share(config: Config) -> float:
    """λ, averaged over the run's steps (what waits for evaluations is not known beforehand: it is left out)."""
    start, schedule = config.rollout.on_policy_share, config.rollout.on_policy_schedule
    if schedule.kind in ("constant", "plateau", "adaptive"):
        return start
    return sum(value_at(start, schedule, step, config.max_steps) for step in range(config.max_steps)) / config.max_steps


def _flops(config: Config, student: ModelSize, teachers: dict[str, ModelSize], completions: int, data: DataPlan) -> dict[str, float | None]:
    """As a run counts them (``run_log.flops``)."""
    rollout = config.rollout
    sampled = completions * mean_share(config) * (data.prompt / rollout.per_prompt + data.completion)
    scoring = _scoring(config, student, teachers)
    known = student.parameters or 0.0, student.trained or 0.0, scoring or 0.0
    counted = flops(*known, sampled, completions * (data.prompt + data.completion), rollout.passes)
    unknown = {
        "flops_generation": student.parameters is None,
        "flops_teacher": scoring is None,
        "flops_student": None in (student.parameters, student.trained),
    }
    return {name: None if unknown[name] else value for name, value in counted.items()}


def _scoring(config: Config, student: ModelSize, teachers: dict[str, ModelSize]) -> float | None:
    """Parameters that read each row beside the student: teachers in the process (rows routed to one of several: their mean), reference."""
    sizes = [teachers[key].parameters for key in teacher_configs(config)] if needs_teacher(config) else []
    if uses_reference(config):
        sizes.append(without_adapter(config, student))
    if None in sizes:
        return None
    known = [size for size in sizes if size is not None]
    routed = config.teacher_routing.column is not None and teachers
    return sum(known) / len(teachers) if routed else sum(known)
