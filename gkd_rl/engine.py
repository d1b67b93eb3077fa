"""The only place that knows DeepSpeed, ranks and gradient accumulation; ``accumulated.py`` is the part of it about gradients,
``operators.py`` that about optimisers and what is compiled for them.

Its contract: the gradient of an update is that of the global mean, whatever the cut into micro-batches and ranks. Losses that come
in are already divided by global counts (``Engine.global_sum`` makes those), so micro-batches add up; DeepSpeed averages over ranks,
so each loss is multiplied by their number.

Accelerate's DeepSpeed plugin does not distribute on CPUs; Accelerate makes the process group here and DeepSpeed is called directly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkd_rl.accumulated import OutOfMemory, forget_gradient, gradient_norm, is_out_of_memory, reduce_gradient
from gkd_rl.config.run import EngineConfig, OptimizerConfig
from gkd_rl.console import PhaseTimes
from gkd_rl.errors import UserError
from gkd_rl.operators import import_deepspeed, make_optimizer
from gkd_rl.processes import Processes
from gkd_rl.progress import progress
from gkd_rl.resharding import put, whole_states
from gkd_rl.types import Experience

Forward = Callable[[Experience | None], Tensor]
"""Loss of one micro-batch, divided by global counts; given None, a zero that depends on every trained parameter's graph."""


@dataclass(frozen=True)
class Update:
    """What became of an update."""

    norm: float
    """Norm of the gradient before clipping; not finite where the update was not taken, the same on all ranks"""
    loss: float
    """This rank's share of the loss"""


