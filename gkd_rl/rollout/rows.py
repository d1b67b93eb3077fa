"""Picking, joining and cutting the rows of experiences. Every function returns new records; stored tensors are never written to.

Shapes: B sequences, P prompt positions, C completion positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from gkd_rl.rollout.cutting import Size, cut, padded
from gkd_rl.types import (
    Experience,
    Gates,
    Head,
    Heads,
    HiddenScores,
    MatchedHead,
    MixtureScores,
    Rollouts,
    SpanScores,
    SpanTopKScores,
    TeacherScores,
    TopKScores,
)

_PROMPT_WIDE = ("prompt_ids", "prompt_mask")
_COMPLETION_WIDE = ("completion_ids", "completion_mask", "logprobs", "sampler_logprobs", "inserted")


def lengths(rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """Valid prompt and completion tokens of each row, [B] and [B]."""
    return rollouts.prompt_mask.sum(1), rollouts.completion_mask.sum(1)


def chosen_tokens(rollouts: Rollouts) -> Tensor:
    """[B, C] bool: the tokens that terms of the objective are about: valid ones that no calculator inserted."""
    return rollouts.completion_mask & ~rollouts.inserted


def take(rollouts: Rollouts, rows: Tensor) -> Rollouts:
    """Those rows, with the padding that they share cut away."""
    prompt, completion = (int(n[rows].max()) if len(rows) else 1 for n in lengths(rollouts))
    changed: dict[str, object] = {}
    for item in fields(rollouts):
        value = getattr(rollouts, item.name)
        if item.name in _PROMPT_WIDE:
            changed[item.name] = value[rows, value.shape[1] - max(prompt, 1) :]
        elif item.name in _COMPLETION_WIDE:
            changed[item.name] = value[rows, : max(completion, 1)]
        elif isinstance(value, Tensor):
            changed[item.name] = value[rows]
        else:
            changed[item.name] = tuple(value[i] for i in rows.tolist()) if value else ()
    return Rollouts(**changed)  # pyright: ignore[reportArgumentType]


def take_experience(experience: Experience, rows: Tensor) -> Experience:
    """Those rows of an experience, with the padding that they share cut away."""
    rollouts = take(experience.rollouts, rows)
    width = rollouts.completion_ids.shape[1]
    gates = experience.gates
    return Experience(
        rollouts=rollouts,
        rewards=experience.rewards[rows],
        components={name: values[rows] for name, values in experience.components.items()},
        advantages=experience.advantages[rows],
        teacher=_take_scores(experience.teacher, rows, width),
        reference=_take_scores(experience.reference, rows, width),
        gates=None if gates is None else Gates(gates.reward[rows], gates.divergence[rows]),
    )


def on_device(experience: Experience, device: torch.device) -> Experience:
    """The same rows with their tensors on ``device``; the teacher's head stays where it is."""
    moved = {
        item.name: value.to(device) if isinstance(value := getattr(experience.rollouts, item.name), Tensor) else value
        for item in fields(experience.rollouts)
    }
    gates = experience.gates
    return Experience(
        rollouts=Rollouts(**moved),  # pyright: ignore[reportArgumentType]
        rewards=experience.rewards.to(device),
        components={name: values.to(device) for name, values in experience.components.items()},
        advantages=experience.advantages.to(device),
        teacher=_scores_on(experience.teacher, device),
        reference=_scores_on(experience.reference, device),
        gates=None if gates is None else Gates(gates.reward.to(device), gates.divergence.to(device)),
    )


def _scores_on(scores: TeacherScores | None, device: torch.device) -> TeacherScores | None:
    return None if scores is None else _with_tensors(scores, {name: value.to(device) for name, value in score_tensors(scores).items()})


def join(parts: Sequence[Rollouts], pad: int) -> Rollouts:
    """One batch from several, padded to a common width."""
    if len(parts) == 1:
        return parts[0]
    changed: dict[str, object] = {}
    for item in fields(parts[0]):
        values = [getattr(part, item.name) for part in parts]
        fill = pad if item.name.endswith("_ids") else 0
        if item.name in _PROMPT_WIDE or item.name in _COMPLETION_WIDE:
            changed[item.name] = _join_wide(values, fill, left=item.name in _PROMPT_WIDE)
        elif isinstance(values[0], Tensor):
            changed[item.name] = torch.cat(values)
        else:
            changed[item.name] = tuple(entry for value in values for entry in value)
    return Rollouts(**changed)  # pyright: ignore[reportArgumentType]


