"""Refuses settings that cannot work, before anything is loaded. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gkd_rl.config.load import all_keys, value_at
from gkd_rl.config.other_tokenizer import beside_other_tokenizer
from gkd_rl.config.run import Config, RolloutConfig, TeacherConfig
from gkd_rl.config.student import student_complaints
from gkd_rl.errors import UserError
from gkd_rl.objective.schedule import weights_at
from gkd_rl.objective.validate import validate_objective

MOST_RESAMPLES = 14
"""Rounds that a stream of 2³² examples has room for."""

RESUME = ("never", "auto", "new")

_AT_LEAST = {
    "max_steps": 1,
    "log_rollouts_every": 0,
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
    *("rollout.vllm.kv_cache_gib", "rollout.vllm.timeout", "student.lora.alpha"),
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


def has_teacher(config: Config) -> bool:
    """Whether a teacher is configured, of whatever kind."""
    return bool(teacher_configs(config))


def teacher_configs(config: Config) -> dict[str, TeacherConfig]:
    """Configuration key → the teacher there: ``teacher``, or each of ``teachers``."""
    if config.teachers:
        return {f"teachers.{name}": teacher for name, teacher in config.teachers.items()}
    settings = config.teacher
    exists = settings.kind != "model" or (settings.path, settings.url, settings.cache) != (None, None, None)
    return {"teacher": config.teacher} if exists else {}


def teacher_top_k(config: Config) -> int | None:
    """Of how many tokens all teachers give log-probabilities; None: their whole distributions."""
    return next((teacher.top_k for teacher in teacher_configs(config).values()), None)


def samples_exactly(rollout: RolloutConfig) -> bool:
    """Whether tokens are drawn from the very policy. vLLM's arithmetic differs from the trainer's."""
    untruncated = (rollout.top_k, rollout.top_p, rollout.min_p, rollout.min_new_tokens) == (0, 1, 0, 0)
    return rollout.temperature == 1 and untruncated and rollout.sampler != "vllm"


def needs_teacher(config: Config) -> bool:
    """Whether any update of the run has a divergence to the teacher."""
    objective = config.objective
    schedules = (objective.alpha_schedule, objective.divergence_schedule)
    return any(s.kind != "constant" for s in schedules) or weights_at(objective, 0, config.max_steps).divergence != 0


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
    if config.rollout.overlap and config.rollout.sampler != "native":
        yield f"rollout.overlap samples with a copy of the student, and rollout.sampler={config.rollout.sampler} has none; use native"
    if config.rollout.overlap and config.engine.zero_stage == 3:
        yield "rollout.overlap keeps a whole copy of the student, which engine.zero_stage=3 shards; set overlap to false, or stage 2"
    if "" in config.rollout.stop:
        yield "rollout.stop holds an empty text, which every answer contains; remove it"
    if config.engine.offload_while_scoring and config.engine.zero_stage == 3:
        yield "engine.offload_while_scoring works with ZeRO 0 to 2, and engine.zero_stage is 3; set it to false, or another stage"
    if config.rollout.compile and config.rollout.sampler != "native":
        yield f"rollout.compile is for the native sampler, and rollout.sampler={config.rollout.sampler}; set compile to false"
    if config.rollout.compile and config.engine.zero_stage == 3:
        yield "rollout.compile needs weights that stay where they are, which engine.zero_stage=3 moves; set compile to false, or stage 2"
    yield from student_complaints(config.student)
    if config.rollout.sampler == "vllm":
        yield from _vllm_complaints(config.rollout)
    for key, teacher in {"teacher": config.teacher, **teacher_configs(config)}.items():
        yield from _teacher_complaints(key, teacher)
        yield from _own_complaints(key, teacher, config)
        yield from beside_other_tokenizer(key, teacher, config)
    yield from _several_complaints(config)
    yield from _cache_complaints(config)
    if config.resume not in RESUME:
        yield f"resume is '{config.resume}'; it must be one of {', '.join(RESUME)}"
    for number, reward in enumerate(config.rewards or []):
        if not 0 <= reward.timeout < math.inf:
            yield f"rewards[{number}].timeout is {reward.timeout}; it must be a number of seconds, or 0 for any time"
    if config.rewards == []:
        yield "rewards is empty; leave it out for the task's own reward, and set objective.alpha=1 to train without one"


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


def _teacher_complaints(key: str, teacher: TeacherConfig) -> Iterator[str]:
    if teacher.top_k is not None and teacher.top_k < 0:
        yield f"{key}.top_k is {teacher.top_k}; it must be at least 0, or null for the whole distribution"
    if teacher.quantize != "none" and (teacher.kind != "model" or teacher.path is None or teacher.url is not None):
        yield f"{key}.quantize is for a model of {key}.path in the process; set it to none"
    if teacher.offload and (teacher.url is not None or teacher.quantize != "none"):
        other = "url" if teacher.url is not None else "quantize"
        yield f"{key}.offload moves a model in the process to the device and back, which {key}.{other} rules out; drop one of them"
    if teacher.draws and (not teacher.top_k or teacher.url is not None):
        yield f"{key}.draws needs {key}.top_k, the number of draws, and a teacher in the process; set both, or {key}.draws=false"
    for name, least in (("rows_per_request", 1), ("concurrency", 1), ("retries", 0), ("retry_seconds", 0)):
        if getattr(teacher, name) < least:
            yield f"{key}.{name} is {getattr(teacher, name)}; it must be at least {least}"
    if teacher.timeout <= 0:
        yield f"{key}.timeout is {teacher.timeout}; it must be above 0"
    if teacher.url is None:
        if teacher.served_model is not None:
            yield f"{key}.served_model is set but {key}.url is not; set the server's address, or leave both null"
        return
    if not teacher.url.startswith(("http://", "https://")):
        yield f"{key}.url is '{teacher.url}'; it must begin with http:// or https://"
    if teacher.served_model is None:
        yield f"{key}.url is set but {key}.served_model is not; give the name under which the server knows the model"
    if teacher.top_k is None:
        yield f"{key}.url needs {key}.top_k: a server gives no whole distributions; set it to what the server allows, such as 20"


def model_of(teacher: TeacherConfig) -> tuple[str | None, str | None]:
    """Path and url of the teacher's model; a teacher made of the student has neither."""
    return (teacher.path, teacher.url) if teacher.kind == "model" else (None, None)