class Compute(nn.Module):
    """Runs a function as the forward of a module that owns the model, so that DeepSpeed's hooks surround all of it.

    Under ZeRO-3 the head's weight is used here, outside of its own module: it is registered, and so gathered once for the whole
    forward and once for the backward.
    """

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._head = [head]

    def register_head(self) -> None:
        from deepspeed.runtime.zero.partition_parameters import register_external_parameter

        for parameter in self._head[0].parameters():
            register_external_parameter(self, parameter)

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        return function()

    def state_dict(self, *arguments: Any, **named: Any) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What checkpoints hold. DeepSpeed leaves frozen weights out by their first name alone, which keeps those that are tied."""
        frozen = _frozen(self)
        return {name: value for name, value in super().state_dict(*arguments, **named).items() if name not in frozen}


class Engine:
    """DeepSpeed ZeRO over one model: updates, gathering for generation, state."""

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module,
        processes: Processes,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        times: PhaseTimes | None = None,
    ) -> None:
        deepspeed = import_deepspeed()
        self.times = times or PhaseTimes()
        self.processes = processes
        self.config = config
        self.optimizer_config = optimizer
        compute = Compute(model, head)
        if config.zero_stage == 3:
            compute.register_head()
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
            model=compute,
            optimizer=make_optimizer(model, optimizer),
            config=_deepspeed_config(config, optimizer, next(model.parameters()).dtype),
            dist_init_required=False,
        )
        self.stage = int(self.deepspeed.zero_optimization_stage())
        """DeepSpeed's, which for a model in bfloat16 is 1 at least"""

    def update(self, micro_batches: Sequence[Experience], forward: Forward, lr: float) -> Update:
        """One optimiser update from this rank's micro-batches.

        Every rank runs as many forwards and backwards as the rank with the most micro-batches, empty ones included: collectives
        inside them would wait for ever otherwise.

        If a loss or a part of the gradient is not finite on any rank, no rank takes the step: weights and the optimiser's states stay
        as they are to the last bit.

        Raises ``OutOfMemory`` on all ranks if the memory of any did not suffice, after which the update can be repeated. Where ranks wait
        for each other within the pass that failed (ZeRO 3, and the backward at ZeRO 2), the one that failed raises ``UserError``.
        """
        rounds = max(1, int(self.processes.largest(len(micro_batches))))
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr
        self.deepspeed.zero_grad()
        with self.times.phase("student"):
            losses = self._passes(micro_batches, rounds, forward)
            if self.stage < 2:
                reduce_gradient(self.deepspeed)
        with self.times.phase("optimiser"):
            loss = torch.stack(losses).sum() / self.processes.count
            norm = gradient_norm(self.deepspeed).to(loss)
            if self.processes.largest(float(not torch.stack([norm, loss]).isfinite().all())):
                forget_gradient(self.deepspeed)
                return Update(float("nan"), float(loss))
            self.deepspeed.step()
        ours = self.deepspeed.get_global_grad_norm()
        return Update(float(norm if ours is None else ours), float(loss))

    def _passes(self, micro_batches: Sequence[Experience], rounds: int, forward: Forward) -> list[Tensor]:
        """Losses of ``rounds`` micro-batches, whose gradients are added up."""
        losses: list[Tensor] = []
        with progress("student", sum(len(one.rewards) for one in micro_batches), "rows") as advance:
            for number in range(rounds):
                self.deepspeed.set_gradient_accumulation_boundary(self.stage >= 2 and number == rounds - 1)
                micro_batch = micro_batches[number] if number < len(micro_batches) else None
                loss = self._pass(micro_batch, forward)
                if loss is None:
                    break
                losses.append(loss)
                advance(0 if micro_batch is None else len(micro_batch.rewards))
        failed = len(losses) < rounds
        if self.stage < 2:  # otherwise the ranks have agreed in each pass
            failed = bool(self.processes.largest(float(failed)))
        if failed:
            forget_gradient(self.deepspeed)
            if self.processes.device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfMemory
        return losses

    def _pass(self, micro_batch: Experience | None, forward: Forward) -> Tensor | None:
        """Loss of one micro-batch after its backward; None where memory ran out, at stage 2 on any rank."""
        loss = self._attempt(lambda: self.deepspeed(lambda: forward(micro_batch) * self.processes.count), self.stage < 3)
        if self.stage == 2 and self.processes.largest(float(loss is None)):
            return None
        if loss is None or self._attempt(lambda: self.deepspeed.backward(loss, scale_wrt_gas=False), self.stage < 2) is None:
            return None
        return loss.detach()

    def _attempt(self, work: Callable[[], Tensor], repeatable: bool) -> Tensor | None:
        """What ``work`` gives; None where memory ran out and the update can be repeated."""
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            said = str(error).splitlines()[0]
        if not repeatable:
            raise UserError(
                f"rank {self.processes.rank} ran out of memory in a pass of engine.zero_stage={self.stage} that cannot be repeated; lower "
                f"engine.micro_batch_tokens (here {self.config.micro_batch_tokens}) and continue with resume=auto ({said})"
            )
        return None

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within it every rank holds the whole model, and may use it as often as it likes, without the other ranks.

        ZeRO-3 gathers once instead of layer by layer and token by token.
        """
        if self.config.zero_stage < 3:
            yield
            return
        module = self.deepspeed.module
        with import_deepspeed().zero.GatheredParameters(list(module.parameters())), _without_hooks(module):
            yield

    @contextmanager
    def states_away(self) -> Iterator[None]:
        """Within it the optimiser's states are in CPU memory, where ``engine.offload_while_scoring`` asks for that."""
        if not self.config.offload_while_scoring:
            yield
            return
        self._move_states(away=True)
        try:
            yield
        finally:
            self._move_states(away=False)

    def _move_states(self, away: bool) -> None:
        if hasattr(self.deepspeed.optimizer, "offload_states"):
            from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum

            if away:
                self.deepspeed.offload_states(include=[OffloadStateTypeEnum.optim_states], pin_memory=False)
            else:
                self.deepspeed.reload_states()
            return
        device = torch.device("cpu") if away else self.processes.device
        for state in self.deepspeed.optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.ndim:
                    state[name] = value.to(device)

    def save(self, folder: Path) -> None:
        """Trained weights and optimiser state of all ranks into ``folder``; frozen weights are where the student came from.

        Raises what this rank's writing raised once all ranks are through: DeepSpeed has them wait for each other in between and at the end.
        """
        with _failures_kept(self.deepspeed) as failures:
            self.deepspeed.save_checkpoint(str(folder), tag="state", save_latest=False, exclude_frozen_parameters=True)
        if failures:
            raise failures[0]

    def load(self, folder: Path) -> None:
        """What ``save`` wrote. Raises ``UserError`` if it cannot be read."""
        path, _ = self.deepspeed.load_checkpoint(
            str(folder), tag="state", load_lr_scheduler_states=False, custom_load_fn=_load_but_for_frozen
        )
        if path is None:
            raise UserError(f"the checkpoint {folder} cannot be read; remove it to continue from an earlier one")

    def load_of(self, folder: Path, ranks: int) -> None:
        """What as many as ``ranks`` ranks saved, another number than there is now. Raises ``UserError`` if it cannot be taken over."""
        if self.config.zero_stage:
            put(self.deepspeed, *whole_states(folder, ranks))
        else:
            self.load(folder)


