"""What every rank does in the tests of faults: updates that are not finite, that run out of memory, and failures of one rank alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import engine_work
import torch
from torch import Tensor

from gkd_rl.accumulated import OutOfMemory
from gkd_rl.engine import Engine, Forward, Update
from gkd_rl.errors import UserError
from gkd_rl.learner import Learner, local_counts
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.processes import Processes
from gkd_rl.rollout.rows import micro_batches, take_experience
from gkd_rl.types import Experience, GlobalCounts
from reward_models.errors import RewardError

KIND = "llama"
ENGINES = ((0, torch.float32), (1, torch.float32), (2, torch.float32), (3, torch.float32), (1, torch.bfloat16), (2, torch.bfloat16))
ON_CPU = (1, 2, 3)
"""Stages at which the optimiser's states, and with them gradients, are in CPU memory too."""
ROWS = ((0, 1, 2, 3, 4, 5, 8, 9), (6, 7))
"""Rows of ranks 0 and 1."""
BUDGETS = 40, 20
"""Tokens of a micro-batch in the first attempt and in the second."""


def everything(experience: Experience) -> dict[Any, Any]:
    """All figures of this rank."""
    processes = Processes(threads=1)
    engine_work._shard_small_parameters_too()
    found: dict[Any, Any] = {"together": _together(processes)}
    for stage, dtype in ENGINES:
        plain = _run(experience, stage, dtype, processes, [])
        found[stage, dtype, "plain"] = plain
        for fault in ("loss", "gradient"):
            found[stage, dtype, fault] = _run(experience, stage, dtype, processes, [fault])
        for place in _survived(stage):
            found[stage, dtype, place] = _run(experience, stage, dtype, processes, [place])
        if processes.count == 1:
            found[stage, dtype, "ends"] = [
                _end(experience, stage, processes, place) for place in {"forward", "backward"} - _survived(stage)
            ]
    for stage in ON_CPU:
        for fault in ("plain", "gradient", *(_survived(stage) & {"forward"})):
            faults = [] if fault == "plain" else [fault]
            found[stage, "cpu", fault] = _run(experience, stage, torch.float32, processes, faults, offload_optimizer="cpu")
    processes.close()
    return found


def _survived(stage: int) -> set[str]:
    """Where memory may run out at a stage."""
    return {0: {"forward", "backward"}, 1: {"forward", "backward"}, 2: {"forward"}, 3: set()}[stage]


def _run(
    experience: Experience, stage: int, dtype: torch.dtype, processes: Processes, faults: list[str], **settings: Any
) -> dict[str, Any]:
    """An update, one with a fault, and another one: states before and after the fault, and at the end."""
    model = engine_work.student(KIND)
    model.module.to(dtype)  # pyright: ignore
    engine = engine_work._engine(model, KIND, stage, processes, **settings)
    learner = Learner(model, engine_work.OBJECTIVES[KIND], engine_work.WEIGHTS)
    update(engine, learner, experience, learner.loss)
    before = states(engine, model)
    bad: Any = None
    for fault in faults:
        if fault in ("loss", "gradient"):
            bad = update(engine, learner, experience, _not_finite(learner.loss, fault, processes.rank == processes.count - 1))
        else:
            bad = _without_memory(engine, learner, experience, fault)
    after = states(engine, model)
    last = update(engine, learner, experience, learner.loss, BUDGETS[1] if set(faults) & {"forward", "backward"} else BUDGETS[0])
    return {"before": before, "after": after, "bad": bad, "last": last, "end": states(engine, model)}


def _end(experience: Experience, stage: int, processes: Processes, place: str) -> str:
    """With what sentence a run ends that cannot be repeated."""
    model = engine_work.student(KIND)
    engine = engine_work._engine(model, KIND, stage, processes)
    learner = Learner(model, engine_work.OBJECTIVES[KIND], engine_work.WEIGHTS)
    try:
        update(engine, learner, experience, _failing(learner.loss, place, at=1))
    except UserError as error:
        return str(error)
    return ""


def update(engine: Engine, learner: Learner, experience: Experience, forward: Forward, budget: int = BUDGETS[0]) -> Update:
    processes = engine.processes
    rows = ROWS[processes.rank] if processes.count == 2 else tuple(range(10))
    cuts = micro_batches(take_experience(experience, torch.tensor(rows)), budget)
    learner.counts = GlobalCounts(**processes.sum(local_counts(cuts, learner.config)))
    return engine.update(cuts, forward, 0.02)


def _without_memory(engine: Engine, learner: Learner, experience: Experience, place: str) -> bool:
    """Memory runs out in the last rank's second micro-batch (its only one, where it has but one); whether all ranks were told so."""
    processes = engine.processes
    forward = _failing(learner.loss, place, at=1 if processes.count == 1 else 0) if processes.rank == processes.count - 1 else learner.loss
    try:
        update(engine, learner, experience, forward)
    except OutOfMemory:
        return getattr(engine.deepspeed.optimizer, "_backward_active_depth", 0) == 0  # none is taken to be under way
    return False


def _failing(forward: Forward, place: str, at: int) -> Forward:
    """``forward`` that has no memory left at call ``at``: in the pass itself, or in its backward, as torch says it of CPUs."""
    calls: list[None] = []

    def failing(micro_batch: Experience | None) -> Tensor:
        calls.append(None)
        if len(calls) != at + 1:
            return forward(micro_batch)
        if place == "forward":
            forward(micro_batch)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return _FailsBackward.apply(forward(micro_batch))  # pyright: ignore

    return failing


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, loss: Tensor) -> Tensor:
        context.handle = loss.grad_fn
        return loss.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


def _not_finite(forward: Forward, what: str, here: bool) -> Forward:
    """``forward`` whose loss is NaN, or whose loss is as it was but its gradient NaN, in the last micro-batch of one rank."""
    if not here:
        return forward

    def bad(micro_batch: Experience | None) -> Tensor:
        loss = forward(micro_batch)
        return loss * float("nan") if what == "loss" else loss + (loss - loss.detach()).square().sqrt()

    return bad


def states(engine: Engine, model: LanguageModel) -> list[Tensor]:
    """Parameters, and this rank's part of what the optimiser holds: masters and moments."""
    optimizer = engine.deepspeed.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    names = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")
    masters = next((getattr(optimizer, name) for name in names if hasattr(optimizer, name)), [])
    moments = [value for state in inner.state.values() for value in state.values() if isinstance(value, Tensor)]
    assert len(moments) >= 3
    return [engine_work._parameters(engine, model), *(value.detach().clone() for value in (*masters, *moments))]


def _together(processes: Processes) -> list[Any]:
    """What comes of work that fails on the last rank, in ways that a user can mend and cannot, and of work that does not fail."""
    return [_outcome(processes, work) for work in (_unlucky, _judged, _broken, lambda rank, count: rank)]


def _outcome(processes: Processes, work: Callable[[int, int], Any]) -> Any:
    try:
        return processes.together(lambda: work(processes.rank, processes.count))
    except Exception as error:
        return type(error).__name__, str(error)


def _unlucky(rank: int, count: int) -> None:
    if rank == count - 1:
        raise UserError("the data ends first")


def _judged(rank: int, count: int) -> None:
    raise RewardError(f"reward 'mine' failed on {rank}")


def _broken(rank: int, count: int) -> None:
    if rank == count - 1:
        raise KeyError("column")
