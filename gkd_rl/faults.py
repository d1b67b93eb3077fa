"""Updates that go wrong: what is not finite is skipped and kept for inspection, what has no room is repeated in smaller parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkd_rl.accumulated import OutOfMemory
from gkd_rl.engine import Update
from gkd_rl.errors import UserError
from gkd_rl.learner import local_counts
from gkd_rl.rollout.rows import micro_batches, padding_share, score_tensors
from gkd_rl.run import Run
from gkd_rl.types import Experience, GlobalCounts, TeacherScores

BAD_BATCHES = "bad-batches"


def guarded_update(run: Run, experience: Experience, step: int, number: int, lr: float) -> tuple[float | None, float]:
    """One update from this rank's rows: the gradient's norm (None: the update was skipped), and the share of padding.

    ``step`` (from 0) and ``number`` (of the update within it) name it in messages. The learner's sums are those of updates that were taken.

    Raises ``UserError`` after ``engine.max_bad_updates`` skipped ones in a row, and where single rows do not fit into memory.
    """
    learner = run.learner
    sums = dict(learner.sums)
    update, cuts = _update_that_fits(run, experience, step, lr)
    if math.isfinite(update.norm):
        run.bad_updates = 0
        return update.norm, padding_share(cuts, run.parts.student.one_sequence)
    learner.sums = sums
    run.bad_updates += 1
    losses = run.processes.gather(update.loss)
    at_fault = not math.isfinite(update.loss) or all(math.isfinite(loss) for loss in losses)
    run.processes.together(lambda: _save(run, experience, step, number, update.loss) if cuts and at_fault else None)
    _tell(run, sum(losses), step, lr)
    return None, padding_share(cuts, run.parts.student.one_sequence)


def _update_that_fits(run: Run, experience: Experience, step: int, lr: float) -> tuple[Update, list[Experience]]:
    """The update and its micro-batches, which are halved until they fit; their rows, and so the gradient, are the same in every cut."""
    learner = run.learner
    sums, recorded = dict(learner.sums), len(learner.records or ())
    while True:
        cuts = micro_batches(experience, run.micro_batch_tokens, run.parts.student.one_sequence) if len(experience.rewards) else []
        learner.counts = GlobalCounts(**run.processes.sum(local_counts(cuts, run.config.objective)))
        try:
            return run.engine.update(cuts, learner.loss, lr), cuts
        except OutOfMemory:
            pass  # without the error, whose traceback keeps tensors
        learner.sums = dict(sums)
        if learner.records is not None:
            del learner.records[recorded:]
        _halve(run, cuts, step)


def _halve(run: Run, cuts: Sequence[Experience], step: int) -> None:
    """Half the tokens of the largest micro-batch of any rank become the limit. Raises ``UserError`` if that was a single row."""
    if run.processes.largest(max((len(cut.rewards) for cut in cuts), default=0)) <= 1:
        raise UserError(
            f"step {step + 1}: out of memory with a single row in each micro-batch; lower rollout.max_new_tokens or "
            "task.max_prompt_tokens, or raise engine.zero_stage"
        )
    sizes = [cut.rollouts.prompt_ids.numel() + cut.rollouts.completion_ids.numel() for cut in cuts]
    before, largest = run.micro_batch_tokens, int(run.processes.largest(max(sizes, default=0)))
    run.micro_batch_tokens = max(1, min(before, largest) // 2)
    run.terminal.say(
        f"step {step + 1}: out of memory; this update is repeated, and the run goes on, with micro-batches of "
        f"{run.micro_batch_tokens} tokens instead of engine.micro_batch_tokens={before}"
    )


def _tell(run: Run, loss: float, step: int, lr: float) -> None:
    """Say that an update is skipped, or raise ``UserError`` if it was one too many."""
    limit = run.config.engine.max_bad_updates
    what = "the gradient is not finite" if math.isfinite(loss) else f"loss is {loss}"
    where = Path(run.config.run_dir) / BAD_BATCHES
    if run.bad_updates <= limit:
        run.terminal.say(
            f"step {step + 1}: {what}, so this update is skipped (number {run.bad_updates} of at most {limit} in a row); see {where}"
        )
        return
    often = f" in {run.bad_updates} updates in a row" if limit else ""
    raise UserError(
        f"step {step + 1}: {what}{often}, so the run has diverged; lower optimizer.lr (here {lr:g}) or optimizer.max_grad_norm, and start "
        f"anew (the last batches are in {where})"
    )


def _save(run: Run, experience: Experience, step: int, number: int, loss: float) -> None:
    """The rows of a bad update: ``torch.load(..., weights_only=True)`` reads them."""
    folder = Path(run.config.run_dir) / BAD_BATCHES
    folder.mkdir(parents=True, exist_ok=True)
    rank = run.processes.rank
    torch.save(
        {"step": step + 1, "update": number, "rank": rank, "loss": loss, **inspection(experience)},
        folder / f"step-{step + 1}-update-{number}-rank-{rank}.pt",
    )


def inspection(experience: Experience) -> dict[str, Any]:
    """Tensors, texts and numbers of B rows, on the CPU, and whether each row's teacher and reference scores are finite [B]."""
    rollouts = experience.rollouts
    names = (
        "prompt_ids",
        "prompt_mask",
        "completion_ids",
        "completion_mask",
        "logprobs",
        "sampler_logprobs",
        "inserted",
        "on_policy",
        "group",
        "version",
    )
    return {
        **{name: getattr(rollouts, name).cpu() for name in names},
        "examples": [example.key for example in rollouts.examples],
        "texts": list(rollouts.texts),
        "rewards": experience.rewards.cpu(),
        "components": {name: values.cpu() for name, values in experience.components.items()},
        "advantages": experience.advantages.cpu(),
        "teacher_finite": _finite_rows(experience.teacher),
        "reference_finite": _finite_rows(experience.reference),
    }


def _finite_rows(scores: TeacherScores | None) -> dict[str, Tensor]:
    if scores is None:
        return {}
    floating = {name: values for name, values in score_tensors(scores).items() if values.is_floating_point()}
    return {name: values.isfinite().flatten(1).all(1).cpu() for name, values in floating.items()}
