"""The sampling buffer: whole groups in, every row once per pass out, and never a changed tensor."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from experiences import experience, rows_of, token_rows
from tiny_models import language_model

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.errors import UserError
from gkd_rl.learner import Learner, local_counts
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.rollout.buffer import SamplingBuffer
from gkd_rl.rollout.rows import micro_batches, take_experience
from gkd_rl.types import Experience, Gates, GlobalCounts


@pytest.fixture(scope="module")
def steps() -> list[Experience]:
    """What three steps bring: three prompts with two answers each, and a dataset row."""
    student, teacher = language_model("llama"), language_model("llama", seed=1)
    made = [experience(student, teacher, 3, 2, dataset=1, start=10 * step) for step in range(3)]
    return [replace(e, gates=Gates(torch.rand(7), torch.rand(7))) for e in made]


def _filled(steps: list[Experience], max_staleness: int = 0) -> SamplingBuffer:
    buffer = SamplingBuffer(max_staleness, pad=0)
    for number, step in enumerate(steps):
        buffer.add(step, number, per_prompt=2)
    return buffer


def _rows(e: Experience) -> list[tuple]:
    return [(example.key, tuple(c)) for example, (_, c) in zip(e.rollouts.examples, token_rows(e.rollouts), strict=True)]


def _digest(value: Any) -> str:
    """A hash of every tensor inside."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
    if is_dataclass(value):
        return "".join(_digest(getattr(value, item.name)) for item in fields(value))
    return "".join(_digest(v) for v in value.values()) if isinstance(value, dict) else repr(value)


@pytest.mark.parametrize(("parts", "staleness"), [(1, 0), (1, 2), (2, 2)])
def test_training_passes_change_no_stored_tensor(steps: list[Experience], parts: int, staleness: int):
    model = language_model("llama")
    before = [_digest(step) for step in steps]
    buffer = _filled(steps, staleness)
    learner = Learner(model, ObjectiveConfig(), TermWeights(0.5, 0.5, 0.5))
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-2)
    for update in buffer.updates(2, parts, seed=0):
        cuts = micro_batches(update, 60)
        learner.counts = GlobalCounts(**local_counts(cuts, learner.config))
        for cut in cuts:
            learner.loss(cut).backward()
        optimizer.step()
    assert [_digest(step) for step in steps] == before
    kept = steps[2 - staleness :]
    assert [row for e in buffer.updates(1, 1, 0) for row in _rows(e)] == [row for step in kept for row in _rows(step)]


@pytest.mark.parametrize("parts", [1, 2, 3, 20])
def test_a_pass_holds_every_row_once_in_whole_groups(steps: list[Experience], parts: int):
    updates = list(_filled(steps, max_staleness=2).updates(3, parts, seed=4))
    assert len(updates) == 3 * parts
    everything = sorted(row for step in steps for row in _rows(step))
    for number in range(3):
        taken = updates[number * parts : (number + 1) * parts]
        assert sorted(row for update in taken for row in _rows(update)) == everything
        groups = [set(update.rollouts.group.tolist()) for update in taken]
        assert sum(len(group) for group in groups) == len(set().union(*groups)) == 12


def test_passes_are_shuffled_and_repeat_with_the_seed(steps: list[Experience]):
    buffer = _filled(steps, max_staleness=2)
    first, again, other = ([_rows(update) for update in buffer.updates(2, 3, seed)] for seed in (1, 1, 2))
    assert first == again != other
    assert first[:3] != first[3:]


def test_rows_leave_when_they_are_too_old(steps: list[Experience]):
    for staleness, kept in ((0, 1), (1, 2), (5, 3)):
        buffer = _filled(steps, staleness)
        assert len(buffer) == 7 * kept
        found = {row for update in buffer.updates(1, 1, 0) for row in _rows(update)}
        assert found == {row for step in steps[3 - kept :] for row in _rows(step)}