@contextmanager
def _failures_kept(deepspeed: Any) -> Iterator[list[Exception]]:
    """Within it what DeepSpeed writes to the disk fails without an error, which the list gets; after the first, nothing is written."""
    failures: list[Exception] = []

    def kept(write: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*arguments: Any, **named: Any) -> Any:
            if failures:
                return None
            try:
                return write(*arguments, **named)
            except Exception as error:
                failures.append(error)

        return attempt

    writers = ((deepspeed.checkpoint_engine, "makedirs"), (deepspeed.checkpoint_engine, "save"), (deepspeed, "_copy_recovery_script"))
    for owner, name in writers:
        setattr(owner, name, kept(getattr(owner, name)))
    try:
        yield failures
    finally:
        for owner, name in writers:
            delattr(owner, name)


def _frozen(module: nn.Module) -> set[str]:
    """Names of parameters that are not trained, all those of tied ones."""
    return {name for name, parameter in module.named_parameters(remove_duplicate=False) if not parameter.requires_grad}


def _load_but_for_frozen(src: Mapping[str, Tensor], dst: nn.Module) -> None:
    """Load a state that lacks frozen weights, and nothing else. Raises ``RuntimeError`` where it does not fit, as DeepSpeed does."""
    frozen = _frozen(dst)
    missing, unexpected = dst.load_state_dict(src, strict=False)
    misfits = [*unexpected, *(name for name in missing if name not in frozen)]
    if misfits:
        raise RuntimeError(f"it does not fit the student: {misfits[0]} is missing or unknown. ")


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """DeepSpeed's hooks would shard each layer again after its forward, and gather it with ranks that have no such forward."""
    kept = [(part, part._forward_pre_hooks, part._forward_hooks) for part in module.modules()]
    for part, _, _ in kept:
        part._forward_pre_hooks, part._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for part, before, after in kept:
            part._forward_pre_hooks, part._forward_hooks = before, after


def _deepspeed_config(config: EngineConfig, optimizer: OptimizerConfig, dtype: torch.dtype) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": int(5e7),
            "overlap_comm": False,
            "use_multi_rank_bucket_allreduce": False,  # a part of the gradient goes to the rank that needs it, and not to all
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    zero: dict[str, Any] = settings["zero_optimization"]
    path = {} if config.nvme_path is None else {"nvme_path": config.nvme_path}
    if config.offload_optimizer != "none":
        zero["offload_optimizer"] = {"device": config.offload_optimizer, **(path if config.offload_optimizer == "nvme" else {})}
        settings["zero_force_ds_cpu_optimizer"] = False  # optimizer.kind says whether its operator is to be compiled
    if config.offload_parameters != "none":
        zero["offload_param"] = {"device": config.offload_parameters, **(path if config.offload_parameters == "nvme" else {})}
    if dtype == torch.bfloat16:
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        # Stage 0 would add gradients up in bfloat16 and start AdamW's bias correction at its second step.
        settings["zero_optimization"]["stage"] = max(1, config.zero_stage)
    return settings
