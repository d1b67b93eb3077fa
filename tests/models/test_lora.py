"""Adapters in place: what a model with one computes, what is under it, and what is written of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_models import FAMILIES, language_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from gkd_rl.config.student import LoraConfig
from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.models.lora import add_lora, check_targets, has_lora, merged, require_peft, save_adapter, without_lora
from gkd_rl.models.source import resolve
from gkd_rl.run import save_student

SETTINGS = LoraConfig(rank=3, alpha=6.0)
IDS = torch.randint(2, 12, (2, 7), generator=torch.Generator().manual_seed(0))


def adapted(kind: str, settings: LoraConfig = SETTINGS) -> LanguageModel:
    """A tiny model with an adapter that has an effect."""
    model = language_model(kind)
    add_lora(model.module, settings, seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@torch.no_grad()
def logits(module) -> Tensor:
    more = {"decoder_input_ids": IDS} if module.config.is_encoder_decoder else {}
    return module(input_ids=IDS, **more).logits


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(kind: str):
    model, plain = language_model(kind), language_model(kind)
    add_lora(model.module, SETTINGS, seed=1)
    assert torch.equal(logits(model.module), logits(plain.module))
    assert type(model.module) is type(plain.module) and not any(part.training for part in model.module.modules())
    trained = [name for name, parameter in model.module.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert not model.head.weight.requires_grad
    assert model.trained_parameters == model.parameters - plain.parameters > 0
    assert plain.trained_parameters == plain.parameters


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / 4), (True, 6 / 2)])
def test_a_layer_computes_its_own_product_and_the_adapters(rslora: bool, scale: float):
    model = adapted("llama", LoraConfig(rank=4, alpha=6.0, rslora=rslora, targets=["q_proj"]))
    layer = model.module.model.layers[1].self_attn.q_proj
    a, b, weight = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer.weight
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    assert (a.shape, b.shape) == ((4, 16), (16, 4))
    torch.testing.assert_close(layer(x), x @ weight.T + scale * x @ a.T @ b.T, atol=1e-5, rtol=1e-5)
    with merged(model.module):
        torch.testing.assert_close(model.module.model.layers[1].self_attn.q_proj.weight, weight + scale * b @ a)
    assert sum("lora_A" in name for name, _ in model.module.named_parameters()) == 2, "of two layers, q_proj alone"


@pytest.mark.parametrize("kind", FAMILIES)
def test_merged_and_without_it_the_model_is_a_plain_one(kind: str):
    model, plain = adapted(kind), language_model(kind)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    ours, theirs = logits(model.module), logits(plain.module)
    assert (ours - theirs).abs().max() > 0.05
    with merged(model.module):
        torch.testing.assert_close(logits(model.module), ours, atol=2e-4, rtol=1e-4)
        assert list(model.module.state_dict()) == list(plain.module.state_dict())
    with without_lora(model.module):
        assert torch.equal(logits(model.module), theirs)
        assert list(model.module.state_dict()) == list(plain.module.state_dict())
    assert torch.equal(logits(model.module), ours)
    after = model.module.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_error_within_leaves_the_adapter_where_it_was():
    model = adapted("llama")
    ours = logits(model.module)
    for within in (merged, without_lora):
        with pytest.raises(ZeroDivisionError), within(model.module):
            raise ZeroDivisionError
        assert torch.equal(logits(model.module), ours)


def test_without_an_adapter_nothing_is_replaced():
    model = language_model("llama")
    parts = dict(model.module.named_modules())
    for within in (merged, without_lora):
        with within(model.module):
            assert dict(model.module.named_modules()) == parts
    assert not has_lora(model.module) and has_lora(adapted("llama").module)


def test_half_precision_weights_are_rounded_once():
    model = adapted("llama", LoraConfig(rank=4, alpha=4.0, targets=["q_proj"]))
    model.module.to(torch.bfloat16)
    layer = model.module.model.layers[0].self_attn.q_proj
    a, b = (part["default"].weight.float() for part in (layer.lora_A, layer.lora_B))
    with merged(model.module):
        found = model.module.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(found, (layer.base_layer.weight.float() + b @ a).bfloat16())


@pytest.mark.parametrize("kind", ["llama", "llama:untied", "gpt2", "t5", "bart"])
def test_the_written_model_and_the_written_adapter_are_the_trained_student(kind: str, tmp_path: Path):
    model = adapted(kind)
    save_student(model, tmp_path)
    family = AutoModelForSeq2SeqLM if model.module.config.is_encoder_decoder else AutoModelForCausalLM
    whole = family.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(logits(whole), logits(model.module), atol=2e-4, rtol=1e-4)
    language_model(kind).module.save_pretrained(tmp_path / "base")
    with_adapter = PeftModel.from_pretrained(family.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(with_adapter), logits(model.module), atol=1e-5, rtol=1e-5)
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert not any("adapter" in file.name for file in (tmp_path / "model").iterdir())


def test_the_same_adapter_gives_the_same_files(tmp_path: Path):
    for name in ("one", "other"):
        save_adapter(adapted("t5").module, tmp_path / name)
    targets = json.loads((tmp_path / "one" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets), "in another process too"
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_the_seed_alone_draws_the_adapter():
    drawn = []
    for seed, disturbance in ((1, 3), (1, 4), (2, 3)):
        model = language_model("llama")
        torch.manual_seed(disturbance)
        expected = torch.rand(1, generator=torch.Generator().manual_seed(disturbance))
        add_lora(model.module, SETTINGS, seed)
        assert torch.equal(torch.rand(1), expected), "the global random state is not moved"
        drawn.append(torch.cat([p.flatten() for n, p in model.module.named_parameters() if "lora_A" in n]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("kind", "targets", "said"),
    [
        ("llama", ["q_proj", "query"], r"no layer 'query'; there are down_proj, gate_proj, k_proj, .*, v_proj, or 'all-linear'"),
        ("llama", ["proj"], "no layer 'proj'"),  # the ends of names, not of words
        ("llama", ["mlp"], r"model\.layers\.0\.mlp is no linear layer; there are down_proj"),
        ("llama", ["embed_tokens"], r"model\.embed_tokens is no linear layer"),
        ("llama:untied", ["q_proj", "lm_head"], "names lm_head, the output projection"),
        ("t5", ["lm_head"], "names lm_head, the output projection"),
        ("gpt2", ["q_proj"], r"no layer 'q_proj'; there are c_attn, c_fc, c_proj, or"),
    ],
)
def test_targets_that_are_not_there_are_named(kind: str, targets: list[str], said: str):
    with pytest.raises(UserError, match=said):
        check_targets(language_model(kind).module, targets)


@pytest.mark.parametrize(("kind", "target"), [("llama", "layers.1.self_attn.q_proj"), ("gpt2", "c_attn"), ("t5", "SelfAttention.q")])
def test_targets_may_be_as_long_as_wanted(kind: str, target: str):
    model = language_model(kind)
    check_targets(model.module, [target])
    add_lora(model.module, LoraConfig(rank=2, targets=[target]), 0)
    names = [name for name, _ in model.module.named_parameters() if "lora_A" in name]
    assert names and all(f"{target}.lora_A" in name for name in names)


def test_an_adapters_own_products_take_the_quick_route_too():
    parts = [part for name, part in adapted("llama").module.named_modules() if isinstance(part, torch.nn.Linear) and "lora_" in name]
    assert parts and all("forward" in vars(part) for part in parts)


def test_a_missing_peft_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    require_peft()
    monkeypatch.setattr("gkd_rl.models.lora.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"peft is not installed; pip install 'gkd-rl\[lora\]', or set student\.lora\.rank=0"):
        require_peft()


def test_an_adapters_folder_is_no_model(tmp_path: Path):
    save_adapter(adapted("llama").module, tmp_path / "adapter")
    for _ in range(2):
        with pytest.raises(UserError, match=r"student\.path: .*adapter holds a peft adapter; give the folder of a model"):
            resolve(str(tmp_path / "adapter"), "student.path")
        (tmp_path / "adapter" / "config.json").write_text("{}")
