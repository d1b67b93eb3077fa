"""Muon beside AdamW: each weight moves as torch's own optimiser of its part moves it, and a saved state goes on to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_work import RATES, student
from experiences import experience
from tiny_models import language_model

from gkd_rl.build import build_engine
from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.config.run import Config, OptimizerConfig
from gkd_rl.console import PhaseTimes
from gkd_rl.engine import Engine
from gkd_rl.errors import UserError
from gkd_rl.learner import Learner, local_counts
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.operators import make_optimizer
from gkd_rl.processes import Processes
from gkd_rl.types import Experience, GlobalCounts

SETTINGS = OptimizerConfig(kind="muon", eps=1e-3, weight_decay=0.1, max_grad_norm=0.0)
OUTSIDE = ("embed", "wte", "wpe", "lm_head", "shared", "relative_attention_bias")


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    threads = torch.get_num_threads()
    yield Processes(1)
    torch.set_num_threads(threads)


def _rows(kind: str) -> Experience:
    teacher = language_model(kind, seed=1, **({"vocab_size": 16} if kind == "llama" else {}))
    return experience(student(kind), teacher, 4, 2, dataset=2)


def _loss(model: LanguageModel, whole: Experience) -> torch.Tensor:
    learner = Learner(model, ObjectiveConfig(), TermWeights(0.6, 0.4, 0.2))
    learner.counts = GlobalCounts(**local_counts([whole], learner.config))
    return learner.loss(whole)


def _engine(model: LanguageModel, processes: Processes) -> Engine:
    return build_engine(Config(optimizer=SETTINGS), processes, model, PhaseTimes())


def _weights(model: LanguageModel) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.module.parameters()])


@pytest.mark.parametrize(("kind", "inside"), [("llama", {"q_proj", "down_proj"}), ("gpt2", {"c_attn"}), ("t5", {"q", "wo"})])
def test_each_weight_moves_as_torch_moves_it(processes: Processes, kind: str, inside: set[str]):
    whole, model, expected = _rows(kind), student(kind), student(kind)
    named = dict(expected.module.named_parameters())
    inner = {name for name, p in named.items() if p.ndim == 2 and not any(part in name for part in OUTSIDE)}
    assert {name.split(".")[-2] for name in inner} >= inside
    rest = [p for name, p in named.items() if name not in inner]
    groups = [{"params": [p for p in rest if p.ndim == n], "weight_decay": decay} for n, decay in ((2, 0.1), (1, 0.0))]
    parts = [
        torch.optim.Muon([named[name] for name in sorted(inner)], weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, betas=(SETTINGS.beta1, SETTINGS.beta2), eps=SETTINGS.eps),
    ]
    engine = _engine(model, processes)
    for rate in RATES:
        engine.update([whole], lambda part: _loss(model, part or whole), rate)
        expected.module.zero_grad()
        _loss(expected, whole).backward()
        for part in parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
    torch.testing.assert_close(_weights(model), _weights(expected), atol=2e-3, rtol=0)  # five bfloat16 products enlarge rounding
    assert float((_weights(model) - _weights(student(kind))).abs().max()) > 0.02


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_saved_state_goes_on_to_the_last_bit(processes: Processes, kind: str, tmp_path: Path):
    """Another student, with other moments, takes over weights and states of both optimisers."""
    whole, through, resumed = _rows(kind), student(kind), student(kind, seed=5)
    first, second = _engine(through, processes), _engine(resumed, processes)
    for rate in RATES:
        first.update([whole], lambda part: _loss(through, part or whole), rate)
    second.update([whole], lambda part: _loss(resumed, part or whole), 0.05)
    first.save(tmp_path)
    second.load(tmp_path)
    for rate in RATES:
        first.update([whole], lambda part: _loss(through, part or whole), rate)
        second.update([whole], lambda part: _loss(resumed, part or whole), rate)
    assert torch.equal(_weights(through), _weights(resumed))
    assert not torch.equal(_weights(through), _weights(student(kind)))


def test_without_a_matrix_to_move_it_is_refused():
    model = student("llama").module
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "embed" in name
    with pytest.raises(UserError, match="muon moves matrices within the layers, and none of them is trained"):
        make_optimizer(model, SETTINGS)
