"""A frozen model cut up over ranks: each layer's weights are gathered for its own forward pass and dropped after it (ZeRO-3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gkd_rl.engine import Compute
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.operators import import_deepspeed
from gkd_rl.processes import Processes


class Shards:
    """``model``'s weights from here on: of R ranks each holds 1/R of every one.

    A gathering waits for all ranks, so each of them has to make as many passes as the one with the most: ``surplus`` says how many empty
    ones a rank has to add to its own.
    """

    def __init__(self, model: LanguageModel, processes: Processes) -> None:
        """Every rank calls it with the same model, wherever that is; its shares go to the processes' devices weight by weight."""
        module = model.module
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "steps_per_print": 10**9,
            "bf16": {"enabled": next(module.parameters()).dtype == torch.bfloat16},
            "zero_optimization": {
                "stage": 3,
                "stage3_param_persistence_threshold": 0,  # small weights are cut up too
                "stage3_max_reuse_distance": 0,  # and none stays whole for the next pass
                "overlap_comm": False,
            },
        }
        deepspeed = import_deepspeed()
        deepspeed.zero.Init(module=module, config_dict_or_path=settings, dtype=next(module.parameters()).dtype)
        self._engine, *_ = deepspeed.initialize(model=Compute(module, module), config=settings, dist_init_required=False)
        self._processes = processes
        self._end = int(model.tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
        self._model = model

    def surplus(self, passes: int) -> int:
        """By how many passes another rank has more than this one with its ``passes``. Every rank calls it before the first of them."""
        return int(self._processes.largest(passes)) - passes

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """One pass: what ``work`` makes of the model, whose weights are whole where it uses them."""
        return self._engine(work)

    def run_empty(self) -> None:
        """A pass over a single token, for the sake of ranks that have more to do."""
        token = torch.full((1, 1), self._end, device=self._processes.device)
        mask = torch.ones_like(token, dtype=torch.bool)
        self.run(lambda: self._model.completion_hidden(token, mask, token, mask))
