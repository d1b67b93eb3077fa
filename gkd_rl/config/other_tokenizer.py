"""Refuses what cannot be of a teacher with another tokenizer. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.config.run import Config, TeacherConfig


def beside_other_tokenizer(key: str, teacher: TeacherConfig, config: Config) -> Iterator[str]:
    """What cannot be of a teacher with another tokenizer."""
    if not teacher.other_tokenizer:
        return
    unfit = f"{key}.other_tokenizer is for one teacher in the process"
    if config.teachers:
        yield f"{unfit}, and teachers names several; use it with teacher, or set it to false"
    if teacher.kind != "model":
        yield f"{unfit}, and {key}.kind '{teacher.kind}' is made of the student and has its tokenizer; set it to false"
    for name in ("url", "cache"):
        if getattr(teacher, name) is not None:
            yield f"{unfit}, and {key}.{name} gives scores by the student's tokens; set either to null or false"
    if teacher.path is None:
        yield f"{unfit}, and {key}.path is null; set it"
    if teacher.draws:
        yield f"{key}.draws draws the student's tokens, which {key}.other_tokenizer says are not the teacher's; set either to false"
    if config.rollout.completions == "teacher":
        yield (
            f"rollout.completions is 'teacher', whose tokens {key}.other_tokenizer says are not the student's; set it to dataset, with the "
            "teacher's answers as the dataset's"
        )


def needs_one_tokenizer(config: ObjectiveConfig) -> Iterator[str]:
    """What needs the teacher's probability of each of the student's tokens."""
    settings, key = config.divergence, "teacher.other_tokenizer"
    if settings.estimator not in ("full", "top_k"):
        yield (
            f"objective.divergence.estimator '{settings.estimator}' needs the teacher's probability of each sampled token, which {key} has "
            "of spans of text only; set it to 'full' or 'top_k'."
        )
    if settings.use == "both":
        yield f"objective.divergence.use 'both' needs the teacher's probability of each sampled token, which {key} has not; use 'loss'."
    if settings.estimator == "top_k" and settings.tail != "bucket":
        yield f"objective.divergence.tail '{settings.tail}' leaves out what {key} cannot compare, which differs; set it to 'bucket'."
    if settings.extrapolation != 1:
        yield f"objective.divergence.extrapolation needs one tokenizer of teacher and reference, and {key} says otherwise; set it to 1."
    if config.gate.kind == "sign_agreement":
        yield f"objective.gate.kind 'sign_agreement' works on tokens, and {key} on spans of text; choose another gate."
    if config.surrogate.teacher_in_ratio:
        yield f"objective.surrogate.teacher_in_ratio works on tokens, and {key} on spans of text; set it to 0."
