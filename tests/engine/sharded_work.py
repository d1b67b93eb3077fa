"""What two ranks do in the tests of a teacher that is cut up over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from gkd_rl.config.run import Config, EngineConfig, TeacherConfig
from gkd_rl.processes import Processes
from gkd_rl.rollout.rows import score_tensors, take_experience
from gkd_rl.teacher.build import Teaching, build_teaching
from gkd_rl.teacher.local import LocalTeacher, TopKTeacher
from gkd_rl.types import Experience

SHARES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    (tuple(range(10)), (3,)),
    ((), tuple(range(10))),
    ((0, 1, 2), ()),
    ((5,), (6,)),
)
"""Rows of ranks 0 and 1 in each scoring: other numbers of passes on each, none, and the same."""


def everything(experiences: dict[str, Experience], folders: dict[str, str]) -> dict[str, Any]:
    """Of each teacher: what it says whole and cut up, and how much of its weights this rank holds before, between and after."""
    processes = Processes(threads=1)
    found = {}
    for name, rows in experiences.items():
        for top_k in (None, 3):
            found[name, top_k] = _scored(folders[name], top_k, rows, processes)
    processes.close()
    return found


def _scored(folder: str, top_k: int | None, rows: Experience, processes: Processes) -> dict[str, Any]:
    whole, sharded = (_teaching(folder, top_k, shard, processes) for shard in (False, True))
    assert whole.model is not None and sharded.model is not None
    held, pairs = [_held(sharded)], []
    for share in SHARES:
        part = take_experience(rows, torch.tensor(share[processes.rank], dtype=torch.long)).rollouts
        assert whole.teacher is not None and sharded.teacher is not None
        pairs.append([score_tensors(teacher.score(part)) for teacher in (whole.teacher, sharded.teacher)])
        held.append(_held(sharded))
    counts = whole.parameters, sharded.parameters, sum(p.numel() for p in whole.model.module.parameters())
    return {"pairs": pairs, "held": held, "counts": counts, "heads": [_head(teaching) for teaching in (whole, sharded)]}


def _teaching(folder: str, top_k: int | None, shard: bool, processes: Processes) -> Teaching:
    settings = TeacherConfig(path=folder, top_k=top_k, shard=shard)
    config = Config(teacher=settings, engine=EngineConfig(micro_batch_tokens=5))
    return build_teaching(config, processes, AutoTokenizer.from_pretrained(folder))


def _held(teaching: Teaching) -> tuple[int, int]:
    """Numbers of weights that this rank holds of the model: as its shares, and whole."""
    assert teaching.model is not None
    parameters = list(teaching.model.module.parameters())
    return sum(p.ds_tensor.numel() for p in parameters), sum(p.numel() for p in parameters)  # pyright: ignore[reportAttributeAccessIssue]


def _head(teaching: Teaching) -> Tensor:
    teacher = teaching.teacher
    local = teacher.whole if isinstance(teacher, TopKTeacher) else teacher
    assert isinstance(local, LocalTeacher)
    return local.head.weight
