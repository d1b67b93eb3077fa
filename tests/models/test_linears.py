"""Linear layers through the quick product: the same outputs and gradients as torch's, wherever the route is taken."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gkd_rl.models import linears
from gkd_rl.models.linears import quicken
from gkd_rl.objective import products


@pytest.fixture
def routed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sends products of every size through oneDNN, and notes them. A processor without it cannot take the route at all."""
    if not products._has_onednn():
        pytest.skip("no oneDNN for this processor")
    taken: list[int] = []
    real = linears.quick_product
    monkeypatch.setattr(products, "LEAST_WORK", 0)
    monkeypatch.setattr(linears, "quick_product", lambda *factors: taken.append(1) or real(*factors))
    return taken


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 9), (9, 5), (7, 7)])
def test_outputs_and_all_gradients_are_those_of_torch(routed: list[int], inputs: int, outputs: int, bias: bool):
    torch.manual_seed(0)
    plain = nn.Linear(inputs, outputs, bias=bias)
    quick = copy.deepcopy(plain)
    quicken(quick)
    x = torch.randn(3, 4, inputs)
    found = []
    for layer in (plain, quick):
        given = x.clone().requires_grad_()
        out = layer(given)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
        found.append([out, given.grad, *(parameter.grad for parameter in layer.parameters())])
    torch.testing.assert_close(found[1], found[0])
    assert len(routed) == 3  # forward, and the gradients of input and weight
    with torch.no_grad():
        torch.testing.assert_close(quick(x), plain(x))
    assert len(routed) == 4


def test_frozen_weights_get_no_gradient_and_pass_the_inputs_on(routed: list[int]):
    torch.manual_seed(0)
    layer = nn.Linear(6, 8).requires_grad_(False)
    quicken(layer)
    x = torch.randn(5, 6, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(5, 6))
    assert layer.weight.grad is None and layer.bias.grad is None and len(routed) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_go_torchs_way(routed: list[int], dtype: torch.dtype):
    layer = nn.Linear(6, 8, dtype=dtype)
    expected = copy.deepcopy(layer)
    quicken(layer)
    x = torch.randn(5, 6, dtype=dtype)
    assert torch.equal(layer(x), expected(x)) and not routed


def test_a_copy_of_a_quick_model_uses_its_own_weights(routed: list[int]):
    model = nn.Sequential(nn.Linear(6, 8))
    quicken(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight.zero_()
        x = torch.randn(5, 6)
        torch.testing.assert_close(other(x), nn.functional.linear(x, other[0].weight, other[0].bias))
    assert other[0].weight.abs().sum() > 0
