"""Which teachers a configuration names, and what cannot be of them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gkd_rl.config.other_tokenizer import beside_other_tokenizer
from gkd_rl.config.run import Config, TeacherConfig
from gkd_rl.objective.schedule import weights_at


def all_teacher_complaints(config: Config) -> Iterator[str]:
    """A sentence for each setting of teachers that is out of range, inert, or wrong beside others."""
    for key, teacher in {"teacher": config.teacher, **teacher_configs(config)}.items():
        yield from _teacher_complaints(key, teacher)
        yield from _shard_complaints(key, teacher, config)
        yield from _own_complaints(key, teacher, config)
        yield from beside_other_tokenizer(key, teacher, config)
    yield from _several_complaints(config)
    yield from _cache_complaints(config)


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


def _teacher_complaints(key: str, teacher: TeacherConfig) -> Iterator[str]:
    if teacher.top_k is not None and teacher.top_k < 0:
        yield f"{key}.top_k is {teacher.top_k}; it must be at least 0, or null for the whole distribution"
    if teacher.quantize != "none" and (teacher.kind != "model" or teacher.path is None or teacher.url is not None):
        yield f"{key}.quantize is for a model of {key}.path in the process; set it to none"
    if teacher.offload and (teacher.url is not None or teacher.quantize != "none"):
        other = "url" if teacher.url is not None else "quantize"
        yield f"{key}.offload moves a model in the process to the device and back, which {key}.{other} rules out; drop one of them"
    if teacher.offload and teacher.kind == "base":
        yield f"{key}.offload is for a teacher of its own, and {key}.kind 'base' is the student's own weights; set offload to false"
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


def _shard_complaints(key: str, teacher: TeacherConfig, config: Config) -> Iterator[str]:
    """What cannot be of a teacher in whose passes all ranks take part alike."""
    if not teacher.shard:
        return
    if teacher.kind not in ("model", "student") or (teacher.kind == "model" and teacher.path is None):
        yield f"{key}.shard is for a frozen model in the process, of {key}.path or {key}.kind 'student'; set it to false"
    plain = TeacherConfig()
    for name in ("url", "cache", "quantize", "offload", "privileged", "other_tokenizer"):
        if getattr(teacher, name) != getattr(plain, name):
            yield f"{key}.shard cuts up a whole teacher that scores every row on all ranks alike, which {key}.{name} rules out; drop one"
    if key == "teacher" and teacher.kind == "model" and config.evaluation.teacher:
        yield f"{key}.shard leaves no rank a whole teacher to be evaluated; set evaluation.teacher=false"
    if config.rollout.completions == "teacher":
        yield f"{key}.shard leaves no rank a whole teacher to sample from; set rollout.completions=dataset, or {key}.shard=false"


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
