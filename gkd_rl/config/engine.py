"""What cannot be of engine and optimiser together. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from gkd_rl.config.run import Config


def engine_complaints(config: Config) -> Iterator[str]:
    """A sentence for each setting that would be inert, or change results silently."""
    engine, stage = config.engine, config.engine.zero_stage
    kind = config.optimizer.kind
    if kind in ("adafactor", "muon") and (stage or config.student.dtype != "float32"):
        yield f"optimizer.kind={kind} needs whole matrices, which ZeRO cuts up; set zero_stage=0 and student.dtype=float32, or adamw"
    states, parameters = engine.offload_optimizer, engine.offload_parameters
    if states != "none" and not stage:
        yield "engine.offload_optimizer works with ZeRO 1 to 3, and engine.zero_stage is 0; set it to 1, or offload_optimizer to none"
    if states == "nvme" and stage != 3:
        yield f"engine.offload_optimizer=nvme works with ZeRO 3, and engine.zero_stage is {stage}; set it to 3, or offload_optimizer to cpu"
    if parameters != "none" and stage != 3:
        yield f"engine.offload_parameters works with ZeRO 3, and engine.zero_stage is {stage}; set it to 3, or leave it out"
    if "nvme" in (states, parameters) and engine.nvme_path is None:
        key = "optimizer" if states == "nvme" else "parameters"
        yield f"engine.offload_{key}=nvme needs engine.nvme_path; set it to a folder on a local disk"
    if "nvme" not in (states, parameters) and engine.nvme_path is not None:
        yield "engine.nvme_path is set, and neither engine.offload_optimizer nor engine.offload_parameters is nvme; set one of them to it"
    if config.optimizer.kind == "deepspeed_cpu_adam" and states == "none":
        yield (
            "optimizer.kind=deepspeed_cpu_adam steps in CPU memory, and engine.offload_optimizer is none; set it to cpu with zero_stage 1 "
            "to 3, or use adamw"
        )
    if engine.offload_while_scoring and states != "none":
        yield "engine.offload_optimizer keeps the states away at all times; drop engine.offload_while_scoring"
    if engine.offload_while_scoring and stage == 3:
        yield "engine.offload_while_scoring works with ZeRO 0 to 2, and engine.zero_stage is 3; set it to false, or another stage"
