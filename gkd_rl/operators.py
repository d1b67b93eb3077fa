"""Operators of DeepSpeed that are compiled where they are first used, and the optimisers that are made of them. Part of ``engine.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gkd_rl.config.run import Config, OptimizerConfig
from gkd_rl.errors import UserError
from gkd_rl.muon import MuonAndAdamW


def import_deepspeed() -> Any:
    """DeepSpeed without its shared-memory operator, which it would compile at the first start; gloo's collectives serve on CPUs.

    And without the reports of memory that its bfloat16 optimiser prints.
    """
    import deepspeed
    from deepspeed.runtime import bf16_optimizer

    bf16_optimizer.see_memory_usage = lambda *arguments, **named: None
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # pyright: ignore[reportAttributeAccessIssue]
    return deepspeed


def require_operators(config: Config) -> None:
    """Compile what the configuration needs of DeepSpeed's operators, once per machine (a minute or so), before any model is loaded.

    Raises ``UserError`` for one that this machine cannot have.
    """
    if config.optimizer.kind == "deepspeed_cpu_adam":
        _require_cpu_adam()
    for key in ("offload_optimizer", "offload_parameters"):
        if getattr(config.engine, key) == "nvme":
            _require_async_io(f"engine.{key}")


def _require_cpu_adam() -> None:
    import_deepspeed()
    from deepspeed.ops.op_builder import CPUAdamBuilder  # pyright: ignore[reportAttributeAccessIssue]

    try:
        CPUAdamBuilder().load(verbose=False)
    except Exception as error:  # of the compiler, of ninja, of the loader: whatever it is, the operator is not to be had
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"optimizer.kind=deepspeed_cpu_adam: its operator cannot be compiled here ({reason}); install g++, ninja and Python's headers, "
            "or set optimizer.kind=adamw"
        ) from error


def _require_async_io(key: str) -> None:
    import_deepspeed()
    from deepspeed.ops.op_builder import AsyncIOBuilder  # pyright: ignore[reportAttributeAccessIssue]

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise UserError(
            f"{key}=nvme: DeepSpeed's operator async_io cannot be compiled here; install libaio with its headers (libaio-dev), or set "
            f"{key}=cpu"
        )


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimiser over what is trained: matrices decay, vectors (norms, biases) do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.kind == "adafactor":
        return torch.optim.Adafactor(groups, lr=config.lr)
    if config.kind == "muon":
        return MuonAndAdamW(model, config)
    settings: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if config.kind == "deepspeed_cpu_adam":
        import_deepspeed()
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
    return torch.optim.AdamW(groups, **settings)
