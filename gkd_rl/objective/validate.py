"""Refuses objectives that are inert, biased or impossible, before any model loads. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from gkd_rl.config.objective import DivergenceConfig, GateConfig, ObjectiveConfig, ScheduleConfig, SurrogateConfig
from gkd_rl.config.other_tokenizer import needs_one_tokenizer
from gkd_rl.errors import UserError


def validate_objective(
    config: ObjectiveConfig,
    *,
    has_reward: bool,
    has_teacher: bool,
    has_reference: bool,
    passes: int = 1,
    sampler_is_exact: bool = True,
    has_old_logprobs: bool = True,
    on_policy_share: float = 1.0,
    group_size: int | None = None,
    teacher_top_k: int | None = None,
    teacher_draws: bool = False,
    other_tokenizer: bool = False,
) -> None:
    """Raises ``UserError`` for the first thing wrong with the objective: one sentence with the key, the reason and the fix.

    Args:
        config: the objective.
        has_reward: some reward is configured.
        has_teacher: a teacher is configured.
        has_reference: a frozen reference policy is available.
        passes: updates made on one buffer of samples.
        sampler_is_exact: samples come from the very policy that is trained (no truncation, no other temperature or engine).
        has_old_logprobs: the buffer holds the policy's log-probabilities at sampling.
        on_policy_share: λ, the share of rows sampled from the policy.
        group_size: rollouts per prompt, where known.
        teacher_top_k: of how many tokens the teacher gives the log-probability; None: it gives its whole distribution.
        teacher_draws: these tokens are drawn from the teacher, not its likeliest.
        other_tokenizer: the teacher's tokens are not the student's.
    """
    uses_reward, uses_divergence = _term_in_use(config, "reward"), _term_in_use(config, "divergence")
    surrogate_in_use = uses_reward or (uses_divergence and config.divergence.use != "loss")
    for complaint in (
        *_weights(config),
        *_terms(config, uses_reward, uses_divergence, has_reward, has_teacher, on_policy_share),
        *_divergence(config.divergence),
        *_estimator(config.divergence, uses_divergence, on_policy_share),
        *_gate(config.gate, config.divergence.temperature, uses_reward, uses_divergence, has_reward, has_teacher),
        *_surrogate(
            config.surrogate, config.divergence.temperature, surrogate_in_use, passes, sampler_is_exact, has_old_logprobs, has_teacher
        ),
        *_reference(config, uses_reward, uses_divergence, has_reference),
        *_advantage(config, uses_reward, group_size),
        *_telemetry(config),
        *_draws(config.divergence, teacher_draws, has_teacher),
        *(needs_one_tokenizer(config) if other_tokenizer else ()),
        *(_top_k_teacher(config, teacher_top_k) if teacher_top_k is not None and has_teacher else ()),
    ):
        raise UserError(complaint)


def check_divergence(config: DivergenceConfig) -> None:
    """Raises ``UserError`` for a parameter of the divergence that is out of its range."""
    for complaint in _divergence(config):
        raise UserError(complaint)


def _path_values(start: float, schedule: ScheduleConfig) -> tuple[float, ...]:
    if schedule.kind == "constant" or schedule.end is None:
        return (start,)
    return (start, schedule.end)


def _term_in_use(config: ObjectiveConfig, term: str) -> bool:
    """Whether the term's weight is ever different from zero."""
    weight, schedule = getattr(config, f"{term}_weight"), getattr(config, f"{term}_schedule")
    if weight is not None:
        return any(_path_values(weight, schedule))
    alphas = _path_values(config.alpha, config.alpha_schedule)
    return any(alpha != 1 for alpha in alphas) if term == "reward" else any(alphas)


