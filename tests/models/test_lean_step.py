"""The step of few operations against Transformers' own, state by state, and the models that it leaves alone."""

from __future__ import annotations

import pytest
import torch
from tiny_models import language_model
from torch import Tensor, nn

from gkd_rl.config.student import LoraConfig
from gkd_rl.models.language_model import CausalLanguageModel, LanguageModel, encode_prompts
from gkd_rl.models.lean_step import attention_of_one
from gkd_rl.models.linears import packed
from gkd_rl.models.lora import add_lora
from gkd_rl.objective import products
from gkd_rl.objective.head import logits_of, packed_head

onednn = pytest.mark.skipif(not products._has_onednn(), reason="no oneDNN for this processor")
PADDED, EQUAL = [[2, 3, 4, 5, 6], [7], [8, 9, 10]], [[2, 3, 4], [5, 6, 7], [8, 9, 10]]
VARIANTS = {
    "llama": {},
    "llama:untied": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    "qwen2": {},
    "qwen3": {"num_attention_heads": 4},
    "mistral": {},
}


def _model(kind: str) -> CausalLanguageModel:
    model = language_model(kind, **VARIANTS[kind])
    assert isinstance(model, CausalLanguageModel)
    return model


@torch.no_grad()
def _states(model: LanguageModel, prompts: list[list[int]]) -> list[Tensor]:
    """Of a group of two answers to each prompt, some of which are taken out on the way."""
    hidden, state = model.begin(*encode_prompts(model, prompts), 8)
    state.repeat(2)
    found = [hidden.repeat_interleave(2, dim=0)]
    for step in range(8):
        if step == 4:
            state.select(torch.tensor([0, 2, 5]))
        rows = len(state.position)
        found.append(model.advance((torch.arange(rows) * 3 + step) % 10 + 2, state))
    return found


@onednn
@pytest.mark.parametrize("prompts", [PADDED, EQUAL])
@pytest.mark.parametrize("kind", VARIANTS)
def test_states_are_those_of_transformers_own_forward(kind: str, prompts: list[list[int]]):
    model = _model(kind)
    expected = _states(model, prompts)
    with model.many_steps(6):
        assert model._lean is not None
        found = _states(model, prompts)
    assert model._lean is None
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@onednn
def test_weights_are_taken_anew_each_time():
    model = _model("llama")
    with model.many_steps(6):
        before = _states(model, PADDED)[-1]
    with torch.no_grad():
        model.module.model.layers[1].mlp.down_proj.weight.mul_(1.5)  # pyright: ignore
    with model.many_steps(6):
        after = _states(model, PADDED)[-1]
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after, _states(model, PADDED)[-1], atol=1e-5, rtol=1e-5)


def _half(model: LanguageModel) -> None:
    model.module.to(torch.bfloat16)


def _adapted(model: LanguageModel) -> None:
    add_lora(model.module, LoraConfig(rank=2), seed=0)


def _sharded(model: LanguageModel) -> None:
    model.module.model.layers[0].self_attn.q_proj.weight.ds_id = 0  # pyright: ignore


@pytest.mark.parametrize("change", [_half, _adapted, _sharded])
def test_other_layers_than_plain_ones_are_left_to_transformers(change):
    model = _model("llama")
    change(model)
    with model.many_steps(6):
        assert model._lean is None
        assert torch.isfinite(_states(model, PADDED)[-1]).all()


def test_models_whose_layers_differ_in_what_they_attend_to_are_left_to_transformers():
    model = language_model("gemma2")
    expected = _states(model, PADDED)
    with model.many_steps(6):
        assert getattr(model, "_lean", None) is None
        for ours, theirs in zip(_states(model, PADDED), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@onednn
def test_packed_layers_give_the_same_products_and_take_part_in_no_gradient():
    model, x = language_model("t5"), torch.randn(5, 3, 16)
    layers = [layer for layer in model.module.modules() if type(layer) is nn.Linear and layer.in_features == 16]
    spared = model.module.get_output_embeddings()
    with torch.no_grad():
        expected = [layer(x) for layer in layers]
    with packed(model.module, 15, spared=spared):
        ready = [layer for layer in layers if "_packed_weight" in layer.__dict__]
        assert ready == [layer for layer in layers if layer is not spared]
        with torch.no_grad():
            found = [layer(x) for layer in layers]
        out = ready[0](x.requires_grad_())
        out.sum().backward()
    assert not any("_packed_weight" in layer.__dict__ for layer in layers)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(x.grad, ready[0].weight.sum(0).expand_as(x))


@onednn
@pytest.mark.parametrize("kind", ["gemma2", "cohere", "t5"])
def test_a_packed_head_gives_the_same_logits(kind: str):
    head, hidden = language_model(kind).head, torch.randn(7, 16)
    ready = packed_head(head, 7)
    assert ready.packed is not None
    with torch.no_grad():
        torch.testing.assert_close(logits_of(hidden, ready), logits_of(hidden, head))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_of_one_query_is_that_of_torch(groups: int):
    torch.manual_seed(groups)
    query, keys, values = torch.randn(3, 4, 1, 8), torch.randn(3, groups, 5, 8), torch.randn(3, groups, 5, 8)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]], dtype=torch.bool)[:, None, None]
    expected = nn.functional.scaled_dot_product_attention(query, keys, values, mask, scale=0.3, enable_gqa=True)
    bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(attention_of_one(query, keys, values, bias, 0.3), expected)
