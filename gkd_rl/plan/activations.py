"""Memory of one micro-batch on its way through the student, forward and backward.

The student's own layers run on torch's fake tensors, which have shapes and no memory, and what they keep for the backward pass is counted;
the loss's part is a formula.

Shapes: B rows, P prompt and C completion positions, N = B·C tokens, n tokens of a chunk, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from gkd_rl.config.run import Config
from gkd_rl.config.validate import needs_teacher
from gkd_rl.models.language_model import DTYPES
from gkd_rl.objective.sweep import most_chunk_tokens
from gkd_rl.plan.memory import Bytes, uses_reference
from gkd_rl.plan.sizes import head_shape, student_module

TILES_AT_WORK = 4
"""Tiles [n, V] of figures and gradients beside those of the models' logits, while a chunk is worked on."""


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps for the backward pass."""

    whole: float
    checkpointed: float
    """the same where layers run again: their inputs, and all of the one layer that needs most"""


@dataclass
class _Counter:
    """Storages that autograd saves, by the layer (None: outside of them) that was at work."""

    layer: int | None = None
    saved: dict[int | None, dict[int, float]] = field(default_factory=dict)
    inputs: dict[int, float] = field(default_factory=dict)
    held: list[Tensor] = field(default_factory=list)
    """so that no storage is freed and its address given to another one"""

    def note(self, tensor: Tensor) -> Tensor:
        self._put(self.saved.setdefault(self.layer, {}), tensor)
        return tensor

    def enter(self, number: int, given: tuple[Any, ...]) -> None:
        self.layer = number
        for value in given:
            if isinstance(value, Tensor) and value.is_floating_point():
                self._put(self.inputs, value)

    def _put(self, into: dict[int, float], tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        into[storage._cdata] = float(storage.nbytes())
        self.held.append(tensor)

    def kept(self, weights: set[int]) -> Kept:
        by_layer = {layer: {at: size for at, size in found.items() if at not in weights} for layer, found in self.saved.items()}
        whole = {at: size for found in by_layer.values() for at, size in found.items()}
        outside = {**by_layer.pop(None, {}), **self.inputs}
        layers = [sum(size for at, size in found.items() if at not in outside) for found in by_layer.values()]
        return Kept(sum(whole.values()), sum(outside.values()) + max(layers, default=0.0))


def kept_for_backward(module: PreTrainedModel, rows: int, prompt: int, completion: int) -> Kept:
    """What ``module``, of which nothing is in memory (``skeleton``), keeps of B rows of P + C tokens, in the dtype of its weights.

    The module is used up: its weights become fake tensors. Kernels are a CPU's: attention keeps no [T, T] unless a bias is added to it.
    The head is left out: the objective runs it chunk by chunk.
    """
    counter = _Counter()
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        module.to_empty(device="cpu")
        weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
        hooks = [hook for number, layer in enumerate(layers) for hook in _watched(layer, number, counter)]
        with torch.autograd.graph.saved_tensors_hooks(counter.note, lambda tensor: tensor):
            _forward(module, rows, prompt, completion)
        for hook in hooks:
            hook.remove()
    return counter.kept(weights)


def _watched(layer: nn.Module, number: int, counter: _Counter) -> list[Any]:
    def leave(*_: Any) -> None:
        counter.layer = None

    enter = lambda _, given, named: counter.enter(number, (*given, named.get("hidden_states")))
    return [layer.register_forward_pre_hook(enter, with_kwargs=True), layer.register_forward_hook(leave)]


def _forward(module: PreTrainedModel, rows: int, prompt: int, completion: int) -> None:
    ids: Callable[[int], Tensor] = lambda length: torch.zeros(rows, length, dtype=torch.long)
    if not module.config.is_encoder_decoder:
        module.base_model(input_ids=ids(prompt + completion), use_cache=False)
        return
    mask = torch.ones(rows, prompt, dtype=torch.long)
    encoded = module.get_encoder()(input_ids=ids(prompt), attention_mask=mask).last_hidden_state
    module.get_decoder()(input_ids=ids(completion), encoder_hidden_states=encoded, encoder_attention_mask=mask, use_cache=False)


def micro_batch_memory(config: Config, rows: int) -> dict[str, Bytes]:
    """Part → bytes on a rank's device while it trains on one micro-batch of the ``rows`` that it has in an update.

    None where the student's layers are not known. Rows are as long as they may be.
    """
    names = ("activations of a micro-batch", "loss of a micro-batch")
    module = student_module(config.student)
    if module is None:
        return dict.fromkeys(names)
    vocabulary, width = head_shape(module)
    prompt, completion = config.task.max_prompt_tokens, config.rollout.max_new_tokens
    count = min(rows, max(1, config.engine.micro_batch_tokens // (prompt + completion)))
    module.to(dtype=DTYPES[config.student.dtype])  # pyright: ignore[reportCallIssue]
    kept = kept_for_backward(module, count, prompt, completion)
    activations = kept.checkpointed if config.engine.activation_checkpointing else kept.whole
    return dict(zip(names, (activations, loss_bytes(config, count * completion, vocabulary, width)), strict=True))


def loss_bytes(config: Config, tokens: int, vocabulary: int, width: int) -> float:
    """4·n·V for each tile of logits and ``TILES_AT_WORK`` more, and the gradients of hidden states (4·N·H) and head (4·V·H) in fp32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tiles = 1 + int(needs_teacher(config)) + int(uses_reference(config)) + TILES_AT_WORK
    chunk = min(tokens, most_chunk_tokens(vocabulary, device))
    return 4.0 * (tiles * chunk * vocabulary + tokens * width + vocabulary * width)