def _weights(config: ObjectiveConfig) -> Iterator[str]:
    for alpha in _path_values(config.alpha, config.alpha_schedule):
        if not 0 <= alpha <= 1:
            yield f"objective.alpha takes the value {alpha}, outside [0, 1]; set reward_weight and divergence_weight for other weights."
    yield from schedule_complaints("objective.alpha_schedule", config.alpha, config.alpha_schedule)
    for term in ("reward", "divergence"):
        weight, schedule = getattr(config, f"{term}_weight"), getattr(config, f"{term}_schedule")
        if weight is None and schedule.kind != "constant":
            yield (f"objective.{term}_schedule moves objective.{term}_weight, which is not set; set it, or use objective.alpha_schedule.")
        if weight is not None:
            if min(_path_values(weight, schedule)) < 0:
                yield f"objective.{term}_weight goes below 0, which would maximise what should be minimised; use a weight ≥ 0."
            yield from schedule_complaints(f"objective.{term}_schedule", weight, schedule)
    if config.cross_entropy_weight < 0:
        yield "objective.cross_entropy_weight is below 0; use a weight ≥ 0."
    if None not in (config.reward_weight, config.divergence_weight) and config.alpha_schedule.kind != "constant":
        yield "objective.alpha_schedule has no effect: both weights are set apart from α; schedule them, or leave them null."


def schedule_complaints(key: str, start: float, schedule: ScheduleConfig) -> Iterator[str]:
    """What cannot be of the schedule at ``key``, of a value that begins at ``start``."""
    if schedule.kind != "constant" and schedule.end is None:
        yield f"{key}.end is not set but kind '{schedule.kind}' needs it; give the value to move to."
    if schedule.kind == "exponential" and min(_path_values(start, schedule)) <= 0:
        yield f"{key} is exponential and touches 0, where it is not defined; use values above 0, or linear or cosine."
    if schedule.steps is not None and schedule.steps < 1:
        yield f"{key}.steps is {schedule.steps}; it must be at least 1."
    if schedule.start_step < 0:
        yield f"{key}.start_step is {schedule.start_step}; it must be at least 0."
    if schedule.kind == "adaptive" and not key.startswith("rollout."):
        yield f"{key}.kind 'adaptive' moves the share of sampled rows alone (rollout.on_policy_schedule); use another kind."
    if schedule.kind == "adaptive" and (schedule.increment <= 0 or schedule.tolerance < 0):
        yield f"{key} needs increment > 0 and tolerance ≥ 0."
    if schedule.kind == "plateau" and (schedule.patience < 1 or schedule.min_gain < 0):
        yield f"{key} needs patience ≥ 1 and min_gain ≥ 0."


def _terms(
    config: ObjectiveConfig, reward: bool, divergence: bool, has_reward: bool, has_teacher: bool, on_policy_share: float
) -> Iterator[str]:
    if not (reward or divergence or config.cross_entropy_weight):
        yield "objective has no term: every weight is 0; set objective.alpha or a weight."
    if reward and not has_reward:
        yield "the reward's weight (1 − objective.alpha) is not 0 but no reward is configured; add one, or set objective.alpha=1."
    if divergence and not has_teacher:
        yield "the divergence's weight (objective.alpha) is not 0 but no teacher is configured; add one, or set objective.alpha=0."
    if reward and on_policy_share <= 0:
        yield "the reward's weight is not 0 but no row is sampled from the policy (λ = 0); raise λ, or set objective.alpha=1."
    if config.cross_entropy_weight and on_policy_share >= 1:
        yield (
            "objective.cross_entropy_weight is not 0 but there are no dataset rows (λ = 1), so the term is empty; "
            "lower λ, or set the weight to 0."
        )


