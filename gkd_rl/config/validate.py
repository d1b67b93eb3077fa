"""Refuses settings that cannot work, before anything is loaded. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gkd_rl.config.engine import engine_complaints
from gkd_rl.config.load import all_keys, value_at
from gkd_rl.config.rewards import reward_complaints
from gkd_rl.config.run import Config, RolloutConfig
from gkd_rl.config.student import student_complaints
from gkd_rl.config.teachers import all_teacher_complaints, has_teacher, model_of, teacher_configs, teacher_top_k
from gkd_rl.config.tracking import tracking_complaints
from gkd_rl.config.watch import watch_complaints
from gkd_rl.errors import UserError
from gkd_rl.objective.schedule import weights_at
from gkd_rl.objective.validate import schedule_complaints, validate_objective

MOST_RESAMPLES = 14
"""Rounds that a stream of 2³² examples has room for."""

RESUME = ("never", "auto", "new")

_AT_LEAST = {
    "max_steps": 1,
    "log_rollouts_every": 0,
    "log_top_choices": 0,
    "log_completions": 0,
    "log_completions_every": 1,
    "student.lora.rank": 0,
    "rollout.prompts_per_step": 1,
    "rollout.per_prompt": 1,
    "rollout.max_new_tokens": 1,
    "rollout.passes": 1,
    "rollout.updates_per_pass": 1,
    "rollout.max_staleness": 0,
    "rollout.sampling_rows": 1,
    "rollout.top_k": 0,
    "rollout.min_new_tokens": 0,
    "rollout.vllm.retries": 0,
    "rollout.max_resamples": 0,
    "rollout.completions_temperature": 0,
    "rollout.buffer_gib": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0,
    "optimizer.max_grad_norm": 0,
    "engine.threads": 0,
    "engine.max_bad_updates": 0,
    "engine.micro_batch_tokens": 1,
    "evaluation.examples": 1,
    "evaluation.every": 0,
    "evaluation.during_examples": 1,
    "evaluation.samples": 1,
    "task.train_examples": 0,
    "checkpoint.every": 0,
    "checkpoint.keep": 1,
    "task.max_prompt_tokens": 1,
    "ablation.parallel": 1,
    "sft.examples": 1,
    "sft.batch_size": 1,
}
_IN_RANGE = {
    "rollout.on_policy_share": (0.0, 1.0),
    "rollout.min_p": (0.0, 1.0),
    "optimizer.end_share": (0.0, 1.0),
}
_BELOW_ONE = ("optimizer.beta1", "optimizer.beta2")
_ABOVE_ZERO = (
    *("evaluation.temperature", "optimizer.lr", "optimizer.eps", "sft.lr", "sft.epochs", "rollout.temperature", "rollout.top_p"),
    *("rollout.vllm.kv_cache_gib", "rollout.vllm.timeout", "student.lora.alpha", "engine.timeout"),
)


def validate(config: Config) -> None:
    """Raise ``UserError`` with the first setting that is out of range, or the first combination that is inert or wrong."""
    for complaint in _complaints(config):
        raise UserError(complaint)
    rollout = config.rollout
    validate_objective(
        config.objective,
        has_reward=config.rewards is None or bool(config.rewards),
        has_teacher=has_teacher(config),
        has_reference=True,
        passes=rollout.passes * rollout.updates_per_pass * (1 + rollout.max_staleness + rollout.overlap),
        sampler_is_exact=samples_exactly(rollout),
        has_old_logprobs=True,
        on_policy_share=rollout.on_policy_share,
        group_size=rollout.per_prompt,
        teacher_top_k=teacher_top_k(config),
        teacher_draws=any(teacher.draws for teacher in teacher_configs(config).values()),
        other_tokenizer=any(teacher.other_tokenizer for teacher in teacher_configs(config).values()),
    )


def samples_exactly(rollout: RolloutConfig) -> bool:
    """Whether tokens are drawn from the very policy. vLLM's arithmetic differs from the trainer's."""
    untruncated = (rollout.top_k, rollout.top_p, rollout.min_p, rollout.min_new_tokens) == (0, 1, 0, 0)
    return rollout.temperature == 1 and untruncated and rollout.sampler != "vllm"


def needs_teacher(config: Config) -> bool:
    """Whether any update of the run has a divergence to the teacher."""
    objective = config.objective
    schedules = (objective.alpha_schedule, objective.divergence_schedule)
    raised = config.watch.action == "raise_alpha"
    return raised or any(s.kind != "constant" for s in schedules) or weights_at(objective, 0, config.max_steps).divergence != 0


def _complaints(config: Config) -> Iterator[str]:
    for key in all_keys():
        value = value_at(config, key)
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{key} is {value}; it must be a finite number"
    for key, least in _AT_LEAST.items():
        if _number(config, key) < least:
            yield f"{key} is {value_at(config, key)}; it must be at least {least}"
    for key, (low, high) in _IN_RANGE.items():
        if not low <= _number(config, key) <= high:
            yield f"{key} is {value_at(config, key)}; it must lie between {low:g} and {high:g}"
    for key in _BELOW_ONE:
        if not 0 <= _number(config, key) < 1:
            yield f"{key} is {value_at(config, key)}; it must be at least 0 and below 1"
    for key in _ABOVE_ZERO:
        if _number(config, key) <= 0:
            yield f"{key} is {value_at(config, key)}; it must be above 0"
    if config.rollout.top_p > 1:
        yield f"rollout.top_p is {config.rollout.top_p}; it must lie between 0 and 1"
    if config.rollout.min_new_tokens > config.rollout.max_new_tokens:
        yield (
            f"rollout.min_new_tokens is {config.rollout.min_new_tokens}, above rollout.max_new_tokens="
            f"{config.rollout.max_new_tokens}; lower it"
        )
    if config.rollout.max_resamples and config.rollout.per_prompt < 2:
        yield "rollout.max_resamples replaces groups that are judged alike, and rollout.per_prompt is 1; set it to 0, or sample groups"
    if config.rollout.max_resamples > MOST_RESAMPLES:
        yield f"rollout.max_resamples is {config.rollout.max_resamples}; it must be at most {MOST_RESAMPLES}"
    if config.rollout.completions == "teacher":
        if model_of(config.teacher)[0] is None or config.teacher.url is not None or config.teachers:
            yield "rollout.completions is 'teacher' but no teacher in the process is configured; set teacher.path, or completions=dataset"
        if config.teacher.cache is not None:
            yield "teacher.cache holds scores of the dataset's completions and rollout.completions is 'teacher'; set it to dataset"
    if config.rollout.completions == "teacher" and config.rollout.on_policy_share >= 1:
        yield "rollout.completions is 'teacher' but every row is sampled from the student; lower rollout.on_policy_share (λ)"
    if config.rollout.first_batch is not None and config.rollout.on_policy_share == 0:
        yield "rollout.first_batch is of sampled answers, and rollout.on_policy_share=0 has none sampled; drop one of them"
    if config.rollout.overlap and config.rollout.sampler != "native":
        yield f"rollout.overlap samples with a copy of the student, and rollout.sampler={config.rollout.sampler} has none; use native"
    if config.rollout.overlap and config.engine.zero_stage == 3:
        yield "rollout.overlap keeps a whole copy of the student, which engine.zero_stage=3 shards; set overlap to false, or stage 2"
    if "" in config.rollout.stop:
        yield "rollout.stop holds an empty text, which every answer contains; remove it"
    yield from _share_complaints(config)
    yield from engine_complaints(config)
    yield from watch_complaints(config.watch, config.objective)
    yield from tracking_complaints(config.trackers, config.tracking)
    if config.rollout.compile and config.rollout.sampler != "native":
        yield f"rollout.compile is for the native sampler, and rollout.sampler={config.rollout.sampler}; set compile to false"
    if config.rollout.compile and config.engine.zero_stage == 3:
        yield "rollout.compile needs weights that stay where they are, which engine.zero_stage=3 moves; set compile to false, or stage 2"
    if config.rollout.calculator and config.rollout.sampler != "native":
        yield f"rollout.calculator writes into answers as they are made, which rollout.sampler={config.rollout.sampler} cannot; use native"
    if config.rollout.calculator and any(teacher.other_tokenizer for teacher in teacher_configs(config).values()):
        yield "rollout.calculator inserts tokens that no term counts, and teacher.other_tokenizer compares whole spans; drop one of them"
    yield from student_complaints(config.student)
    if config.rollout.sampler == "vllm":
        yield from _vllm_complaints(config.rollout)
    yield from all_teacher_complaints(config)
    if config.resume not in RESUME:
        yield f"resume is '{config.resume}'; it must be one of {', '.join(RESUME)}"
    for number, reward in enumerate(config.rewards or []):
        yield from reward_complaints(f"rewards[{number}]", reward)
    if config.rewards == []:
        yield "rewards is empty; leave it out for the task's own reward, and set objective.alpha=1 to train without one"


def _share_complaints(config: Config) -> Iterator[str]:
    """What cannot be of a share of sampled rows that moves."""
    rollout = config.rollout
    key, schedule = "rollout.on_policy_schedule", rollout.on_policy_schedule
    yield from schedule_complaints(key, rollout.on_policy_share, schedule)
    if schedule.kind == "constant":
        return
    if not 0 < rollout.on_policy_share < 1 or not 0 <= (schedule.end or 0.0) <= 1:
        yield (
            f"{key} moves rollout.on_policy_share from {rollout.on_policy_share:g} to {schedule.end:g}; it must begin between 0 and 1, "
            "without these (0.01 will do), since other settings go by it, and end from 0 to 1"
        )
    if schedule.kind in ("plateau", "adaptive") and rollout.overlap:
        yield (
            f"{key}.kind '{schedule.kind}' waits for evaluations, which rollout.overlap samples ahead of; set overlap to false, or "
            "another kind"
        )
    if schedule.kind == "adaptive" and not config.evaluation.every:
        yield f"{key}.kind 'adaptive' goes by evaluations and evaluation.every is 0, so the share would never move; set it above 0"
    if schedule.kind == "adaptive" and (schedule.end or 0.0) < rollout.on_policy_share:
        yield f"{key}.kind 'adaptive' only lets the share grow and end={schedule.end:g} is below it; raise end, or use another kind"


def _vllm_complaints(rollout: RolloutConfig) -> Iterator[str]:
    """What vLLM would refuse, or do in another way than the settings mean."""
    if not 0.01 <= rollout.temperature <= 2:
        yield f"rollout.temperature is {rollout.temperature}; vLLM samples between 0.01 and 2: change it, or set rollout.sampler=native"
    if rollout.min_p > 0 and rollout.top_p < 1:
        yield "rollout.min_p and rollout.top_p are both set, which vLLM applies in another order; drop one, or set rollout.sampler=native"
    url = rollout.vllm.url
    if url is not None and not url.startswith(("http://", "https://")):
        yield f"rollout.vllm.url is '{url}'; write it as http://HOST:PORT"
    if url is not None and rollout.vllm.sleep:
        yield "rollout.vllm.sleep is about an engine in this process, and rollout.vllm.url names a server; drop one of them"


def _number(config: Config, key: str) -> float:
    value = value_at(config, key)
    assert isinstance(value, (int, float))
    return value
