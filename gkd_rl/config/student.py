"""Configuration of the student: where it comes from, and which of its weights are trained. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

DType = Literal["float32", "bfloat16"]

ALL_LINEAR = "all-linear"


@dataclass
class LoraConfig:
    """Low-rank adapters: W + scale·B·A in the place of W, of which only A [rank, inputs] and B [outputs, rank] are trained."""

    rank: int = 0
    """Rows of A; 0: no adapter, the student's own weights are trained."""
    alpha: float = 16.0
    """scale = alpha / rank."""
    rslora: bool = False
    """scale = alpha / √rank: the update's size then does not fall with the rank (arXiv 2312.03732)."""
    targets: Any = ALL_LINEAR
    """Linear layers that get an adapter, by the ends of their names, as in ``[q_proj, v_proj]``; ``all-linear``: all but the head."""


@dataclass
class StudentConfig:
    """The model that is trained."""

    path: str = "embedded:arithmetic-student"
    """A folder or hub name in Hugging Face form; ``embedded:NAME`` is a model shipped with this package."""
    parameters: float | None = None
    """Number of parameters to plan with (``gkd-rl train --dry-run``) where ``path`` is on a hub that cannot be reached."""
    dtype: DType = "float32"
    """Precision of weights and forward passes."""
    trust_remote_code: bool = False
    """Whether a checkpoint may bring its own Python code."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters, trained in the place of the weights."""
    freeze: list[str] = field(default_factory=list)
    """Patterns of names of parameters that are not trained, as in ``[model.embed_tokens.*, "*norm*"]`` (``*`` stands for anything)."""


def student_complaints(student: StudentConfig) -> Iterator[str]:
    """What cannot be of adapters and frozen parts, whatever the model."""
    targets = student.lora.targets
    named = isinstance(targets, list) and bool(targets) and all(isinstance(target, str) and target for target in targets)
    if targets != ALL_LINEAR and not named:
        yield f"student.lora.targets is {targets!r}; give '{ALL_LINEAR}', or a list of ends of layers' names such as [q_proj, v_proj]"
    if student.lora.rank and student.freeze:
        yield "student.freeze says nothing beside student.lora, which trains its adapters alone; drop one of them"