def _divergence(config: DivergenceConfig) -> Iterator[str]:
    if not 0 <= config.beta <= 1:
        yield f"objective.divergence.beta is {config.beta}, outside [0, 1]; 0 is the forward KL, 1 the reverse KL."
    if config.kind.startswith("skew") and not 0 <= config.skew < 1:
        yield f"objective.divergence.skew is {config.skew}, outside [0, 1); at 1 the divergence is 0 for every student."
    for key in ("temperature", "teacher_temperature"):
        if getattr(config, key) is not None and getattr(config, key) <= 0:
            yield f"objective.divergence.{key} is {getattr(config, key)}; it must be above 0."
    if config.rescale and config.kind != "gjsd":
        yield f"objective.divergence.rescale belongs to kind 'gjsd', not to '{config.kind}'; set it to false."
    if not 0 <= config.discount <= 1:
        yield f"objective.divergence.discount is {config.discount}, outside [0, 1]."
    if config.discount and config.use != "both" and not (config.estimator == "k1" and config.use == "advantage"):
        yield "objective.divergence.discount needs estimator 'k1' used as 'advantage', or use 'both'; set it to 0."
    if config.average and not config.discount:
        yield "objective.divergence.average is about the sum over later tokens, which needs a discount; set discount=1, or average=false."


def _estimator(config: DivergenceConfig, in_use: bool, on_policy_share: float) -> Iterator[str]:
    name, use = config.estimator, config.use
    prefix = f"objective.divergence.estimator '{name}' used as {use!r}"
    if name in ("full", "top_k", "draws") and use == "advantage":
        yield (
            f"{prefix} is inert: it does not depend on the sampled token, so its expected gradient is zero; use it as 'loss', "
            "or estimator 'k1'."
        )
    if use == "both":
        yield from _both(config, prefix, in_use, on_policy_share)
        return
    if name == "k1" and use == "loss":
        yield (
            f"{prefix} has the gradient ∇log pS, in which the teacher does not appear and whose expectation is 0; use k1 as "
            "'advantage', or estimator 'k2' or 'full'."
        )
    if name in ("k2", "k3") and use == "advantage":
        yield f"{prefix} is biased; use it as 'loss', or estimator 'k1' as 'advantage'."
    if name in ("k1", "k2") and config.kind != "reverse_kl":
        yield f"objective.divergence.estimator '{name}' estimates the reverse KL; set objective.divergence.kind=reverse_kl."
    if name == "k3" and config.kind != "forward_kl":
        yield "objective.divergence.estimator 'k3' has the forward KL's gradient; set objective.divergence.kind=forward_kl."
    if name in ("k1", "k2", "k3") and config.temperature != 1:
        yield (
            f"objective.divergence.estimator '{name}' compares probabilities of tokens, and tokens are drawn at temperature 1; set "
            "objective.divergence.temperature=1 (teacher_temperature alone may differ), or estimator 'full' or 'top_k'."
        )
    if name in ("k1", "k2", "k3") and in_use and on_policy_share < 1:
        yield (
            f"objective.divergence.estimator '{name}' assumes tokens sampled from the policy but a share of rows comes from the "
            "dataset; set λ to 1, or estimator 'full' or 'top_k'."
        )
    if name == "top_k" and config.tail == "drop":
        yield (
            "objective.divergence.tail 'drop' is a bare truncation, which teaches the student to drain the kept tokens; use "
            "'bucket' or 'renormalise'."
        )
    if name == "top_k" and config.top_k < (2 if config.tail == "renormalise" else 1):
        yield f"objective.divergence.top_k is {config.top_k}: too few tokens to compare; use at least 2."


def _both(config: DivergenceConfig, prefix: str, in_use: bool, on_policy_share: float) -> Iterator[str]:
    """What cannot be of a divergence whose own step is exact and whose later steps are an advantage."""
    if config.estimator != "full" or config.kind != "reverse_kl":
        yield f"{prefix} is the gradient of the reverse KL of whole sequences; set objective.divergence.kind=reverse_kl, estimator=full."
    if not config.discount:
        yield f"{prefix} sums log-ratios over later tokens, and objective.divergence.discount is 0; set it to 1, or use it as 'loss'."
    if config.temperature != 1:
        yield f"{prefix} compares probabilities of tokens, and tokens are drawn at temperature 1; set objective.divergence.temperature=1."
    if in_use and on_policy_share < 1:
        yield f"{prefix} assumes tokens sampled from the policy but a share of rows comes from the dataset; set λ to 1, or use 'loss'."


