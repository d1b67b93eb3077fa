"""From a configuration to the teacher that it describes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from gkd_rl.config.run import Config, TeacherConfig
from gkd_rl.config.validate import teacher_configs
from gkd_rl.engine import Processes
from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel, load_language_model
from gkd_rl.models.source import resolve
from gkd_rl.models.tokenizers import load_tokenizer, require_same_tokenizer, vocabulary_size
from gkd_rl.teacher.cache import CachedTeacher, open_cache
from gkd_rl.teacher.local import LocalTeacher, Teacher, TopKTeacher
from gkd_rl.teacher.served import ServedTeacher
from gkd_rl.teacher.several import MixedTeachers, RoutedTeachers, route_of
from gkd_rl.types import Example


@dataclass(frozen=True)
class Teaching:
    """Who scores what; None: nobody."""

    teacher: Teacher | None = None
    """scores the rows that are trained on"""
    judge: Teacher | None = None
    """scores samples of evaluations"""
    model: LanguageModel | None = None
    """the teacher's own model, where there is one teacher and it is in the process: evaluated itself, once"""


def check_teaching(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``UserError`` for a teacher that is not there, has another tokenizer, or does not answer: before any model is loaded."""
    for key, teacher in teacher_configs(config).items():
        if teacher.path is not None:
            source = resolve(teacher.path, f"{key}.path")
            theirs = load_tokenizer(source, f"{key}.path", teacher.trust_remote_code)
            try:
                require_same_tokenizer(tokenizer, theirs)
            except UserError as error:
                raise UserError(f"{key}: {error}") from None
        if teacher.cache is not None and teacher.top_k is not None:
            open_cache(teacher.cache, teacher.top_k, None)
        if teacher.url is not None and (teacher.cache is None or config.rollout.on_policy_share > 0):
            end = tokenizer.eos_token_id
            assert isinstance(end, int)
            ServedTeacher(teacher, vocabulary_size(tokenizer), key).probe([end, end])


def check_routes(config: Config, examples: Iterable[Example]) -> None:
    """Raise ``UserError`` for the first example whose column names no teacher."""
    if config.teacher_routing.column is not None:
        for example in examples:
            route_of(example, config.teacher_routing.column, config.teachers)


def build_teaching(config: Config, processes: Processes, tokenizer: PreTrainedTokenizerBase) -> Teaching:
    """The configured teacher, loaded."""
    built = {key: _one(config, key, settings, processes, tokenizer) for key, settings in teacher_configs(config).items()}
    if not config.teachers:
        return built.get("teacher", Teaching())
    each = {name: one.teacher for name, one in zip(config.teachers, built.values(), strict=True) if one.teacher is not None}
    column = config.teacher_routing.column
    teacher = MixedTeachers(each, config.teacher_routing.weights) if column is None else RoutedTeachers(each, column)
    return Teaching(teacher, teacher)


def teacher_name(teacher: TeacherConfig) -> str:
    """By what a cache knows the teacher."""
    return str(teacher.served_model or teacher.path)


def _one(config: Config, key: str, settings: TeacherConfig, processes: Processes, tokenizer: PreTrainedTokenizerBase) -> Teaching:
    if settings.cache is None:
        return _live(config, key, settings, processes, tokenizer)
    assert settings.top_k is not None, "validate asks for it"
    named = (settings.path, settings.url) != (None, None)
    cache = open_cache(settings.cache, settings.top_k, teacher_name(settings) if named else None)
    if config.rollout.on_policy_share == 0:  # nothing is left to a live teacher
        return Teaching(CachedTeacher(cache, settings.top_k, None))
    live = _live(config, key, settings, processes, tokenizer)
    return replace(live, teacher=CachedTeacher(cache, settings.top_k, live.teacher))


def _live(config: Config, key: str, settings: TeacherConfig, processes: Processes, tokenizer: PreTrainedTokenizerBase) -> Teaching:
    if settings.url is not None:
        served = ServedTeacher(settings, vocabulary_size(tokenizer), key)
        return Teaching(served, served)
    model = load_frozen(settings, f"{key}.path", processes)
    whole = LocalTeacher(model, 4 * config.engine.micro_batch_tokens)
    teacher = whole if settings.top_k is None else TopKTeacher(whole, settings.top_k)
    return Teaching(teacher, teacher, model)


def load_frozen(config: TeacherConfig, where: str, processes: Processes) -> LanguageModel:
    """The model at ``config.path`` on this process's device, not trained."""
    assert config.path is not None
    model = load_language_model(config.path, where, config.dtype, config.trust_remote_code)
    model.module.to(processes.device)  # pyright: ignore[reportArgumentType]
    model.module.requires_grad_(False)
    return model
