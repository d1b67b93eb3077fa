"""From a configuration to the teacher that it describes."""

from __future__ import annotations

from dataclasses import dataclass

from gkd_rl.config.run import Config, TeacherConfig
from gkd_rl.engine import Processes
from gkd_rl.models.language_model import LanguageModel, load_language_model
from gkd_rl.teacher.local import LocalTeacher, Teacher, TopKTeacher


@dataclass(frozen=True)
class Teaching:
    """Who scores what; None: nobody."""

    teacher: Teacher | None = None
    """scores the rows that are trained on"""
    judge: Teacher | None = None
    """scores samples of evaluations"""
    model: LanguageModel | None = None
    """the teacher's own model, where one is in the process: evaluated itself, once"""


def build_teaching(config: Config, processes: Processes) -> Teaching:
    """The configured teacher, loaded."""
    if config.teacher.path is None:
        return Teaching()
    model = load_frozen(config.teacher, "teacher.path", processes)
    whole = LocalTeacher(model, 4 * config.engine.micro_batch_tokens)
    teacher = whole if config.teacher.top_k is None else TopKTeacher(whole, config.teacher.top_k)
    return Teaching(teacher, teacher, model)


def load_frozen(config: TeacherConfig, where: str, processes: Processes) -> LanguageModel:
    """The model at ``config.path`` on this process's device, not trained."""
    assert config.path is not None
    model = load_language_model(config.path, where, config.dtype, config.trust_remote_code)
    model.module.to(processes.device)  # pyright: ignore[reportArgumentType]
    model.module.requires_grad_(False)
    return model
