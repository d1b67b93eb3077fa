"""Fixtures that all tests share: tiny models in folders, and processes over gloo. Nothing here reaches a network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors gain nothing from a second thread, and lose much where cores are shared

import pytest
import torch
from launching import run_ranks
from tiny_models import build, embedded_tokenizer, save
from transformers.utils import logging as transformers_logging

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``model_folder(kind, seed=0, **config)``: a random tiny model saved with the embedded tokenizer; made once per session."""
    made: dict[tuple, Path] = {}

    def folder(kind: str, seed: int = 0, **changes) -> Path:
        key = (kind, seed, *sorted(changes.items()))
        if key not in made:
            tokenizer = embedded_tokenizer()
            made[key] = save(build(kind, tokenizer, seed, **changes), tokenizer, tmp_path_factory.mktemp(kind.replace(":", "-")))
        return made[key]

    return folder


@pytest.fixture(scope="session")
def llama_folder(model_folder: Callable[..., Path]) -> Path:
    """A random causal model of two layers that answers in the embedded vocabulary."""
    return model_folder("llama")


@pytest.fixture(scope="session")
def t5_folder(model_folder: Callable[..., Path]) -> Path:
    """A random encoder-decoder model that answers in the embedded vocabulary."""
    return model_folder("t5")


@pytest.fixture(scope="session")
def ranks() -> Callable[..., list]:
    """``launching.run_ranks``: results of a function run in several processes joined over gloo."""
    return run_ranks