def _own_complaints(key: str, teacher: TeacherConfig, config: Config) -> Iterator[str]:
    """What cannot be of teachers made of the student."""
    if not 0 <= teacher.decay < 1:
        yield f"{key}.decay is {teacher.decay}; it must be at least 0 and below 1 (at 1 the average never moves: use kind 'student')"
    if teacher.privileged is not None and "{prompt}" not in teacher.privileged:
        yield f"{key}.privileged does not name {{prompt}}, so the teacher would not see the question; put it into the template"
    if teacher.kind == "model":
        return
    if teacher.path not in (None, TeacherConfig().path) or teacher.url is not None:
        yield f"{key}.kind '{teacher.kind}' is made of the student, but {key}.{'url' if teacher.url else 'path'} is set; set it to null"
    if teacher.kind == "base" and not config.student.lora.rank:
        yield (
            f"{key}.kind 'base' is the model under the student's adapter, and student.lora.rank is 0; give the adapter a rank, or set "
            f"{key}.kind=student"
        )
    if teacher.kind == "ema" and config.rollout.max_staleness > 0 and teacher.top_k is None:
        yield (
            f"{key}.kind 'ema' changes its head at every step, with which stored hidden states of earlier steps would be read; set "
            f"rollout.max_staleness=0, or {key}.top_k"
        )
    divergence = config.objective.divergence
    same_temperature = divergence.teacher_temperature in (None, divergence.temperature)
    if key == "teacher" and teacher.privileged is None and same_temperature and divergence.extrapolation == 1 and not _moves(config):
        yield (
            f"{key}.kind '{teacher.kind}' is the student itself and nothing else moves the student, so every gradient is 0; set "
            f"{key}.privileged, objective.alpha below 1, or objective.cross_entropy_weight"
        )


def _moves(config: Config) -> bool:
    """Whether another term than the divergence trains the student at some step."""
    objective = config.objective
    schedules = (objective.alpha_schedule, objective.reward_schedule)
    scheduled = any(schedule.kind != "constant" for schedule in schedules)
    return scheduled or weights_at(objective, 0, config.max_steps).reward != 0 or objective.cross_entropy_weight != 0


def _cache_complaints(config: Config) -> Iterator[str]:
    if any(teacher.cache is not None for teacher in config.teachers.values()):
        yield "a cache holds one teacher's scores; use it with teacher, not with teachers"
    if config.teacher.cache is None or config.teachers:
        return
    if config.teacher.top_k is None:
        yield "teacher.cache needs teacher.top_k: a cache holds the likeliest tokens only; set it to at most what the cache holds"
    if config.rollout.on_policy_share == 1:
        yield (
            "teacher.cache serves dataset rows and rollout.on_policy_share=1 leaves none; lower it (0: the cache alone teaches), or set "
            "teacher.cache to null"
        )
    if config.teacher.kind == "ema":
        yield "teacher.cache keeps what a teacher once said, and teacher.kind 'ema' changes at every step; set teacher.cache to null"
    if config.rollout.on_policy_share > 0 and (*model_of(config.teacher), config.teacher.kind) == (None, None, "model"):
        yield "teacher.cache serves dataset rows only and some rows are sampled; set teacher.path or url, or rollout.on_policy_share=0"


def _several_complaints(config: Config) -> Iterator[str]:
    """What cannot be of several teachers together."""
    routing, teachers = config.teacher_routing, config.teachers
    if not teachers:
        if routing.column is not None or routing.weights:
            yield "teacher_routing is set but teachers is empty; name the teachers there, or leave teacher_routing out"
        return
    if config.teacher not in (TeacherConfig(), TeacherConfig(path=None)):
        yield "teacher and teachers are both set; move the first into teachers, under a name"
    for name, teacher in teachers.items():
        if teacher.kind == "model" and (teacher.path, teacher.url) == (None, None):
            yield f"teachers.{name} has neither path nor url; give it one"
    if len({(teacher.top_k, teacher.draws) for teacher in teachers.values()}) > 1:
        yield "teachers give scores of different forms; set top_k and draws alike for all of them (null: whole distributions)"
    if routing.column is not None:
        if routing.weights:
            yield "teacher_routing.weights are those of a mixture, but teacher_routing.column gives each row one teacher; remove either"
        return
    if teacher_top_k(config) is not None:
        yield "a mixture of teachers needs their whole distributions; leave top_k null, or route rows with teacher_routing.column"
    for name, weight in routing.weights.items():
        if name not in teachers:
            yield f"teacher_routing.weights names '{name}', which is not among teachers ({', '.join(teachers)}); name one of those"
        if not (weight >= 0 and math.isfinite(weight)):
            yield f"teacher_routing.weights.{name} is {weight}; it must be a number of at least 0"
    if routing.weights and not sum(routing.weights.values()) > 0:
        yield "teacher_routing.weights are all 0; give some teacher a weight"


def _number(config: Config, key: str) -> float:
    value = value_at(config, key)
    assert isinstance(value, (int, float))
    return value
