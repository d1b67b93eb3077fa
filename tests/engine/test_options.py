"""Options of the engine that change memory, not results; and the other optimiser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_work import OPTIMIZERS, RATES, TOKEN_BUDGET, WEIGHTS, student
from experiences import experience
from tiny_models import language_model

from gkd_rl.build import build_engine, build_parts
from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.config.run import Config, EngineConfig, OptimizerConfig
from gkd_rl.console import PhaseTimes
from gkd_rl.engine import _deepspeed_config
from gkd_rl.errors import UserError
from gkd_rl.learner import Learner, local_counts
from gkd_rl.models.checkpointing import checkpoint_activations
from gkd_rl.operators import require_operators
from gkd_rl.processes import Processes
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.rows import micro_batches
from gkd_rl.rollout.sampler import InProcessSampler
from gkd_rl.types import Example, GlobalCounts

COMPILED = {"kind": "deepspeed_cpu_adam", "offload_optimizer": "cpu"}
COMPILER = pytest.mark.skipif(not (shutil.which("g++") and shutil.which("ninja")), reason="no compiler for DeepSpeed's operator")


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
        {"offload_optimizer": "cpu", "zero_stage": 1},
        {"offload_optimizer": "cpu", "zero_stage": 2},
        {"offload_optimizer": "cpu", "offload_parameters": "cpu", "zero_stage": 3},
        *(pytest.param({**COMPILED, "zero_stage": stage}, marks=[pytest.mark.slow, COMPILER]) for stage in (1, 2, 3)),
    ],
    ids=lambda settings: " ".join(f"{name}={value}" for name, value in settings.items()),
)
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_what_saves_memory_changes_nothing_that_is_learnt(processes: Processes, kind: str, settings: dict):
    optimizers = OPTIMIZERS[kind], replace(OPTIMIZERS[kind], kind=settings.get("kind", "adamw"))
    settings = {name: value for name, value in settings.items() if name != "kind"}
    plain, saving = (_trained(kind, processes, optimizer, **more) for optimizer, more in zip(optimizers, ({}, settings), strict=True))
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


def test_states_and_parameters_on_a_disk_are_asked_of_deepspeed():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    both = EngineConfig(zero_stage=3, offload_optimizer="nvme", offload_parameters="nvme", nvme_path="/scratch/states")
    read = DeepSpeedZeroConfig(**_deepspeed_config(both, OptimizerConfig(), torch.float32)["zero_optimization"])
    for part in (read.offload_optimizer, read.offload_param):
        assert part is not None and (part.device, part.nvme_path) == ("nvme", Path("/scratch/states"))
    mixed = replace(both, offload_parameters="cpu")
    read = DeepSpeedZeroConfig(**_deepspeed_config(mixed, OptimizerConfig(), torch.float32)["zero_optimization"])
    assert read.offload_optimizer is not None and read.offload_param is not None
    assert (read.offload_optimizer.device, read.offload_param.device, read.offload_param.nvme_path) == ("nvme", "cpu", None)


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_parameters"])
def test_a_disk_is_refused_where_its_operator_cannot_be_had(processes: Processes, key: str):
    from deepspeed.ops.op_builder import AsyncIOBuilder

    config = Config(engine=EngineConfig(zero_stage=3, nvme_path="/scratch", **{key: "nvme"}))
    if AsyncIOBuilder().is_compatible(verbose=False):
        require_operators(config)
        return
    with pytest.raises(UserError, match=f"engine.{key}=nvme: DeepSpeed's operator async_io cannot be compiled here; install libaio"):
        require_operators(config)


def test_an_optimiser_that_cannot_be_compiled_is_refused_before_any_model_is_loaded(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from deepspeed.ops.op_builder.builder import OpBuilder

    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    config = Config(optimizer=OptimizerConfig(kind="deepspeed_cpu_adam"), engine=EngineConfig(zero_stage=1, offload_optimizer="cpu"))
    config.student.path = "nowhere/to-be-found"
    with pytest.raises(UserError, match=r"optimizer.kind=deepspeed_cpu_adam: its operator cannot be compiled here .*; install g"):
        build_parts(config, processes)
