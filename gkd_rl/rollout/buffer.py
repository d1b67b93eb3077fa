"""``SamplingBuffer``: the one store that both terms of the objective read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from gkd_rl.errors import UserError
from gkd_rl.rollout.rows import join_experiences, on_device, take_experience
from gkd_rl.types import Example, Experience, Gates, Head, Rollouts, TeacherScores


class SamplingBuffer:
    """Holds experiences of the last steps, whole groups only, and hands them out in updates.

    Rows stay until they are older than ``max_staleness`` steps. Stored tensors are never changed: what is handed out is indexed,
    and so copied, from them.
    """

    def __init__(self, max_staleness: int, pad: int, device: torch.device | None = None, most_bytes: float = 0) -> None:
        """``device``: where rows wait (None: where they are); ``most_bytes``: memory that they may take (0: any)."""
        self.max_staleness = max_staleness
        self.pad = pad
        self.device = device
        self.most_bytes = most_bytes
        self._stored: list[tuple[int, Experience]] = []

    def add(self, experience: Experience, step: int, per_prompt: int) -> None:
        """Admit the rows of ``step``. Groups of sampled rows must be whole: ``per_prompt`` rows each.

        Raises ``UserError`` if the buffer has outgrown its memory.
        """
        rollouts = experience.rollouts
        sizes = Counter(rollouts.group[rollouts.on_policy].tolist())
        assert all(size % per_prompt == 0 for size in sizes.values()), "a group was split before it reached the buffer"
        self._stored.append((step, experience if self.device is None else on_device(experience, self.device)))
        self._stored = [(at, kept) for at, kept in self._stored if step - at <= self.max_staleness]
        if self.most_bytes and self.bytes > self.most_bytes:
            raise UserError(
                f"the sampling buffer takes {self.bytes / 2**30:.2f} GiB at step {step + 1}, over rollout.buffer_gib="
                f"{self.most_bytes / 2**30:g}; raise it, or lower rollout.prompts_per_step, per_prompt, max_new_tokens or max_staleness"
            )

    def __len__(self) -> int:
        return sum(len(stored.rewards) for _, stored in self._stored)

    @property
    def bytes(self) -> int:
        """Memory held by the stored tensors."""
        return sum(tensor.nbytes for _, stored in self._stored for tensor in _tensors(stored))

    def groups(self) -> list[int]:
        """The groups that are stored, sorted."""
        return sorted({number for _, stored in self._stored for number in stored.rollouts.group.tolist()})

    def updates(self, passes: int, updates_per_pass: int, seed: int, groups: Sequence[int] | None = None) -> Iterator[Experience]:
        """Every row once in each of ``passes``, a pass cut into ``updates_per_pass`` parts of whole groups.

        ``groups`` are the sorted groups of all ranks' buffers (by default of this one): the cut is made of them, so that it is the
        same for any number of ranks. A part may hold no row of this rank.
        """
        everything = join_experiences([stored for _, stored in self._stored], self.pad)
        if updates_per_pass == 1:
            for _ in range(passes):
                yield everything
            return
        whole = torch.tensor(self.groups() if groups is None else groups)
        for number in range(passes):
            order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed * 1009 + number))
            for part in whole[order].tensor_split(updates_per_pass):
                rows = torch.isin(everything.rollouts.group, part.to(everything.rollouts.group.device)).nonzero()[:, 0]
                yield take_experience(everything, rows)

    def state_dict(self) -> dict[str, Any]:
        """Everything stored, as tensors and plain values; the teacher's head is left out (its owner has it)."""
        return {"stored": [(step, _pack(experience)) for step, experience in self._stored]}

    def load_state_dict(self, state: dict[str, Any], teacher_head: Head | None, reference_head: Head | None = None) -> None:
        """Restore what ``state_dict`` gave."""
        self._stored = [(step, _unpack(packed, teacher_head, reference_head)) for step, packed in state["stored"]]


def _tensors(experience: Experience) -> Iterator[Tensor]:
    for item in fields(experience.rollouts):
        value = getattr(experience.rollouts, item.name)
        if isinstance(value, Tensor):
            yield value
    yield from (experience.rewards, experience.advantages, *experience.components.values())
    for scores in (experience.teacher, experience.reference):
        if scores is not None:
            yield scores.hidden
    if experience.gates is not None:
        yield from (experience.gates.reward, experience.gates.divergence)


def pack_rollouts(rollouts: Rollouts) -> dict[str, Any]:
    """Rollouts as tensors and plain values."""
    packed = {item.name: getattr(rollouts, item.name) for item in fields(rollouts)}
    packed["examples"] = [asdict(example) for example in rollouts.examples]
    return packed


def unpack_rollouts(packed: dict[str, Any]) -> Rollouts:
    """What ``pack_rollouts`` was given."""
    examples = tuple(Example(**example) for example in packed["examples"])
    return Rollouts(**{**packed, "examples": examples, "texts": tuple(packed["texts"])})


def _pack(experience: Experience) -> dict[str, Any]:
    return {
        "rollouts": pack_rollouts(experience.rollouts),
        "rewards": experience.rewards,
        "components": dict(experience.components),
        "advantages": experience.advantages,
        "teacher_hidden": None if experience.teacher is None else experience.teacher.hidden,
        "reference_hidden": None if experience.reference is None else experience.reference.hidden,
        "gates": None if experience.gates is None else (experience.gates.reward, experience.gates.divergence),
    }


def _unpack(packed: dict[str, Any], teacher_head: Head | None, reference_head: Head | None) -> Experience:
    return Experience(
        rollouts=unpack_rollouts(packed["rollouts"]),
        rewards=packed["rewards"],
        components=packed["components"],
        advantages=packed["advantages"],
        teacher=_scores(packed["teacher_hidden"], teacher_head),
        reference=_scores(packed["reference_hidden"], reference_head),
        gates=None if packed["gates"] is None else Gates(*packed["gates"]),
    )


def _scores(hidden: Tensor | None, head: Head | None) -> TeacherScores | None:
    if hidden is None:
        return None
    assert head is not None, "a restored buffer needs the heads of its teacher and reference"
    return TeacherScores(hidden, head)
