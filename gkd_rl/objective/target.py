"""The distribution that the student is compared with. Shapes: V vocabulary; leading dimensions are free."""

from __future__ import annotations

from torch import Tensor

from gkd_rl.config.objective import DivergenceConfig
from gkd_rl.objective.numerics import LOG_FLOOR, log_probs


def teacher_temperature(config: DivergenceConfig) -> float:
    """The teacher's temperature: its own, or the student's."""
    return config.temperature if config.teacher_temperature is None else config.teacher_temperature


def target_log_probs(teacher_logits: Tensor, reference_logits: Tensor | None, config: DivergenceConfig) -> Tensor:
    """log q [..., V]: the teacher's, or with ``extrapolation`` λ the normalised pT^λ · pRef^(1−λ).

    The reverse KL to that target is, up to a constant of the prefix, KL(pS‖pRef) − λ·E_pS[log pT − log pRef]: G-OPD's dense reward
    on all tokens at once. At λ = 1 it is the teacher.
    """
    temperature = teacher_temperature(config)
    lq = log_probs(teacher_logits, temperature)
    if config.extrapolation == 1.0:
        return lq
    assert reference_logits is not None, "validate_objective asks for a reference"
    mixed = config.extrapolation * lq + (1 - config.extrapolation) * log_probs(reference_logits, temperature)
    return mixed.log_softmax(-1).clamp_min(LOG_FLOOR)
