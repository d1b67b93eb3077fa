"""Several teachers: each row goes to one of them by a column of the data, or all of them score it and their mixture teaches.

The mixture is that of probabilities, Σ_m w_m·q_m: it is a distribution that some teacher's samples come from, keeps what any of them
finds likely, and needs no normaliser. (A mean of log-probabilities is a product of experts, in which each teacher has a veto.)

Shapes: B sequences, C completion positions, H hidden, K likeliest tokens, M teachers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gkd_rl.errors import UserError
from gkd_rl.rollout.rows import score_tensors, take
from gkd_rl.teacher.local import Teacher
from gkd_rl.types import Example, Head, Heads, HiddenScores, MixtureScores, Rollouts, TeacherScores, TopKScores


class RoutedTeachers:
    """Each row is scored by the teacher that its column names."""

    def __init__(self, teachers: Mapping[str, Teacher], column: str) -> None:
        self.teachers = dict(teachers)
        self.column = column

    @property
    def head(self) -> Heads | None:
        """Heads of all teachers, in their order; None where they give top-k scores."""
        return _heads(self.teachers)

    def score(self, rollouts: Rollouts) -> TeacherScores:
        """Scores of all rows. Raises ``UserError`` for a row whose column names no teacher."""
        routes = [route_of(example, self.column, self.teachers) for example in rollouts.examples]
        rows_of = {name: _places(routes, name, rollouts.completion_ids.device) for name in self.teachers}
        parts = {name: teacher.score(take(rollouts, rows_of[name])) for name, teacher in self.teachers.items()}
        spread = [
            {key: _spread(value, rows_of[name], rollouts.completion_ids.shape) for key, value in score_tensors(part).items()}
            for name, part in parts.items()
        ]
        if all(isinstance(part, TopKScores) for part in parts.values()):
            return TopKScores(**{key: torch.stack([one[key] for one in spread]).sum(0) for key in spread[0]})
        hidden = [
            HiddenScores(one["hidden"], part.head)
            for one, part in zip(spread, parts.values(), strict=True)
            if isinstance(part, HiddenScores)
        ]
        assert len(hidden) == len(parts), "validate asks for teachers of one form"
        weights = torch.zeros(*rollouts.completion_ids.shape, len(parts), device=rollouts.completion_ids.device)
        for number, name in enumerate(self.teachers):
            weights[rows_of[name], :, number] = 1.0
        return MixtureScores(tuple(hidden), weights)


class MixedTeachers:
    """Every row is scored by all teachers; weights are normalised to 1."""

    def __init__(self, teachers: Mapping[str, Teacher], weights: Mapping[str, float]) -> None:
        self.teachers = dict(teachers)
        shares = torch.tensor([weights.get(name, 0.0) for name in teachers] if weights else [1.0] * len(teachers))
        self.shares = shares / shares.sum()

    @property
    def head(self) -> Heads | None:
        """Heads of all teachers, in their order."""
        return _heads(self.teachers)

    def score(self, rollouts: Rollouts) -> MixtureScores:
        """The hidden states of each, and their weights."""
        parts = [teacher.score(rollouts) for teacher in self.teachers.values()]
        hidden = tuple(part for part in parts if isinstance(part, HiddenScores))
        assert len(hidden) == len(parts), "validate asks for whole distributions"
        shares = self.shares.to(rollouts.completion_ids.device)
        return MixtureScores(hidden, shares.expand(*rollouts.completion_ids.shape, -1).contiguous())


def route_of(example: Example, column: str, known: Mapping[str, object]) -> str:
    """The teacher of an example. Raises ``UserError`` with the row's value and the known routes."""
    if column not in example.columns:
        raise UserError(
            f"teacher_routing.column is '{column}' but example {example.key} has no such column; it has "
            f"{', '.join(sorted(example.columns)) or 'none'}"
        )
    value = str(example.columns[column])
    if value not in known:
        raise UserError(
            f"teacher_routing: column '{column}' of example {example.key} is '{value}', for which there is no teacher; teachers has "
            f"{', '.join(known)}"
        )
    return value


def _places(routes: Sequence[str], name: str, device: torch.device) -> Tensor:
    return torch.tensor([row for row, route in enumerate(routes) if route == name], dtype=torch.long, device=device)


def _spread(part: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """Scores of some rows [b, c, ...] in their places among all [B, C, ...], zero elsewhere."""
    whole = part.new_zeros(*shape, *part.shape[2:])
    if len(rows):
        whole[rows, : part.shape[1]] = part
    return whole


def _heads(teachers: Mapping[str, Teacher]) -> Heads | None:
    heads = [teacher.head for teacher in teachers.values()]
    single = tuple(head for head in heads if isinstance(head, Head))
    return single if len(single) == len(heads) else None
