"""Sizes of models from their ``config.json`` alone: the modules are made without memory for weights, and counted."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from gkd_rl.config.run import Config, TeacherConfig
from gkd_rl.config.student import StudentConfig
from gkd_rl.config.teachers import model_of, teacher_configs
from gkd_rl.errors import UserError
from gkd_rl.models.lora import check_targets, require_peft
from gkd_rl.models.source import SCHEME, resolve
from gkd_rl.models.trained import mark_trained, skeleton

_BYTES = {"float32": 4.0, "bfloat16": 2.0}
_QUANTIZED = {"8bit": 1.0, "4bit": 0.5}


@dataclass(frozen=True)
class ModelSize:
    """A model as its configuration describes it. None: unknown."""

    path: str
    source: str
    """Where the number of parameters comes from, or why there is none"""
    parameters: float | None = None
    """an adapter's included"""
    trained: float | None = None
    """of them, or of an adapter"""
    bytes_per_weight: float = 4.0
    hidden: int | None = None
    """width of its last hidden states"""
    cache_bytes: float | None = None
    """of keys and values for one token"""


def student_size(student: StudentConfig) -> ModelSize:
    """The student, with what of it is trained. Raises ``UserError`` where there is no such model."""
    module, reason = _read(student.path, "student.path", student.trust_remote_code)
    width = _BYTES[student.dtype]
    if module is None:
        whole = not student.lora.rank and not student.freeze
        return _from_hint(student.path, reason, student.parameters, "student.parameters", width, student.parameters if whole else None)
    if student.lora.rank:
        require_peft()
        check_targets(module, student.lora.targets)
    mark_trained(module, student, 0)
    whole = _count(module)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return ModelSize(student.path, "config.json", whole, trained, width, _hidden(module), _cache_bytes(module, width))


def student_module(student: StudentConfig) -> PreTrainedModel | None:
    """The student without memory for its weights, frozen as in a run; None where its ``config.json`` cannot be reached."""
    module, _ = _read(student.path, "student.path", student.trust_remote_code)
    if module is not None:
        mark_trained(module, student, 0)
    return module


def teacher_sizes(config: Config, student: ModelSize) -> dict[str, ModelSize]:
    """Teachers by configuration key. Those made of the student are as large as it is; ``base`` has no weights of its own."""
    bare = replace(student, parameters=without_adapter(config, student))
    return {key: _teacher_size(key, teacher, bare) for key, teacher in teacher_configs(config).items()}


def without_adapter(config: Config, student: ModelSize) -> float | None:
    """Parameters of the student under its adapter, where it has one."""
    if not config.student.lora.rank or None in (student.parameters, student.trained):
        return student.parameters
    return (student.parameters or 0.0) - (student.trained or 0.0)


def held_bytes(teacher: TeacherConfig, size: ModelSize, ranks: int) -> float | None:
    """Bytes that a teacher's weights take on the device of each of ``ranks`` while it scores; None: unknown."""
    if teacher.kind == "base" or (teacher.kind == "model" and (teacher.url is not None or teacher.path is None)):
        return 0.0
    return None if size.parameters is None else size.parameters * size.bytes_per_weight / (ranks if teacher.shard else 1)


def _teacher_size(key: str, teacher: TeacherConfig, student: ModelSize) -> ModelSize:
    path, url = model_of(teacher)
    if teacher.kind != "model":
        return ModelSize(f"the student ({teacher.kind})", student.source, student.parameters, 0, student.bytes_per_weight, student.hidden)
    if url is not None or path is None:
        what = f"{teacher.served_model} at {url}" if url is not None else f"cached in {teacher.cache}"
        return ModelSize(what, "not in this process", 0, 0)
    module, reason = _read(path, f"{key}.path", teacher.trust_remote_code)
    width = _QUANTIZED.get(teacher.quantize, _BYTES[teacher.dtype])
    if module is None:
        return _from_hint(path, reason, teacher.parameters, f"{key}.parameters", width, 0)
    return ModelSize(path, "config.json", _count(module), 0, width, _hidden(module))


def _read(path: str, where: str, trust_remote_code: bool) -> tuple[PreTrainedModel | None, str]:
    """The model's modules, or None and the reason where a hub name cannot be reached. Raises ``UserError`` for a folder that is absent."""
    local = path.startswith(SCHEME) or Path(path).expanduser().exists()
    on_hub = not local and re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and not Path(path).parent.is_dir()
    try:
        return skeleton(path if on_hub else resolve(path, where), where, trust_remote_code), ""
    except UserError:
        if not on_hub:
            raise
        return None, "its config.json is not at hand, and the hub cannot be reached"


def _from_hint(path: str, reason: str, hint: float | None, key: str, width: float, trained: float | None) -> ModelSize:
    if hint is None:
        return ModelSize(path, f"{reason}; set {key} to plan with", bytes_per_weight=width)
    return ModelSize(path, key, hint, trained, width)


def _count(module: PreTrainedModel) -> int:
    return sum(p.numel() for p in module.parameters())


def head_shape(module: PreTrainedModel) -> tuple[int, int]:
    """Vocabulary and width of its head."""
    return tuple(module.get_output_embeddings().weight.shape)  # pyright: ignore


def _hidden(module: PreTrainedModel) -> int:
    return head_shape(module)[1]


def _cache_bytes(module: PreTrainedModel, width: float) -> float | None:
    """2·layers·(key-value heads)·(head width)·bytes, of a decoder. (The prompt's tokens too are kept by it, for the cross-attention.)"""
    config = module.config.get_text_config(decoder=True)
    layers = getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", None) or config.num_hidden_layers
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "decoder_attention_heads", None) or config.num_attention_heads
    head_width = getattr(config, "d_kv", None) or getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2.0 * layers * heads * head_width * width
