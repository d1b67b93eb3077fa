"""Options of the engine that change memory, not results; and the other optimiser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from engine_work import OPTIMIZERS, RATES, TOKEN_BUDGET, WEIGHTS, student
from experiences import experience
from tiny_models import language_model

from gkd_rl.build import build_engine
from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.config.run import Config, EngineConfig, OptimizerConfig
from gkd_rl.console import PhaseTimes
from gkd_rl.learner import Learner, local_counts
from gkd_rl.models.checkpointing import checkpoint_activations
from gkd_rl.processes import Processes
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.rows import micro_batches
from gkd_rl.rollout.sampler import InProcessSampler
from gkd_rl.types import Example, GlobalCounts


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    threads = torch.get_num_threads()
    yield Processes(1)
    torch.set_num_threads(threads)


def _trained(kind: str, processes: Processes, optimizer: OptimizerConfig, **settings) -> torch.Tensor:
    """The parameters after three updates on the same rows."""
    model = student(kind)
    config = Config(engine=EngineConfig(**settings), optimizer=optimizer)
    engine = build_engine(config, processes, model, PhaseTimes())
    whole = experience(student(kind), language_model(kind, seed=1, **({"vocab_size": 16} if kind == "llama" else {})), 4, 2, dataset=2)
    for rate in RATES:
        cuts = micro_batches(whole, TOKEN_BUDGET)
        learner = Learner(model, ObjectiveConfig(), WEIGHTS)
        learner.counts = GlobalCounts(**local_counts(cuts, learner.config))
        engine.update(cuts, learner.loss, rate)
    with engine.gathered():
        return torch.cat([p.detach().flatten().clone() for p in model.module.parameters()])


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "zero_stage": 3},
        {"offload_optimizer": True, "zero_stage": 1},
        {"offload_optimizer": True, "zero_stage": 2},
        {"offload_optimizer": True, "offload_parameters": True, "zero_stage": 3},
    ],
    ids=lambda settings: " ".join(f"{name}={value}" for name, value in settings.items()),
)
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_what_saves_memory_changes_nothing_that_is_learnt(processes: Processes, kind: str, settings: dict):
    plain, saving = (_trained(kind, processes, OPTIMIZERS[kind], **more) for more in ({}, settings))
    torch.testing.assert_close(saving, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
def test_layers_keep_their_input_alone_and_run_again_for_the_gradient(kind: str):
    model, kept = language_model(kind), []
    ids, mask = torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.ones(2, 3, dtype=torch.bool)

    def gradient() -> torch.Tensor:
        model.module.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model.completion_hidden(ids, mask, ids, mask).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None])

    sizes: list[int] = []
    whole = gradient()
    kept.append(sum(sizes))
    before = InProcessSampler(model, 4).sample([Example("a b")], 2, SamplingParams(6), 0).logprobs
    assert checkpoint_activations(model.module) > 0
    sizes.clear()
    torch.testing.assert_close(gradient(), whole, atol=1e-6, rtol=0)
    kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]
    after = InProcessSampler(model, 4).sample([Example("a b")], 2, SamplingParams(6), 0).logprobs
    assert torch.equal(before, after)  # the cache is still used


def test_adafactor_takes_its_own_steps(processes: Processes):
    found = _trained("llama", processes, OptimizerConfig(kind="adafactor", max_grad_norm=0.0))
    model = student("llama")
    optimizer = torch.optim.Adafactor([{"params": [p]} for p in model.module.parameters()], lr=1.0)
    whole = experience(student("llama"), language_model("llama", seed=1, vocab_size=16), 4, 2, dataset=2)
    for rate in RATES:
        for group in optimizer.param_groups:
            group["lr"] = rate
        learner = Learner(model, ObjectiveConfig(), WEIGHTS)
        learner.counts = GlobalCounts(**local_counts([whole], learner.config))
        optimizer.zero_grad()
        learner.loss(whole).backward()
        optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in model.module.parameters()])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