def _gate(config: GateConfig, temperature: float, reward: bool, divergence: bool, has_reward: bool, has_teacher: bool) -> Iterator[str]:
    if config.kind == "none":
        return
    if not has_reward:
        yield f"objective.gate.kind '{config.kind}' needs a reward and none is configured; add one, or set the gate to 'none'."
    if not (divergence and has_teacher):
        yield f"objective.gate.kind '{config.kind}' gates the divergence, whose weight is 0; set the gate to 'none'."
    if config.kind == "sign_agreement" and temperature != 1:
        yield (
            "objective.gate.kind 'sign_agreement' compares probabilities of tokens, and tokens are drawn at temperature 1; set "
            "objective.divergence.temperature=1 (teacher_temperature alone may differ), or another gate."
        )
    if config.kind == "right_reward_wrong_divergence" and not reward:
        yield "objective.gate.kind 'right_reward_wrong_divergence' needs the reward's term; set objective.alpha below 1, or use 'wrong'."


def _surrogate(
    config: SurrogateConfig,
    temperature: float,
    in_use: bool,
    passes: int,
    sampler_is_exact: bool,
    has_old_logprobs: bool,
    has_teacher: bool,
) -> Iterator[str]:
    for key in ("clip_low", "clip_high", "entropy_weight", "reference_kl_weight"):
        if (getattr(config, key) or 0) < 0:
            yield f"objective.surrogate.{key} is below 0; use a value ≥ 0."
    if config.clip_low is not None and config.clip_low > 1:
        yield "objective.surrogate.clip_low is above 1, so the lower bound is below 0 and never acts; use null for no bound."
    if not 0 <= config.teacher_in_ratio <= 1:
        yield f"objective.surrogate.teacher_in_ratio is {config.teacher_in_ratio}, outside [0, 1]."
    if config.correction.low < 0 or config.correction.high < max(config.correction.low, 1):
        yield "objective.surrogate.correction needs 0 ≤ low ≤ high and high ≥ 1."
    if not in_use:
        return
    if config.ratio != "none" and not has_old_logprobs:
        yield (
            f"objective.surrogate.ratio '{config.ratio}' needs the policy's log-probabilities at sampling and the sampler gives none; "
            "set ratio to 'none' and one pass, or use a sampler that returns them."
        )
    if config.ratio == "none" and passes > 1:
        yield (
            f"objective.surrogate.ratio 'none' is biased from the second of {passes} passes over one buffer; set ratio to 'token' or "
            "'sequence', or one pass."
        )
    if config.teacher_in_ratio and (config.ratio == "none" or not has_teacher):
        yield "objective.surrogate.teacher_in_ratio needs an importance ratio and a teacher; set ratio to 'token', or the weight to 0."
    if config.teacher_in_ratio and temperature != 1:
        yield (
            "objective.surrogate.teacher_in_ratio compares probabilities of tokens, and tokens are drawn at temperature 1; set "
            "objective.divergence.temperature=1 (teacher_temperature alone may differ), or the weight to 0."
        )
    if not sampler_is_exact and config.correction.kind == "none":
        yield (
            "the sampler draws from another distribution than the policy (temperature, top-k, top-p or engine), which biases the policy "
            "gradient; set objective.surrogate.correction.kind=truncate or mask, or sample exactly."
        )
    if config.correction.kind != "none" and not has_old_logprobs:
        yield "objective.surrogate.correction needs the sampler's log-probabilities; set its kind to 'none', or use another sampler."


