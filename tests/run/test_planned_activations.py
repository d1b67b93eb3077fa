"""What a micro-batch is planned to take is what its passes keep, and about what the process grows by."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import pytest
import torch
from tiny_models import build, language_model, word_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.config.run import Config
from gkd_rl.learner import Learner
from gkd_rl.models.checkpointing import checkpoint_activations
from gkd_rl.models.language_model import LanguageModel, wrap
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.plan.activations import kept_for_backward, loss_bytes, micro_batch_memory
from gkd_rl.rollout.sampler import given_rollouts
from gkd_rl.teacher.local import LocalTeacher
from gkd_rl.types import Example, Experience, GlobalCounts

FACTOR = 1.5
"""Planned and measured memory differ by less than this."""


def bare(module: PreTrainedModel, **changes: int) -> PreTrainedModel:
    """A model like ``module`` without memory."""
    config = type(module.config)(**{**module.config.to_dict(), **changes})
    with torch.device("meta"):
        return (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "t5", "bart"])
def test_what_is_counted_without_memory_is_what_a_real_pass_keeps(kind: str):
    model = language_model(kind)
    kept: dict[int, tuple[int, Tensor]] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    ids, mask = torch.full((3, 7), 2), torch.ones(3, 7, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.completion_hidden(ids, mask, ids[:, :5], mask[:, :5])
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.module.parameters()}
    real = sum(size for at, (size, _) in kept.items() if at not in weights)
    planned = kept_for_backward(bare(model.module), 3, 7, 5).whole
    assert 0.98 * real <= planned <= 1.2 * real, "but for masks that a real pass can do without, and heads repeated for them"


def test_with_checkpoints_a_layer_more_keeps_its_input_alone():
    module = build("llama", word_tokenizer({"<pad>": 0, "<eos>": 1}))
    kept = [kept_for_backward(bare(module, num_hidden_layers=layers), 3, 7, 5) for layers in (2, 3, 4)]
    hidden = 4 * 3 * 12 * module.config.hidden_size
    assert kept[2].checkpointed - kept[1].checkpointed == kept[1].checkpointed - kept[0].checkpointed == hidden
    assert kept[2].whole - kept[1].whole > 10 * hidden
    assert kept[0].checkpointed < kept[0].whole


def test_below_frozen_layers_nothing_is_kept():
    module, partly = (bare(build("llama", word_tokenizer({"<pad>": 0, "<eos>": 1}))) for _ in range(2))
    for name, parameter in partly.named_parameters():
        parameter.requires_grad_("layers.1." in name)
    assert 0 < kept_for_backward(partly, 3, 7, 5).whole < 0.6 * kept_for_backward(module, 3, 7, 5).whole


@pytest.fixture
def config() -> Config:
    made = Config()
    made.student.path = "embedded:arithmetic-student"
    made.task.max_prompt_tokens, made.rollout.max_new_tokens = 100, 50
    made.engine.micro_batch_tokens = 1000
    return made


def activations(config: Config, rows: int) -> float:
    planned = micro_batch_memory(config, rows)["activations of a micro-batch"]
    assert planned is not None
    return planned


def test_half_the_width_takes_more_than_half(config: Config):
    single = activations(config, 6)
    config.student.dtype = "bfloat16"
    assert 0.4 < activations(config, 6) / single < 0.8, "norms are computed in float32"


def test_rows_are_as_many_as_fit_or_as_there_are(config: Config):
    six, two, one = (activations(config, rows) for rows in (100, 2, 1))
    assert six == pytest.approx(3 * two, rel=0.02) and two == pytest.approx(2 * one, rel=0.02)
    config.engine.micro_batch_tokens = 10
    assert activations(config, 100) == one, "a single longer row still goes"


def test_checkpointing_and_an_unknown_student(config: Config):
    whole = activations(config, 6)
    config.engine.activation_checkpointing = True
    assert activations(config, 6) < 0.7 * whole
    config.student.path = "nobody/student"
    assert set(micro_batch_memory(config, 6).values()) == {None}


def memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(name))


def growth(model: LanguageModel, experience: Experience) -> float:
    """Bytes by which the process is larger at most while it makes the gradients of one micro-batch."""
    count = float(experience.rollouts.completion_mask.sum())
    learner = Learner(model, ObjectiveConfig(alpha=1.0), TermWeights(0.0, 1.0, 0.0), GlobalCounts(0.0, count, 0.0))
    learner.loss(None).backward()  # libraries have their memory from here on, and parameters their gradients
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    learner.loss(experience).backward()
    return memory("VmHWM") - before


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured by Linux")
def test_a_real_step_grows_by_what_was_planned(checkpointing: bool):
    words = word_tokenizer({"<pad>": 0, "<eos>": 1, **{f"w{number}": 2 + number for number in range(4094)}})
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4, "head_dim": 64}
    student, teacher = (wrap(build("llama", words, seed, **sizes), words) for seed in (0, 1))
    if checkpointing:
        checkpoint_activations(student.module)
    rows = [Example(" ".join(["w7"] * 64), key=key) for key in range(8)]
    rollouts = given_rollouts(student, rows, [[9] * 64] * 8, [True] * 8, 0)
    zeros = torch.zeros(8)
    experience = Experience(rollouts, zeros, {}, zeros, LocalTeacher(teacher, 100_000).score(rollouts))
    kept = kept_for_backward(bare(student.module), 8, 64, 64)
    planned = (kept.checkpointed if checkpointing else kept.whole) + loss_bytes(Config(), 8 * 64, 4096, 256)
    measured = growth(student, experience)
    assert measured / FACTOR < planned < measured * FACTOR
