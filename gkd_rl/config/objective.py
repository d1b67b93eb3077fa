"""Configuration of the objective: the weights of its terms, the divergence, the advantage and the surrogate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Mean = Literal["token", "sequence"]


@dataclass
class ScheduleConfig:
    """How a weight moves from its configured value to ``end`` over the updates."""

    kind: Literal["constant", "linear", "cosine", "exponential", "step", "plateau", "adaptive"] = "constant"
    """Form of the path. ``constant`` keeps the configured value; ``step`` jumps to ``end`` at ``start_step``; ``plateau`` jumps
    to ``end`` once the validation score has stopped rising; ``adaptive`` (``rollout.on_policy_schedule`` alone) goes towards ``end`` by
    ``increment`` whenever an evaluation finds that the loss on the dataset's own completions has risen (DistiLLM)."""
    end: float | None = None
    """Value at the end of the path; needed by every kind but ``constant``."""
    start_step: int = 0
    """Update at which the path begins."""
    steps: int | None = None
    """Length of the path in updates; by default it ends with the run."""
    patience: int = 3
    """``plateau``: how many evaluations in a row may pass without a new best score."""
    min_gain: float = 0.0
    """``plateau``: a score counts as a new best only if it is better by more than this."""
    increment: float = 0.1
    """``adaptive``: by how much the value grows at a time."""
    tolerance: float = 0.1
    """``adaptive``: the loss has risen if it is at least so many nats per token above what it was at the last growth, or at the start."""


@dataclass
class DivergenceConfig:
    """The divergence between teacher and student at each token."""

    kind: Literal["gjsd", "forward_kl", "reverse_kl", "skew_forward_kl", "skew_reverse_kl", "entropy_mixed", "total_variation"] = "gjsd"
    """Which divergence. ``gjsd``: generalised Jensen-Shannon (GKD); ``forward_kl``: KL(teacher‖student); ``reverse_kl``:
    KL(student‖teacher); ``skew_*``: the same against a mixture (DistiLLM); ``entropy_mixed``: forward KL where the teacher is
    undecided, reverse KL where it is sure; ``total_variation``: half the L1 distance (f-distill)."""
    beta: float = 0.5
    """β of ``gjsd``: weight of the teacher in the mixture; 0 is the forward, 1 the reverse KL."""
    rescale: bool = False
    """Divide ``gjsd`` by β(1−β), which makes values and gradients of different β comparable (it tends to the KLs at the ends)."""
    skew: float = 0.1
    """Weight of the first distribution in the mixture of ``skew_forward_kl`` and ``skew_reverse_kl``."""
    temperature: float = 1.0
    """Divides the student's logits inside the divergence, and the teacher's unless set apart."""
    teacher_temperature: float | None = None
    """Divides the teacher's logits; null: the same as ``temperature``."""
    estimator: Literal["full", "top_k", "draws", "k1", "k2", "k3"] = "full"
    """``full``: the whole vocabulary; ``top_k``: the teacher's k likeliest tokens; ``draws``: tokens drawn from the teacher
    (``teacher.draws``); ``k1``, ``k2``, ``k3``: estimates from the sampled token alone."""
    use: Literal["loss", "advantage", "both"] = "loss"
    """``loss``: differentiated; ``advantage``: added, detached, to the policy gradient's advantage (``k1`` only); ``both``: each token's
    own reverse KL is differentiated, and the log-ratios of later tokens are the advantage (``full``, MiniLLM)."""
    top_k: int = 64
    """k of ``top_k``."""
    tail: Literal["bucket", "renormalise", "drop"] = "bucket"
    """``top_k``: gather the remaining tokens in one bucket, or renormalise both distributions over the k. (``drop`` is refused.)"""
    discount: float = 0.0
    """``k1`` as advantage, and ``both``: γ of the sum over later tokens; 0 takes each token's own log-ratio."""
    average: bool = False
    """With a discount: the mean over those tokens in the place of their sum, γ as their weights (MiniLLM's length normalisation)."""
    extrapolation: float = 1.0
    """G-OPD: weight λ of the teacher's log-ratio to the reference; the target is pT^λ · pRef^(1−λ), normalised. 1 is the teacher."""
    mean: Mean = "token"
    """``token``: mean over all tokens of the update; ``sequence``: over each completion's tokens first (the paper's)."""


