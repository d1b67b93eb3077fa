"""From a configuration to the teacher that it describes."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from gkd_rl.config.run import Config, TeacherConfig
from gkd_rl.engine import Processes
from gkd_rl.models.language_model import LanguageModel, load_language_model
from gkd_rl.models.source import resolve
from gkd_rl.models.tokenizers import load_tokenizer, require_same_tokenizer, vocabulary_size
from gkd_rl.teacher.local import LocalTeacher, Teacher, TopKTeacher
from gkd_rl.teacher.served import ServedTeacher


@dataclass(frozen=True)
class Teaching:
    """Who scores what; None: nobody."""

    teacher: Teacher | None = None
    """scores the rows that are trained on"""
    judge: Teacher | None = None
    """scores samples of evaluations"""
    model: LanguageModel | None = None
    """the teacher's own model, where one is in the process: evaluated itself, once"""


def check_teaching(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``UserError`` for a teacher that is not there, has another tokenizer, or does not answer: before any model is loaded."""
    teacher = config.teacher
    if teacher.path is not None:
        source = resolve(teacher.path, "teacher.path")
        require_same_tokenizer(tokenizer, load_tokenizer(source, "teacher.path", teacher.trust_remote_code))
    if teacher.url is not None:
        end = tokenizer.eos_token_id
        assert isinstance(end, int)
        ServedTeacher(teacher, vocabulary_size(tokenizer)).probe([end, end])


def build_teaching(config: Config, processes: Processes, tokenizer: PreTrainedTokenizerBase) -> Teaching:
    """The configured teacher, loaded."""
    settings = config.teacher
    if settings.url is not None:
        served = ServedTeacher(settings, vocabulary_size(tokenizer))
        return Teaching(served, served)
    if settings.path is None:
        return Teaching()
    model = load_frozen(settings, "teacher.path", processes)
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