def join_experiences(parts: Sequence[Experience], pad: int) -> Experience:
    """One experience from several whose teachers share one head."""
    if len(parts) == 1:
        return parts[0]
    gates = [part.gates for part in parts if part.gates is not None]
    return Experience(
        rollouts=join([part.rollouts for part in parts], pad),
        rewards=torch.cat([part.rewards for part in parts]),
        components=_join_components([part.components for part in parts]),
        advantages=torch.cat([part.advantages for part in parts]),
        teacher=_join_scores([part.teacher for part in parts]),
        reference=_join_scores([part.reference for part in parts]),
        gates=Gates(torch.cat([g.reward for g in gates]), torch.cat([g.divergence for g in gates])) if gates else None,
    )


def micro_batches(experience: Experience, token_budget: int, one_sequence: bool = False) -> list[Experience]:
    """Cut into micro-batches of at most ``token_budget`` padded tokens each (a longer single row goes alone), rows of like lengths
    together.

    ``one_sequence``: prompt and completion are padded together (``LanguageModel.one_sequence``), not each for itself.
    """
    device = experience.rewards.device
    cuts = cut(_padded_sizes(experience, one_sequence), token_budget)
    return [take_experience(experience, torch.tensor(rows, device=device)) for rows in cuts]


def _padded_sizes(experience: Experience, one_sequence: bool) -> list[Size]:
    """Of each row, the lengths that are padded apart: (prompt, completion), or their sum alone."""
    prompt, completion = (n.tolist() for n in lengths(experience.rollouts))
    return [(p + c,) for p, c in zip(prompt, completion, strict=True)] if one_sequence else list(zip(prompt, completion, strict=True))


def padding_share(parts: Sequence[Experience], one_sequence: bool = False) -> float:
    """Share of the positions that a model goes through which hold no token."""
    sizes = [_padded_sizes(part, one_sequence) for part in parts]
    total = sum(padded(range(len(rows)), rows) for rows in sizes)
    valid = sum(sum(row) for rows in sizes for row in rows)
    return 1.0 - valid / total if total else 0.0


def _take_scores(scores: TeacherScores | None, rows: Tensor, width: int) -> TeacherScores | None:
    if scores is None:
        return None
    return _with_tensors(scores, {name: value[rows, :width] for name, value in score_tensors(scores).items()})


def score_tensors(scores: TeacherScores) -> dict[str, Tensor]:
    """The tensors [B, C, ...] of a teacher's scores by name; heads are their owner's."""
    if isinstance(scores, MixtureScores):
        return {"weights": scores.weights, **{f"hidden_{number}": part.hidden for number, part in enumerate(scores.parts)}}
    return {item.name: value for item in fields(scores) if isinstance(value := getattr(scores, item.name), Tensor)}


def scores_of(tensors: Mapping[str, Tensor], heads: Heads | None) -> TeacherScores:
    """From what ``score_tensors`` gave, and the heads that belong to it, back to scores."""
    if isinstance(heads, MatchedHead):
        return SpanScores(**tensors, matched=heads)
    if "starts" in tensors:
        return SpanTopKScores(**tensors)
    if "logprobs" in tensors:
        return TopKScores(**tensors)
    if isinstance(heads, Head):
        return HiddenScores(tensors["hidden"], heads)
    assert heads is not None, "hidden states need their heads"
    return MixtureScores(tuple(HiddenScores(tensors[f"hidden_{n}"], head) for n, head in enumerate(heads)), tensors["weights"])


def _with_tensors(scores: TeacherScores, tensors: Mapping[str, Tensor]) -> TeacherScores:
    if isinstance(scores, MixtureScores):
        return scores_of(tensors, tuple(part.head for part in scores.parts))
    if isinstance(scores, SpanScores):
        return scores_of(tensors, scores.matched)
    return scores_of(tensors, scores.head if isinstance(scores, HiddenScores) else None)


def _join_scores(parts: Sequence[TeacherScores | None]) -> TeacherScores | None:
    scores = [part for part in parts if part is not None]
    assert len(scores) in (0, len(parts))
    if not scores:
        return None
    tensors = [score_tensors(part) for part in scores]
    assert len({tuple(part) for part in tensors}) == 1, "scores of one form"
    return _with_tensors(scores[0], {name: _join_wide([part[name] for part in tensors], 0, left=False) for name in tensors[0]})


def _join_wide(values: Sequence[Tensor], fill: int, left: bool) -> Tensor:
    width = max(value.shape[1] for value in values)
    padded = []
    for value in values:
        out = value.new_full((value.shape[0], width, *value.shape[2:]), fill)
        start = width - value.shape[1] if left else 0
        out[:, start : start + value.shape[1]] = value
        padded.append(out)
    return torch.cat(padded)


def _join_components(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