@dataclass
class GateConfig:
    """Where the divergence (and, for ``right_reward_wrong_divergence``, the reward) counts."""

    kind: Literal["none", "wrong", "unsolved_group", "sign_agreement", "right_reward_wrong_divergence"] = "none"
    """``wrong``: only rows answered wrongly; ``unsolved_group``: only groups without a right answer; ``sign_agreement``: only
    tokens whose teacher log-ratio has the advantage's sign; ``right_reward_wrong_divergence``: reward on right rows, divergence
    on the others (SRPO)."""
    right_at: float = 1.0
    """A row is right if its reward is at least this."""


@dataclass
class AdvantageConfig:
    """How rewards of a group become advantages."""

    kind: Literal["rloo", "grpo", "dr_grpo", "batch"] = "dr_grpo"
    """``rloo``: leave-one-out baseline; ``grpo``: (r − mean) / std of the group; ``dr_grpo``: r − mean; ``batch``: r − batch mean."""


@dataclass
class CorrectionConfig:
    """Importance weights for the gap between the distribution sampled from and the policy that is trained."""

    kind: Literal["none", "truncate", "mask"] = "none"
    """``truncate``: weights above ``high`` become ``high``; ``mask``: tokens with weights outside [low, high] are left out."""
    level: Mean = "token"
    """One weight per token, or the product over a completion for all its tokens."""
    low: float = 0.5
    """Smallest weight that ``mask`` keeps."""
    high: float = 2.0
    """Largest weight."""


@dataclass
class SurrogateConfig:
    """The policy-gradient term."""

    ratio: Literal["none", "token", "sequence"] = "token"
    """Importance ratio to the policy at sampling: of each token, of the sequence (geometric mean, GSPO), or none (REINFORCE)."""
    clip_low: float | None = 0.2
    """The importance ratio is clipped below at 1 − clip_low; null: not at all."""
    clip_high: float | None = 0.28
    """The importance ratio is clipped above at 1 + clip_high; null: not at all."""
    teacher_in_ratio: float = 0.0
    """Weight of the teacher in the ratio's denominator, pT^a · pOld^(1−a) (TRRD); 0 is the ordinary ratio."""
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    """Correction of the gap between sampler and trainer."""
    entropy_weight: float = 0.0
    """Weight of the entropy bonus inside the reward's term."""
    reference_kl_weight: float = 0.0
    """Weight of KL(student‖reference) inside the reward's term; the reference is the initial student."""
    mean: Mean = "token"
    """Mean over tokens or over sequences first."""


@dataclass
class TelemetryConfig:
    """What is measured beside the loss."""

    interference_stride: int = 8
    """The gradients of reward and divergence are compared on every n-th token; 0: not at all."""


@dataclass
class ObjectiveConfig:
    """(1−α)·reward + α·divergence, with everything that shapes the two."""

    alpha: float = 0.5
    """α: weight of the divergence; the reward gets 1−α. 1 is pure distillation, 0 pure RL."""
    alpha_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How α moves over the run."""
    reward_weight: float | None = None
    """Weight of the reward set apart from α."""
    reward_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How ``reward_weight`` moves over the run."""
    divergence_weight: float | None = None
    """Weight of the divergence set apart from α."""
    divergence_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How ``divergence_weight`` moves over the run."""
    cross_entropy_weight: float = 0.0
    """Weight of the cross-entropy on dataset rows."""
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)
    """The teacher's term."""
    gate: GateConfig = field(default_factory=GateConfig)
    """Where the teacher's term counts."""
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    """From rewards to advantages."""
    surrogate: SurrogateConfig = field(default_factory=SurrogateConfig)
    """The reward's term."""
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    """What is measured beside the loss."""
