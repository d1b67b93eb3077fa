"""The only place that knows DeepSpeed, ranks and gradient accumulation.

Its contract: the gradient of an update is that of the global mean, whatever the cut into micro-batches and ranks. Losses that come
in are already divided by global counts (``Engine.global_sum`` makes those), so micro-batches add up; DeepSpeed averages over ranks,
so each loss is multiplied by their number.

Accelerate's DeepSpeed plugin does not distribute on CPUs; Accelerate makes the process group here and DeepSpeed is called directly.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gkd_rl.config.run import EngineConfig, OptimizerConfig
from gkd_rl.console import PhaseTimes
from gkd_rl.errors import UserError
from gkd_rl.types import Experience

Forward = Callable[[Experience | None], Tensor]
"""Loss of one micro-batch, divided by global counts; given None, a zero that depends on every trained parameter's graph."""


def quiet_libraries() -> None:
    """Keep libraries' notices from users who can do nothing about them."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for library in ("torch.distributed", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module=r"(torch|deepspeed|transformers|accelerate)\b.*")


def require_ranks(environment: Mapping[str, str]) -> None:
    """Raise ``UserError`` for a process of several, or meant to be, that was not told its rank: each would train by itself.

    ``accelerate launch --cpu`` starts one process whatever ``--num_processes`` says; ``mpirun`` and ``srun`` name ranks in variables of
    their own.
    """
    if "WORLD_SIZE" in environment:
        return
    if environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_ADDR" in environment:
        raise UserError(
            "accelerate launch --cpu started one process in the place of several; leave --cpu out and give --multi_gpu, which also starts "
            "them where there is no GPU, or start with torchrun"
        )
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        if int(environment.get(name) or 1) > 1:
            raise UserError(
                f"this is one of {name}={environment[name]} processes but RANK and WORLD_SIZE are not set; start one torchrun per host "
                "(docs/scaling.md), which sets them"
            )


class Processes:
    """This process among the others: its rank, their number, its device. Started before anything is loaded."""

    def __init__(self, threads: int = 0) -> None:
        quiet_libraries()
        require_ranks(os.environ)
        if threads:
            torch.set_num_threads(threads)
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        os.environ.setdefault("LOCAL_RANK", str(local))  # DeepSpeed asks for it even where it is alone
        if not dist.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            store = dist.HashStore() if self.count == 1 else None  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.count)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This rank's contiguous part of ``items``."""
        start, end = (len(items) * r // self.count for r in (self.rank, self.rank + 1))
        return list(items[start:end])

    def sum(self, values: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Sums over all ranks by name, in float64; a name that a rank does not have (it had no rows) counts as 0 there."""
        names = list(dict.fromkeys(name for part in self.gather(list(values)) for name in part))
        tensor = torch.tensor([float(values.get(name, 0.0)) for name in names], dtype=torch.float64)
        return dict(zip(names, self._reduce(tensor, dist.ReduceOp.SUM), strict=True))

    def largest(self, value: float) -> float:
        """The largest value of any rank."""
        return self._reduce(torch.tensor([value], dtype=torch.float64), dist.ReduceOp.MAX)[0]

    def gather(self, item: Any) -> list[Any]:
        """The items of all ranks, in their order, on every rank."""
        if self.count == 1:
            return [item]
        items: list[Any] = [None] * self.count
        dist.all_gather_object(items, item)
        return items

    def close(self) -> None:
        """Wait for the others and leave the group: processes that vanish from it make gloo abort the rest.

        A process alone keeps its group, of which DeepSpeed keeps references: the next run in this process uses it again.
        """
        if self.count > 1:
            self.barrier()
            dist.destroy_process_group()

    def barrier(self) -> None:
        if self.count > 1:
            dist.barrier()

    def _reduce(self, tensor: Tensor, how: Any) -> list[float]:
        tensor = tensor.to(self.device)
        if self.count > 1:
            dist.all_reduce(tensor, op=how)
        return tensor.tolist()


class _Compute(nn.Module):
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
        deepspeed = _import_deepspeed()
        self.times = times or PhaseTimes()
        self.processes = processes
        self.config = config
        self.optimizer_config = optimizer
        compute = _Compute(model, head)
        if config.zero_stage == 3:
            compute.register_head()
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
            model=compute,
            optimizer=torch.optim.AdamW(
                _parameter_groups(model, optimizer.weight_decay),
                lr=optimizer.lr,
                betas=(optimizer.beta1, optimizer.beta2),
                eps=optimizer.eps,
            ),
            config=_deepspeed_config(config, optimizer, next(model.parameters()).dtype),
            dist_init_required=False,
        )

    def update(self, micro_batches: Sequence[Experience], forward: Forward, lr: float) -> float:
        """One optimiser update from this rank's micro-batches; returns the gradient's norm before clipping.

        Every rank runs as many forwards and backwards as the rank with the most micro-batches, empty ones included: collectives
        inside them would wait for ever otherwise.
        """
        rounds = max(1, int(self.processes.largest(len(micro_batches))))
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr
        self.deepspeed.zero_grad()
        for number in range(rounds):
            self.deepspeed.set_gradient_accumulation_boundary(number == rounds - 1)
            micro_batch = micro_batches[number] if number < len(micro_batches) else None
            with self.times.phase("student"):
                loss = self.deepspeed(lambda micro_batch=micro_batch: forward(micro_batch) * self.processes.count)
                self.deepspeed.backward(loss, scale_wrt_gas=False)
        with self.times.phase("optimiser"):
            norm = self._gradient_norm()
            self.deepspeed.step()
        ours = self.deepspeed.get_global_grad_norm()
        return norm if ours is None else float(ours)

    def _gradient_norm(self) -> float:
        """Norm of the gradient where DeepSpeed reports none (stage 0 in fp32)."""
        if self.config.zero_stage:
            return float("nan")
        gradients = [p.grad for p in self.deepspeed.module.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients)) if gradients else 0.0

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within it every rank holds the whole model, and may use it as often as it likes, without the other ranks.

        ZeRO-3 gathers once instead of layer by layer and token by token.
        """
        if self.config.zero_stage < 3:
            yield
            return
        module = self.deepspeed.module
        with _import_deepspeed().zero.GatheredParameters(list(module.parameters())), _without_hooks(module):
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
        """Trained weights and optimiser state of all ranks into ``folder``; frozen weights are where the student came from."""
        self.deepspeed.save_checkpoint(str(folder), tag="state", save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """What ``save`` wrote. Raises ``UserError`` if it cannot be read."""
        path, _ = self.deepspeed.load_checkpoint(
            str(folder), tag="state", load_lr_scheduler_states=False, custom_load_fn=_load_but_for_frozen
        )
        if path is None:
            raise UserError(f"the checkpoint {folder} cannot be read; remove it to continue from an earlier one")


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


def _import_deepspeed() -> Any:
    """DeepSpeed without its shared-memory operator, which it would compile at the first start; gloo's collectives serve on CPUs.

    And without the reports of memory that its bfloat16 optimiser prints.
    """
    import deepspeed
    from deepspeed.runtime import bf16_optimizer

    bf16_optimizer.see_memory_usage = lambda *arguments, **named: None
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # pyright: ignore[reportAttributeAccessIssue]
    return deepspeed


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors (norms, biases) do not."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _deepspeed_config(config: EngineConfig, optimizer: OptimizerConfig, dtype: torch.dtype) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_optimization": {"stage": config.zero_stage, "reduce_bucket_size": int(5e7), "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if dtype == torch.bfloat16:
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        # Stage 0 would add gradients up in bfloat16 and start AdamW's bias correction at its second step.
        settings["zero_optimization"]["stage"] = max(1, config.zero_stage)
    return settings
