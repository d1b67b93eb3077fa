"""Sampling one step ahead: the next step's answers come about while the present ones are trained on.

They are one update step off-policy, which the importance ratio to the policy at sampling corrects.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from gkd_rl.models.language_model import LanguageModel
from gkd_rl.rollout.buffer import pack_rollouts, unpack_rollouts
from gkd_rl.rollout.resample import Judged
from gkd_rl.rollout.sampler import InProcessSampler

Work = Callable[[int], tuple[Judged, int]]
"""Samples and judges the answers of a step; returns also how many groups were replaced. It runs beside the collectives of training, so
it may have none of its own."""


class CopySampler(InProcessSampler):
    """Decodes with a copy of the trained model, which may change meanwhile; ``sync`` brings the copy up to date.

    Frozen weights are not copied: both models have the same.
    """

    def __init__(self, model: LanguageModel, max_rows: int) -> None:
        shared = {id(parameter): parameter for parameter in model.module.parameters() if not parameter.requires_grad}
        super().__init__(type(model)(copy.deepcopy(model.module, shared), model.tokenizer), max_rows)
        self.trained = model

    @torch.no_grad()
    def sync(self, version: int) -> None:
        super().sync(version)
        for mine, theirs in zip(self.model.module.parameters(), self.trained.module.parameters(), strict=True):
            if mine is not theirs:
                mine.copy_(theirs)


class Ahead:
    """One step's work in a thread of its own."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling")
        self._step = -1
        self._pending: Future[tuple[Judged, int]] | None = None

    def start(self, step: int) -> None:
        """Begin with ``step``; what was begun before has been taken."""
        assert self._pending is None, "a step's answers were not taken"
        self._step, self._pending = step, self._thread.submit(self.work, step)

    def take(self, step: int) -> tuple[Judged, int]:
        """The answers of ``step``: those begun, once they are there, or made now. Raises what the work raised."""
        pending, self._pending = self._pending, None
        if pending is None:
            return self.work(step)
        assert self._step == step
        return pending.result()

    def settle(self) -> None:
        """Wait for what has been begun. Raises what the work raised."""
        if self._pending is not None:
            self._pending.result()

    def state_dict(self) -> dict[str, Any]:
        """What has been begun, once it is there: a resumed run has no policy of that age to sample it again."""
        if self._pending is None:
            return {}
        judged, replaced = self._pending.result()
        packed = {"rollouts": pack_rollouts(judged.rollouts), "rewards": judged.rewards, "components": judged.components}
        return {"step": self._step, "replaced": replaced, **packed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        if not state:
            return
        self._step, self._pending = state["step"], Future()
        judged = Judged(unpack_rollouts(state["rollouts"]), state["rewards"], state["components"])
        self._pending.set_result((judged, state["replaced"]))
