"""Models that wait in CPU memory and come to the device when they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gkd_rl.models.language_model import LanguageModel


@contextmanager
def placed(model: LanguageModel, device: torch.device | None) -> Iterator[None]:
    """Within it ``model`` is on ``device`` (None: wherever it is), afterwards back where it was."""
    home = model.device
    if device is None or device == home:
        yield
        return
    model.module.to(device)  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        model.module.to(home)  # pyright: ignore[reportArgumentType]
