"""Frozen models in 8 or 4 bits, by bitsandbytes."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig

from gkd_rl.errors import UserError


@dataclass(frozen=True)
class Quantized:
    """How a model is loaded; its embeddings and head keep their precision."""

    kind: Literal["8bit", "4bit"]
    """``8bit``: LLM.int8() (arXiv 2208.07339); ``4bit``: NF4 (arXiv 2305.14314)"""
    device: torch.device

    def loading(self, compute: torch.dtype) -> dict[str, Any]:
        """What ``from_pretrained`` is told; ``compute`` is the precision of the products."""
        warnings.filterwarnings("ignore", message=".*MatMul8bitLt.*")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        if self.kind == "8bit":
            settings = BitsAndBytesConfig(load_in_8bit=True)
        else:
            settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
        return {"quantization_config": settings, "device_map": {"": self.device}}


def require_bitsandbytes(where: str) -> None:
    """Raise ``UserError`` where bitsandbytes is missing; ``where`` is the configuration key."""
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{where} needs bitsandbytes, which is not installed; pip install 'gkd-rl[quantized]', or set it to none")
