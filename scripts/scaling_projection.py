"""What a step of 7B ← 70B would need on H100s: memory, compute and communication from formulas. A projection, nothing of it measured.

Notation: P trained weights, N processes that train, one per GPU. Sizes are in bytes of 10⁹ per GB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hardware:
    """One GPU and its links. The shares are assumptions: what of a peak a step reaches on average."""

    name: str = "H100 SXM"
    flops: float = 989e12
    """bf16, dense, per second"""
    memory: float = 80e9
    memory_bandwidth: float = 3.35e12
    """bytes per second"""
    nvlink: float = 450e9
    """bytes per second in one direction within a host (900 GB/s in both)"""
    network: float = 50e9
    """bytes per second per GPU between hosts (InfiniBand, 400 Gbit/s)"""
    per_host: int = 8
    compute_share: float = 0.4
    memory_share: float = 0.6
    link_share: float = 0.8


@dataclass(frozen=True)
class Work:
    """The models and one step's rows."""

    student: float = 7e9
    teacher: float = 70e9
    rows_per_gpu: int = 16
    """of all GPUs, those of a served teacher too, so that placements are compared at equal batches"""
    prompt: int = 512
    completion: int = 512


@dataclass(frozen=True)
class Placement:
    """Where the teacher is: ``bytes_per_weight`` on the student's own GPUs, or served by ``serving`` of all GPUs."""

    name: str
    bytes_per_weight: float = 0.0
    serving: float = 0.0
    samples: bool = True
    """Whether the student samples: scores can be cached of the dataset's completions alone."""


PLACEMENTS = (
    Placement("bf16 on every GPU", 2.0),
    Placement("8 bits on every GPU", 1.0),
    Placement("4 bits on every GPU", 0.5),
    Placement("served by half of the GPUs", serving=0.5),
    Placement("cached, no sampling", samples=False),
)
FORMULA = {0: 2.0, 1: 2.0, 2: 2.0, 3: 3.0}
"""Weights that each rank sends in an update, in units of P·(N-1)/N: gradients reduced and scattered, weights gathered, at stage 3 twice
(ZeRO, arXiv 1910.02054, section 7)."""
WEIGHT, GRADIENT, STATES = 2.0, 4.0, 12.0
"""Bytes per weight of a bf16 student: itself, its fp32 gradient, and AdamW's fp32 weight and two moments."""
LOOSE = 2.0
"""Bytes per weight of the bf16 gradient before it is added to the fp32 one: whole at stage 1, a bucket at a time above."""


def student_bytes(parameters: float, stage: int, processes: int) -> float:
    """Bytes per GPU of weights, gradients and optimiser states between steps, activations and buffers left out.

    ``WEIGHT·P + GRADIENT·P + STATES·P``, of which the stage divides the last (1), the last two (2) or all (3) by N; ``LOOSE·P`` beside at
    stage 1. Stage 0 is not for bf16 (the engine takes stage 1 in its place).
    """
    divided = [processes if stage >= first else 1 for first in (3, 2, 1)]
    whole = sum(parameters * size / parts for size, parts in zip((WEIGHT, GRADIENT, STATES), divided, strict=True))
    return whole + (parameters * LOOSE if stage == 1 else 0.0)


def sampling_bytes(parameters: float, stage: int, processes: int) -> float:
    """What sampling adds at stage 3, where every rank gathers the whole student for it: P·WEIGHT·(N-1)/N."""
    return parameters * WEIGHT * (processes - 1) / processes if stage == 3 else 0.0


def transfer_seconds(payload: float, processes: int, hardware: Hardware) -> float:
    """Seconds in which a ring moves ``payload`` bytes through each rank: payload·(N-1)/N over the slowest link on the way."""
    link = hardware.nvlink if processes <= hardware.per_host else hardware.network
    return payload * (processes - 1) / processes / (link * hardware.link_share)


def phase_seconds(work: Work, placement: Placement, gpus: int, hardware: Hardware) -> dict[str, float]:
    """Seconds of one step's phases, one after the other.

    Sampling: one pass over the prompts (2·P operations per token), then a token per row for each reading of the weights from memory.
    Teacher: 2 operations per weight and token of prompt and completion, on the GPUs that hold it. Student: forward and backward, 6.
    Attention and heads are left out.
    """
    trains = gpus * (1 - placement.serving)
    rows = work.rows_per_gpu * gpus
    tokens = rows * (work.prompt + work.completion)
    rate = hardware.flops * hardware.compute_share
    decoding = work.completion * work.student * WEIGHT / (hardware.memory_bandwidth * hardware.memory_share)
    scoring = gpus * (placement.serving or (1.0 if placement.bytes_per_weight else 0.0))
    return {
        "sample": 2 * work.student * rows * work.prompt / (trains * rate) + decoding if placement.samples else 0.0,
        "teacher": 2 * work.teacher * tokens / (scoring * rate) if scoring else 0.0,
        "student": 6 * work.student * tokens / (trains * rate),
    }


def project(payloads: dict[int, dict[str, float]], hardware: Hardware | None = None, work: Work | None = None) -> list[dict[str, Any]]:
    """Rows of the projection for 8, 64 and 512 GPUs, every placement and stage.

    ``payloads[stage]``: measured bytes per weight of a bf16 student in ``update`` and in ``elsewhere`` of a step.
    """
    hardware, work, rows = hardware or Hardware(), work or Work(), []
    for gpus in (8, 64, 512):
        for placement in PLACEMENTS:
            phases = phase_seconds(work, placement, gpus, hardware)
            processes = round(gpus * (1 - placement.serving))
            for stage, payload in payloads.items():
                held = student_bytes(work.student, stage, processes) + work.teacher * placement.bytes_per_weight
                peak = held + (sampling_bytes(work.student, stage, processes) if placement.samples else 0.0)
                moved = {name: transfer_seconds(work.student * size, processes, hardware) for name, size in payload.items()}
                rows.append(
                    {
                        **{"gpus": gpus, "teacher": placement.name, "stage": stage, "gb": peak / 1e9, "fits": peak < hardware.memory},
                        **{"phases": phases, "communication": moved, "seconds": sum(phases.values()) + sum(moved.values())},
                    }
                )
    return rows
