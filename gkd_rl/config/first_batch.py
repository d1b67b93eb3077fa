"""What the sampled answers of a run's first step depend on. Imports no torch."""

from __future__ import annotations

from typing import Any

from gkd_rl.config.run import Config
from gkd_rl.objective.schedule import value_at

_DRAWING = (
    *("prompts_per_step", "per_prompt", "mixing", "sampler", "max_new_tokens", "min_new_tokens", "temperature", "top_k", "top_p", "min_p"),
    *("stop", "stop_token_ids", "calculator"),
)
_WHOLE_STUDENT = ("path", "dtype", "trust_remote_code")
"""Adapters begin at 0 and frozen parts are as they were: neither changes what a student says at first."""


def first_batch_settings(config: Config) -> dict[str, Any]:
    """Dotted key → value, of all on which the sampled answers of the first step depend; λ is that of the first step."""
    rollout = config.rollout
    return {
        **{f"student.{name}": getattr(config.student, name) for name in _WHOLE_STUDENT},
        "seed": config.seed,
        "data_dir": config.data_dir,
        **{f"task.{name}": value for name, value in vars(config.task).items()},
        **{f"rollout.{name}": getattr(rollout, name) for name in _DRAWING},
        "rollout.on_policy_share": value_at(rollout.on_policy_share, rollout.on_policy_schedule, 0, config.max_steps),
    }
