"""What is logged of rollouts: their health, and the rows of ``rollouts.jsonl``. Shapes: B sequences, C completion positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from gkd_rl.processes import Processes
from gkd_rl.types import Experience, ObjectiveResult, Rollouts, TopChoices

_COVERED = 0.999
"""Probability beyond which no further choice is logged: most tokens are all but certain."""


def rollout_health(experience: Experience, processes: Processes) -> dict[str, float]:
    """Means over the sampled rows of all ranks: reward and components, length, truncation, groups with no signal, distinct bigrams."""
    rollouts = experience.rollouts
    on = rollouts.on_policy
    length = rollouts.completion_mask.sum(1)
    sums = {
        "rows": float(on.sum()),
        "rewarded": float((~experience.rewards.isnan()).sum()),
        "reward": float(experience.rewards.nansum()),
        "length": float(length[on].sum()),
        "truncated": float((~rollouts.ended[on]).sum()),
        "advantage_square": float(experience.advantages.square().sum()),
        "flat": float(((experience.advantages == 0) & on).sum()),
        **_bigrams(experience),
    }
    for name, values in experience.components.items():
        sums[f"reward_{name}"] = float(values.nansum())
        sums[f"count_{name}"] = float((~values.isnan()).sum())
    sums = processes.sum(sums)
    rows, rewarded = max(sums["rows"], 1.0), max(sums["rewarded"], 1.0)
    figures = {
        "reward": sums["reward"] / rewarded,
        "length": sums["length"] / rows,
        "truncated": sums["truncated"] / rows,
        "advantage_rms": math.sqrt(sums["advantage_square"] / rewarded),
        "rows_without_advantage": sums["flat"] / rows,
        "distinct_2": sums["distinct"] / max(sums["bigrams"], 1.0),
    }
    for name in experience.components:
        figures[f"reward_{name}"] = sums[f"reward_{name}"] / max(sums[f"count_{name}"], 1.0)
    return figures if sums["rows"] else {}


def step_flops(
    rollouts: Rollouts, student: int, trained: int, scoring: int, passes: int, per_prompt: int, processes: Processes
) -> dict[str, float]:
    """``flops`` of a step over all ranks. Generation reads a prompt once for its whole group."""
    prompts, completions = rollouts.prompt_mask.sum(1), rollouts.completion_mask.sum(1)
    sampled = float((prompts / per_prompt + completions)[rollouts.on_policy].sum())
    tokens = float((prompts + completions).sum())
    return processes.sum(flops(student, trained, scoring, sampled, tokens, passes))


def flops(student: float, trained: float, scoring: float, sampled: float, tokens: float, passes: int) -> dict[str, float]:
    """Floating-point operations of generating ``sampled`` tokens, and of scoring and training on ``tokens``: 2 for each parameter and
    token forward, 2 backward, and 2 more for each that is trained; attention is left out.

    ``student``, ``trained`` and ``scoring`` are numbers of parameters: the student's, those of them that are trained, and those of teacher
    and reference together.
    """
    return {
        "flops_generation": 2.0 * student * sampled,
        "flops_teacher": 2.0 * scoring * tokens,
        "flops_student": (4.0 * student + 2.0 * trained) * tokens * passes,
    }


def _bigrams(experience: Experience) -> dict[str, float]:
    """Bigrams within completions, and the distinct ones among them: loops make the share fall."""
    distinct = total = 0
    rollouts = experience.rollouts
    for ids, mask in zip(rollouts.completion_ids.tolist(), rollouts.completion_mask.sum(1).tolist(), strict=True):
        pairs = list(pairwise(ids[:mask]))
        distinct, total = distinct + len(set(pairs)), total + len(pairs)
    return {"distinct": float(distinct), "bigrams": float(total)}


def rollout_rows(step: int, records: Sequence[tuple[Experience, ObjectiveResult]]) -> list[dict[str, Any]]:
    """One row per completion: texts, rewards, and per token the id, the student's log-probability, the divergence and, where they are
    kept, the likeliest tokens of student and teacher as ``[id, probability]``; of tokens that a calculator inserted, the id alone."""
    rows: list[dict[str, Any]] = []
    for experience, result in records:
        rollouts = experience.rollouts
        counts = rollouts.completion_mask.sum(1).tolist()
        inserted = [row[:count] for row, count in zip(rollouts.inserted.tolist(), counts, strict=True)]
        chosen = [len(row) - sum(row) for row in inserted]
        figures = {"logprobs": result.token_logprobs, "divergence": result.token_divergence}
        numbers = {name: [[_number(x, 4) for x in part.tolist()] for part in values.split(chosen)] for name, values in figures.items()}
        tops = {"student_top": result.student_top, "teacher_top": result.teacher_top}
        choices = {name: _choices(top, chosen) for name, top in tops.items() if top is not None}
        for i, example in enumerate(rollouts.examples):
            rows.append(
                {
                    "step": step,
                    "example": example.key,
                    "prompt": example.prompt if isinstance(example.prompt, str) else [dict(m) for m in example.prompt],
                    "completion": rollouts.texts[i],
                    "columns": dict(example.columns),
                    "on_policy": bool(rollouts.on_policy[i]),
                    "version": int(rollouts.version[i]),
                    "reward": _number(experience.rewards[i].item()),
                    "rewards": {name: _number(values[i].item()) for name, values in experience.components.items()},
                    "advantage": round(experience.advantages[i].item(), 5),
                    "tokens": rollouts.completion_ids[i, : counts[i]].tolist(),
                    **{name: _around(per_row[i], inserted[i], None) for name, per_row in numbers.items()},
                    **{name: _around(per_row[i], inserted[i], []) for name, per_row in choices.items()},
                }
            )
    return rows


def _around(values: Sequence[Any], inserted: Sequence[bool], nothing: Any) -> list[Any]:
    """Values of a row's tokens but the inserted ones, with ``nothing`` at these."""
    rest = iter(values)
    return [nothing if skipped else next(rest) for skipped in inserted]


def _choices(top: TopChoices, counts: Sequence[int]) -> list[list[list[list[float]]]]:
    """Per row and token the likeliest tokens with their probabilities, as many as hold ``_COVERED`` of it at most."""
    kept = (top.probabilities.cumsum(-1) - top.probabilities < _COVERED).sum(-1).tolist()
    ids, probabilities = top.ids.tolist(), top.probabilities.tolist()
    tokens = [
        [[number, round(p, 4)] for number, p in zip(row[:most], values[:most], strict=True)]
        for row, values, most in zip(ids, probabilities, kept, strict=True)
    ]
    ends = list(accumulate(counts))
    return [tokens[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _number(value: float, digits: int = 5) -> float | None:
    return round(value, digits) if math.isfinite(value) else None
