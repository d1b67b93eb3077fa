"""From a configuration to the teacher that it describes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gkd_rl.config.run import Config, TeacherConfig
from gkd_rl.config.teachers import model_of, teacher_configs
from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel, load_language_model
from gkd_rl.models.pieces import matched_tokens, pieces_of
from gkd_rl.models.quantized import Quantized, require_bitsandbytes
from gkd_rl.models.source import resolve
from gkd_rl.models.tokenizers import load_tokenizer, require_same_tokenizer, vocabulary_size
from gkd_rl.objective.target import teacher_temperature
from gkd_rl.processes import Processes
from gkd_rl.teacher.cache import CachedTeacher, open_cache
from gkd_rl.teacher.local import LocalTeacher, Teacher, TopKTeacher
from gkd_rl.teacher.other_tokenizer import Reteller, SpanTeacher
from gkd_rl.teacher.own import MovingAverage, PrivilegedTeacher, privileged_prompt
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
    averages: tuple[MovingAverage, ...] = ()
    """teachers that follow the student"""
    shares_student: bool = False
    """whether a teacher reads the trained model's own weights, which then have to be whole when it is asked"""
    parameters: int = 0
    """of the models in the process that score a row that is trained on (the mean of several that rows are routed to)"""

    def follow(self, student: LanguageModel) -> None:
        """After a step's updates; the student's parameters have to be whole here."""
        for average in self.averages:
            average.follow(student)

    def state_dict(self) -> list[dict[str, Tensor]]:
        """What changes of teachers in the course of a run."""
        return [average.state_dict() for average in self.averages]

    def load_state_dict(self, state: list[dict[str, Tensor]]) -> None:
        """What ``state_dict`` gave."""
        for average, weights in zip(self.averages, state, strict=True):
            average.load_state_dict(weights)