def test_a_split_group_is_not_admitted(steps: list[Experience]):
    (part,) = rows_of(steps[0], [0, 1, 2])
    with pytest.raises(AssertionError, match="a group was split"):
        SamplingBuffer(0, 0).add(part, 0, per_prompt=2)


def test_the_bytes_held_are_counted(steps: list[Experience]):
    buffer = _filled(steps[:1])
    assert steps[0].teacher is not None
    assert buffer.bytes > steps[0].teacher.hidden.nbytes + steps[0].rollouts.prompt_ids.nbytes


def test_a_saved_buffer_comes_back_whole(steps: list[Experience], tmp_path: Path):
    chat = replace(steps[2].rollouts.examples[0], prompt=[{"role": "user", "content": "a b"}])
    last = replace(steps[2], rollouts=replace(steps[2].rollouts, examples=(chat, *steps[2].rollouts.examples[1:])))
    buffer = _filled([*steps[:2], last], max_staleness=1)
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    restored = SamplingBuffer(1, 0)
    assert last.teacher is not None
    restored.load_state_dict(torch.load(tmp_path / "buffer.pt", weights_only=True), last.teacher.head)
    assert [_digest(e) for e in restored.updates(1, 2, 3)] == [_digest(e) for e in buffer.updates(1, 2, 3)]
    (everything,) = restored.updates(1, 1, 0)
    assert everything.rollouts.examples == steps[1].rollouts.examples + last.rollouts.examples
    for one in (buffer, restored):
        one.add(steps[0], 3, per_prompt=2)
    assert len(restored) == len(buffer) == 14
    assert Counter(_rows(next(restored.updates(1, 1, 0)))) == Counter(_rows(next(buffer.updates(1, 1, 0))))


def test_a_saved_buffer_holds_no_copy_of_the_teachers_head(steps: list[Experience]):
    assert steps[0].teacher is not None
    head = steps[0].teacher.head.weight.shape
    shapes = [tensor.shape for tensor in _all_tensors(_filled(steps).state_dict())]
    assert shapes and head not in shapes


def _all_tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in inner for tensor in _all_tensors(part)]


def test_the_cut_into_updates_is_that_of_all_ranks_groups(steps: list[Experience]):
    whole, shares = _filled(steps[:1]), [SamplingBuffer(0, pad=0) for _ in range(2)]
    on_first_rank = steps[0].rollouts.group == steps[0].rollouts.group[0]
    for share, rows in zip(shares, (on_first_rank, ~on_first_rank), strict=True):
        share.add(take_experience(steps[0], rows.nonzero()[:, 0]), 0, per_prompt=2)
    together = zip(*(share.updates(2, 3, seed=5, groups=whole.groups()) for share in shares), strict=True)
    expected = [Counter(_rows(update)) for update in whole.updates(2, 3, seed=5)]
    assert [Counter(_rows(first) + _rows(second)) for first, second in together] == expected


def test_a_buffer_that_outgrows_its_memory_says_so(steps):
    size = SamplingBuffer(0, 0)
    size.add(steps[0], 0, 2)
    SamplingBuffer(0, 0, most_bytes=size.bytes).add(steps[0], 0, 2)
    with pytest.raises(UserError, match=r"takes 0\.00 GiB at step 1, over rollout\.buffer_gib=.*; raise it, or lower rollout\."):
        SamplingBuffer(0, 0, most_bytes=size.bytes - 1).add(steps[0], 0, 2)


def test_rows_wait_on_the_buffers_device(steps):
    buffer = SamplingBuffer(0, 0, device=torch.device("meta"))
    buffer.add(steps[0], 0, 2)
    (_, stored), *_ = buffer._stored
    tensors = [stored.rewards, stored.advantages, stored.rollouts.completion_ids, stored.rollouts.ended, stored.teacher.hidden]
    assert all(tensor.device.type == "meta" for tensor in (*tensors, *stored.components.values()))
    assert steps[0].rewards.device.type == "cpu"
