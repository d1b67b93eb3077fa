"""Low-rank adapters of a student by ``peft``, in place: the model keeps its class, and what reads it sees a model like any other.

A layer with an adapter computes x·Wᵀ + scale·x·Aᵀ·Bᵀ for x [N, K], W [M, K], A [R, K] and B [M, R]; B starts at 0, so that a new adapter
changes nothing (LoRA, arXiv 2106.09685, eq. 3). Shapes: N rows, K inputs, M outputs, R rank.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gkd_rl.config.student import ALL_LINEAR, LoraConfig
from gkd_rl.errors import UserError
from gkd_rl.models.linears import quicken

ADAPTER = "default"
"""The one adapter's name in peft's layers, and what peft calls it in its files."""
SOME = 12
"""Names that an error gives at most."""


def require_peft() -> None:
    """Raise ``UserError`` where adapters are asked for and peft is not installed."""
    if find_spec("peft") is None:
        raise UserError("student.lora.rank is above 0 but peft is not installed; pip install 'gkd-rl[lora]', or set student.lora.rank=0")


def check_targets(module: PreTrainedModel, targets: str | list[str]) -> None:
    """Raise ``UserError`` for the first target that names no linear layer of ``module``, another module, or the head.

    A target names the modules whose names it ends, as peft has it: ``q_proj``, ``layers.0.self_attn.q_proj``.
    """
    if isinstance(targets, str):
        return
    head = module.get_output_embeddings()
    parts = {name: part for name, part in module.named_modules() if name}
    for target in targets:
        meant = {name: part for name, part in parts.items() if name == target or name.endswith(f".{target}")}
        if any(part is head for part in meant.values()):
            raise UserError(
                f"student.lora.targets names {target}, the output projection, which the objective reads as one weight; leave it out"
            )
        wrong = next((name for name, part in meant.items() if not isinstance(part, (nn.Linear, Conv1D))), None)
        if wrong is not None or not meant:
            what = f"{wrong} is no linear layer" if wrong else f"the student has no layer '{target}'"
            ends = {name.rsplit(".", 1)[-1] for name, part in parts.items() if isinstance(part, (nn.Linear, Conv1D)) and part is not head}
            raise UserError(f"student.lora.targets: {what}; there are {', '.join(sorted(ends)[:SOME])}, or '{ALL_LINEAR}'")


def add_lora(module: PreTrainedModel, settings: LoraConfig, seed: int) -> None:
    """Put an adapter into ``module``, whose own weights are trained no more. A is drawn from ``seed``, alike on every rank."""
    from peft import LoraConfig as PeftLora
    from peft import inject_adapter_in_model

    given = PeftLora(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
        use_rslora=settings.rslora,
        target_modules=settings.targets,
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in module.modules()),
        task_type="SEQ_2_SEQ_LM" if module.config.is_encoder_decoder else "CAUSAL_LM",
        base_model_name_or_path=module.name_or_path,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(given, module, ADAPTER)
    given.target_modules = sorted(given.target_modules or [])  # a set's order would make another file of every run
    quicken(module)
    module.eval()


def has_lora(module: nn.Module) -> bool:
    """Whether ``add_lora`` was here."""
    return bool(getattr(module, "peft_config", None))


@contextmanager
def without_lora(module: nn.Module) -> Iterator[None]:
    """Within it ``module`` is the model under its adapter: same names, same weights, nothing copied."""
    with _replaced(module, lambda layer: layer.base_layer):
        yield


@contextmanager
def merged(module: nn.Module) -> Iterator[None]:
    """Within it ``module`` is a plain model with W + scale·B·A for weights; without an adapter it is what it was.

    The product is made in fp32 and rounded once. The weights have to be whole here; they are not touched.
    """
    with _replaced(module, _merged_layer):
        yield


@contextmanager
def _replaced(module: nn.Module, plain: Callable[[Any], nn.Module]) -> Iterator[None]:
    """Within it every layer with an adapter makes room for ``plain`` of it."""
    places = _places(module)
    try:
        for parent, name, layer in places:
            setattr(parent, name, plain(layer))
        yield
    finally:
        for parent, name, layer in places:
            setattr(parent, name, layer)


def _merged_layer(layer: Any) -> nn.Module:
    """The layer under the adapter with weights of its own: a copy of the model may be decoding with the original ones."""
    plain = copy.copy(layer.base_layer)
    plain._parameters = {**plain._parameters, "weight": nn.Parameter(_merged_weight(layer), requires_grad=False)}
    quicken(plain)  # the copy's forward is bound to the original
    return plain


@torch.no_grad()
def _merged_weight(layer: Any) -> Tensor:
    weight = layer.base_layer.weight.data
    update = layer.scaling[ADAPTER] * (layer.lora_B[ADAPTER].weight.float() @ layer.lora_A[ADAPTER].weight.float())
    return (weight + (update.T if isinstance(layer.base_layer, Conv1D) else update)).to(weight.dtype)


def save_adapter(module: PreTrainedModel, folder: Path) -> None:
    """Write the adapter alone in peft's form: ``PeftModel.from_pretrained(base, folder)`` loads it. Its weights have to be whole."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(module, adapter_name=ADAPTER, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"base_model.model.{name}": weight.detach().cpu().clone().contiguous() for name, weight in weights.items()}
    save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    settings: Any = module.peft_config
    settings[ADAPTER].save_pretrained(str(folder))


def _places(module: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Every layer with an adapter, with the module that holds it and its name there."""
    if not has_lora(module):
        return []
    from peft.tuners.lora import LoraLayer

    return [(parent, name, part) for parent in module.modules() for name, part in parent.named_children() if isinstance(part, LoraLayer)]
