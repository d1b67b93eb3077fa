"""What cannot be of engine and optimiser together. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from gkd_rl.config.run import Config


def engine_complaints(config: Config) -> Iterator[str]:
    """A sentence for each setting that would be inert, or change results silently."""
    engine, stage = config.engine, config.engine.zero_stage
    if config.optimizer.kind == "adafactor" and (stage or config.student.dtype != "float32"):
        yield "optimizer.kind=adafactor needs whole matrices, which ZeRO cuts up; set zero_stage=0 and student.dtype=float32, or adamw"
    if engine.offload_optimizer and not stage:
        yield "engine.offload_optimizer works with ZeRO 1 to 3, and engine.zero_stage is 0; set it to 1, or offload_optimizer to false"
    if engine.offload_parameters and stage != 3:
        yield f"engine.offload_parameters works with ZeRO 3, and engine.zero_stage is {stage}; set it to 3, or leave it out"
    if engine.offload_while_scoring and engine.offload_optimizer:
        yield "engine.offload_optimizer keeps the states in CPU memory at all times; drop engine.offload_while_scoring"
    if engine.offload_while_scoring and stage == 3:
        yield "engine.offload_while_scoring works with ZeRO 0 to 2, and engine.zero_stage is 3; set it to false, or another stage"