def _reference(config: ObjectiveConfig, reward: bool, divergence: bool, has_reference: bool) -> Iterator[str]:
    if config.surrogate.reference_kl_weight:
        if not reward:
            yield "objective.surrogate.reference_kl_weight is part of the reward's term, whose weight is 0; set it to 0."
        if not has_reference:
            yield "objective.surrogate.reference_kl_weight needs a reference policy and there is none; configure one, or set it to 0."
    if config.surrogate.entropy_weight and not reward:
        yield "objective.surrogate.entropy_weight is part of the reward's term, whose weight is 0; set it to 0."
    if config.divergence.extrapolation != 1:
        if config.divergence.extrapolation <= 0:
            yield "objective.divergence.extrapolation must be above 0 (1 is the teacher itself)."
        if not divergence:
            yield "objective.divergence.extrapolation has no effect: the divergence's weight is 0; set it to 1."
        if not has_reference:
            yield "objective.divergence.extrapolation needs a reference policy and there is none; configure one, or set it to 1."


def _advantage(config: ObjectiveConfig, reward: bool, group_size: int | None) -> Iterator[str]:
    if reward and group_size is not None and group_size < 2 and config.advantage.kind != "batch":
        yield (
            f"objective.advantage.kind '{config.advantage.kind}' compares the answers to one prompt and there is one per prompt, so every "
            "advantage is 0; sample at least 2, or use 'batch'."
        )


def _telemetry(config: ObjectiveConfig) -> Iterator[str]:
    if config.telemetry.interference_stride < 0:
        yield "objective.telemetry.interference_stride is below 0; use 0 for none, 1 for every token."


def _top_k_teacher(config: ObjectiveConfig, available: int) -> Iterator[str]:
    """What cannot be had of a teacher that gives its ``available`` likeliest tokens and the sampled one, at temperature 1.

    Evaluations compare with the teacher even where the divergence's weight is 0.
    """
    settings = config.divergence
    gives = f"the teacher gives {available} log-probabilities per token (teacher.top_k)"
    temperature = settings.temperature if settings.teacher_temperature is None else settings.teacher_temperature
    if settings.estimator == "full":
        yield (
            f"objective.divergence.estimator 'full' needs the whole distribution but {gives}; set estimator to 'top_k', or use a teacher "
            "in the process without teacher.top_k."
        )
    if settings.estimator == "top_k" and settings.top_k > available:
        yield f"objective.divergence.top_k is {settings.top_k} but {gives}; lower it, or raise teacher.top_k."
    if settings.extrapolation != 1:
        yield f"objective.divergence.extrapolation needs the whole distribution but {gives}; set it to 1, or leave teacher.top_k null."
    if temperature != 1 and not (settings.estimator == "top_k" and settings.tail == "renormalise"):
        yield (
            f"the teacher's temperature is {temperature:g}, for which its whole distribution is needed, but {gives}; set "
            "objective.divergence.teacher_temperature=1, or estimator 'top_k' with tail 'renormalise'."
        )
    if temperature != 1 and (config.gate.kind == "sign_agreement" or config.surrogate.teacher_in_ratio):
        yield (
            f"objective.{'gate' if config.gate.kind == 'sign_agreement' else 'surrogate.teacher_in_ratio'} needs the teacher's probability "
            f"of the sampled token at temperature {temperature:g} but {gives}, at temperature 1; set "
            "objective.divergence.teacher_temperature=1."
        )


def _draws(config: DivergenceConfig, drawn: bool, has_teacher: bool) -> Iterator[str]:
    """Tokens drawn from the teacher and the estimator for them go together."""
    if not has_teacher or not (drawn or config.estimator == "draws"):
        return
    if not drawn:
        yield "objective.divergence.estimator 'draws' needs tokens drawn from the teacher; set teacher.draws=true and teacher.top_k."
    if config.estimator != "draws":
        yield f"teacher.draws=true gives draws, which estimator '{config.estimator}' takes for the likeliest tokens; set it to 'draws'."
    if config.kind != "forward_kl":
        yield "objective.divergence.estimator 'draws' estimates the forward KL; set objective.divergence.kind=forward_kl."
    if config.temperature != 1 or config.teacher_temperature not in (None, 1):
        yield "objective.divergence.estimator 'draws' has tokens drawn at temperature 1; set both temperatures to 1."
