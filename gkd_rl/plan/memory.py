"""Memory of one rank, from formulas. Bytes; N ranks; P weights of the student, T of them (or of its adapter) trained.

| | bf16 | fp32 | divided by N at |
|---|---|---|---|
| weights | 2·P | 4·P | stage 3 |
| gradients | 4·T (and 2·T in bf16 at stage 1) | 4·T | stages 2 and 3 |
| AdamW: moments, and with ZeRO its own fp32 weights | 12·T | 8·T (stage 0), 12·T | stages 1 to 3 |

A teacher is whole on every rank; with ``teacher.shard`` each rank holds its share.

(Rajbhandari et al., arXiv 1910.02054, section 3; what DeepSpeed holds was measured, docs/scaling.md.) Stage 0 becomes 1 in bf16. Left out:
DeepSpeed's buckets (up to some 5·10⁷ gradients), and the libraries; what a micro-batch takes is in ``activations.py``.
"""

from __future__ import annotations

from gkd_rl.config.run import Config
from gkd_rl.config.teachers import teacher_configs
from gkd_rl.plan.sizes import ModelSize, held_bytes

Bytes = float | None
"""None: unknown."""


def rank_memory(config: Config, student: ModelSize, teachers: dict[str, ModelSize], ranks: int, rows: int) -> dict[str, Bytes]:
    """Part → bytes on the device of one rank that samples and trains on ``rows`` rows of a step."""
    parts: dict[str, Bytes] = dict(trained_memory(config, student, ranks))
    copies = student_copies(config)
    if copies:
        parts["copies of the student"] = None if student.parameters is None else copies * student.parameters * student.bytes_per_weight
    held = [held_bytes(settings, teachers[key], ranks) for key, settings in teacher_configs(config).items()]
    parts["teacher"] = None if None in held else sum(size for size in held if size is not None)
    tokens = config.task.max_prompt_tokens + config.rollout.max_new_tokens
    at_once = min(rows, config.rollout.sampling_rows)
    samples = config.rollout.on_policy_share > 0 and config.rollout.sampler != "vllm"
    parts["cache of keys and values"] = (
        (None if student.cache_bytes is None else at_once * tokens * student.cache_bytes) if samples else 0.0
    )
    parts["teacher's scores in the buffer"] = _scores(config, teachers, rows)
    return parts


def trained_memory(config: Config, student: ModelSize, ranks: int) -> dict[str, Bytes]:
    """Weights, gradients and optimiser of the student on one rank's device, by ``engine.zero_stage``."""
    half = config.student.dtype == "bfloat16"
    stage = max(config.engine.zero_stage, int(half))
    whole, trained = student.parameters, student.trained
    shard = lambda first: ranks if stage >= first else 1
    weights = None if whole is None else (2.0 if half else 4.0) * whole / shard(3)
    gradients = None if trained is None else 4.0 * trained / shard(2) + (2.0 * trained if half and stage == 1 else 0.0)
    states = 0.0 if config.optimizer.kind == "adafactor" else 12.0 if stage else 8.0
    optimiser = None if trained is None else states * trained / shard(1)
    return {
        "weights": weights if config.engine.offload_parameters == "none" else 0.0,
        "gradients": gradients,
        "optimiser": optimiser if config.engine.offload_optimizer == "none" else 0.0,
        **({"student gathered to sample": _gathered(student, ranks)} if stage == 3 else {}),
    }


def student_copies(config: Config) -> int:
    """Frozen or sampling copies of the student on the device; under an adapter there are none."""
    return 0 if config.student.lora.rank else int(uses_reference(config)) + int(config.rollout.overlap)


def uses_reference(config: Config) -> bool:
    """Whether the initial student scores rows too."""
    return bool(config.objective.surrogate.reference_kl_weight or config.objective.divergence.extrapolation != 1)


def total(parts: dict[str, Bytes]) -> Bytes:
    """The sum, unknown if one part is."""
    return None if None in parts.values() else sum(size for size in parts.values() if size is not None)


def _gathered(student: ModelSize, ranks: int) -> Bytes:
    """At stage 3 every rank gathers the whole student to sample."""
    return None if student.parameters is None else student.parameters * student.bytes_per_weight * (ranks - 1) / ranks


def _scores(config: Config, teachers: dict[str, ModelSize], rows: int) -> Bytes:
    """Hidden states of completion tokens, or k log-probabilities with their ids; in CPU memory where the buffer is."""
    if config.rollout.buffer_device == "cpu" or not teachers:
        return 0.0
    sizes: list[Bytes] = []
    for key, settings in teacher_configs(config).items():
        if settings.top_k is not None:
            sizes.append(settings.top_k * 12.0)
        else:
            hidden = teachers[key].hidden
            sizes.append(None if hidden is None else hidden * (2.0 if settings.dtype == "bfloat16" else 4.0))
    if None in sizes:
        return None
    return rows * config.rollout.max_new_tokens * sum(size for size in sizes if size is not None)