def check_teaching(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``UserError`` for a teacher that is not there, has another tokenizer, or does not answer: before any model is loaded."""
    for key, teacher in teacher_configs(config).items():
        if teacher.quantize != "none":
            require_bitsandbytes(f"{key}.quantize")
        if model_of(teacher)[0] is not None:
            assert teacher.path is not None
            source = resolve(teacher.path, f"{key}.path")
            theirs = load_tokenizer(source, f"{key}.path", teacher.trust_remote_code)
            if teacher.other_tokenizer:
                _require_common_tokens(config, tokenizer, theirs, key)
            else:
                _require_same_tokenizer(tokenizer, theirs, key, may_differ=teacher.url is None and not config.teachers)
        if teacher.cache is not None and teacher.top_k is not None:
            open_cache(teacher.cache, teacher.top_k, None, teacher.draws)
        if teacher.url is not None and (teacher.cache is None or config.rollout.on_policy_share > 0):
            end = tokenizer.eos_token_id
            assert isinstance(end, int)
            ServedTeacher(teacher, vocabulary_size(tokenizer), key).probe([end, end])


def _require_same_tokenizer(tokenizer: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, key: str, may_differ: bool) -> None:
    try:
        require_same_tokenizer(tokenizer, theirs)
    except UserError as error:
        switch = f", or set {key}.other_tokenizer=true to compare the two on the texts of their tokens" if may_differ else ""
        raise UserError(f"{key}: {error}{switch}") from None


def _require_common_tokens(config: Config, tokenizer: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, key: str) -> None:
    """Raise ``UserError`` for a teacher that reads no chats, and for one with no token of the student's."""
    if config.task.prompt_format == "chat" and theirs.chat_template is None:
        raise UserError(f"task.prompt_format is 'chat' but the tokenizer of {key}.path has no chat template; use 'plain'")
    student = pieces_of(tokenizer, "student.path")
    if all(mine in student.special for mine, _ in matched_tokens(student, pieces_of(theirs, f"{key}.path"))):
        raise UserError(f"{key}.other_tokenizer: no token has the same text for student and teacher; choose another teacher")


def check_taught(config: Config, examples: Iterable[Example]) -> None:
    """Raise ``UserError`` for the first example whose column names no teacher, or that lacks what a teacher is to be shown."""
    templates = [teacher.privileged for teacher in teacher_configs(config).values() if teacher.privileged is not None]
    for example in examples:
        if config.teacher_routing.column is not None:
            route_of(example, config.teacher_routing.column, config.teachers)
        for template in templates:
            privileged_prompt(example, template)


def build_teaching(
    config: Config, processes: Processes, tokenizer: PreTrainedTokenizerBase, adapted: LanguageModel | None = None
) -> Teaching:
    """The configured teacher, loaded. ``adapted`` is the student with its adapter, for teachers under it; None: they get a copy."""
    built = {key: _one(config, key, settings, processes, tokenizer, adapted) for key, settings in teacher_configs(config).items()}
    if not config.teachers:
        return built.get("teacher", Teaching())
    each = {name: one.teacher for name, one in zip(config.teachers, built.values(), strict=True) if one.teacher is not None}
    averages = tuple(average for one in built.values() for average in one.averages)
    column = config.teacher_routing.column
    teacher = MixedTeachers(each, config.teacher_routing.weights) if column is None else RoutedTeachers(each, column)
    parameters = sum(one.parameters for one in built.values())
    return Teaching(
        teacher,
        teacher,
        averages=averages,
        shares_student=any(one.shares_student for one in built.values()),
        parameters=parameters if column is None else parameters // len(built),
    )


def teacher_name(teacher: TeacherConfig) -> str:
    """By what a cache knows the teacher."""
    name = str(teacher.served_model or teacher.path) if teacher.kind == "model" else "the initial student"
    return name if teacher.privileged is None else f"{name} shown {teacher.privileged!r}"


def _one(
    config: Config,
    key: str,
    settings: TeacherConfig,
    processes: Processes,
    tokenizer: PreTrainedTokenizerBase,
    adapted: LanguageModel | None,
) -> Teaching:
    if settings.cache is None:
        return _live(config, key, settings, processes, tokenizer, adapted)
    assert settings.top_k is not None, "validate asks for it"
    named = (*model_of(settings), settings.kind) != (None, None, "model")
    cache = open_cache(settings.cache, settings.top_k, teacher_name(settings) if named else None, settings.draws)
    if config.rollout.on_policy_share == 0:  # nothing is left to a live teacher
        return Teaching(CachedTeacher(cache, settings.top_k, None))
    live = _live(config, key, settings, processes, tokenizer, adapted)
    return replace(live, teacher=CachedTeacher(cache, settings.top_k, live.teacher))


def _live(
    config: Config,
    key: str,
    settings: TeacherConfig,
    processes: Processes,
    tokenizer: PreTrainedTokenizerBase,
    adapted: LanguageModel | None,
) -> Teaching:
    if settings.url is not None:
        served = _shown(settings, ServedTeacher(settings, vocabulary_size(tokenizer), key), tokenizer, None)
        return Teaching(served, served)
    shared = adapted if settings.kind == "base" else None
    model = shared or _model(config, key, settings, processes)
    whole = LocalTeacher(model, 4 * config.engine.micro_batch_tokens, processes.device, under_adapter=shared is not None)
    if settings.shard:
        whole.shard(processes)
    window = getattr(model.module.config, "max_position_embeddings", None)
    if settings.other_tokenizer:
        theirs = pieces_of(model.tokenizer, f"{key}.path")
        reteller = Reteller(pieces_of(tokenizer, "student.path"), theirs, settings.privileged)
        spans = SpanTeacher(whole, reteller, settings.top_k, teacher_temperature(config.objective.divergence), window)
        return Teaching(spans, spans, model, parameters=model.parameters)
    teacher = _shown(settings, whole if settings.top_k is None else TopKTeacher(whole, settings.top_k, settings.draws), tokenizer, window)
    averages = (MovingAverage(model, settings.decay),) if settings.kind == "ema" else ()
    own = model if settings.kind == "model" else None
    return Teaching(teacher, teacher, own, averages, shared is not None, whole.parameters)


def _model(config: Config, key: str, settings: TeacherConfig, processes: Processes) -> LanguageModel:
    if settings.kind == "model":
        return load_frozen(settings, f"{key}.path", processes)
    student = config.student
    # Averages move by small shares, which bfloat16 would round away.
    dtype = "float32" if settings.kind == "ema" else student.dtype
    copy = TeacherConfig(path=student.path, dtype=dtype, shard=settings.shard, trust_remote_code=student.trust_remote_code)
    return load_frozen(copy, "student.path", processes)


def _shown(settings: TeacherConfig, teacher: Teacher, tokenizer: PreTrainedTokenizerBase, window: int | None) -> Teacher:
    return teacher if settings.privileged is None else PrivilegedTeacher(teacher, settings.privileged, tokenizer, window)


def load_frozen(config: TeacherConfig, where: str, processes: Processes) -> LanguageModel:
    """The model at ``config.path``, not trained: on this process's device, or in CPU memory where it waits there or is to be cut up."""
    assert config.path is not None
    home = torch.device("cpu") if config.offload or config.shard else processes.device
    if config.quantize != "none":  # which has to happen on the device
        model = load_language_model(config.path, where, config.dtype, config.trust_remote_code, Quantized(config.quantize, home))
    else:
        model = load_language_model(config.path, where, config.dtype, config.trust_remote_code)
        model.module.to(home)  # pyright: ignore[reportArgumentType]
    model.module.requires_grad_(False)
    return model
