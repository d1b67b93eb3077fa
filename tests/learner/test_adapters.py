"""A student with an adapter or frozen parts in every other part of a run: objective, teachers, samplers, what is sent to vLLM."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from experiences import examples, experience, flat_gradient, gradient
from tiny_models import language_model

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.config.student import LoraConfig, StudentConfig
from gkd_rl.learner import Learner
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.models.lora import merged
from gkd_rl.models.trained import mark_trained
from gkd_rl.objective import projection
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.rollout.ahead import CopySampler
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.generate import GenerateSampler
from gkd_rl.rollout.rescoring import policy_logprobs
from gkd_rl.rollout.sampler import InProcessSampler, dataset_rollouts
from gkd_rl.rollout.vllm import checkpoint_weights
from gkd_rl.teacher.local import LocalTeacher, TopKTeacher
from gkd_rl.teacher.own import MovingAverage
from gkd_rl.types import GlobalCounts

KINDS = ("llama", "llama:untied", "gpt2", "t5", "bart")
WEIGHTS = TermWeights(0.6, 0.4, 0.2)


def adapted(kind: str, **changes: Any) -> LanguageModel:
    """A student with an adapter that has been trained for a while."""
    model = language_model(kind, **changes)
    mark_trained(model.module, StudentConfig(lora=LoraConfig(rank=3, alpha=6.0)), seed=1)
    _move(model)
    return model


@torch.no_grad()
def _move(model: LanguageModel, seed: int = 5) -> None:
    """Move what is trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


# the objective


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapters_gradient_is_that_of_its_share_of_the_whole_weights(kind: str):
    """W' = W + s·B·A: ∂/∂A = s·Bᵀ·G and ∂/∂B = s·G·Aᵀ, with G the gradient in W' of a plain model that has these weights."""
    student, plain, teacher = adapted(kind), language_model(kind), language_model(kind, seed=2)
    with merged(student.module):
        plain.module.load_state_dict(student.module.state_dict())
    rows = experience(student, teacher, 3, 2, dataset=2)
    gradient(plain, [rows], ObjectiveConfig(), WEIGHTS)
    gradient(student, [rows], ObjectiveConfig(), WEIGHTS)
    whole, checked = dict(plain.module.named_parameters()), 0
    for name, layer in student.module.named_modules():
        if hasattr(layer, "lora_A"):
            g = whole[f"{name}.weight"].grad
            assert g is not None
            g = g.T if kind == "gpt2" else g
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            scale = 2e-5 * max(1.0, float(g.abs().max()) * 10)
            torch.testing.assert_close(a.grad, 2.0 * b.T @ g, atol=scale, rtol=1e-3)
            torch.testing.assert_close(b.grad, 2.0 * g @ a.T, atol=scale, rtol=1e-3)
            checked += 1
    assert checked > 5
    assert all(p.grad is None for p in student.module.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    ("settings", "formed"),
    [(StudentConfig(), True), (StudentConfig(freeze=["lm_head.*"]), False), (StudentConfig(lora=LoraConfig(rank=2)), False)],
)
def test_a_frozen_head_costs_no_product(monkeypatch: pytest.MonkeyPatch, settings: StudentConfig, formed: bool):
    products = []
    monkeypatch.setattr(projection, "add_product_", lambda out, left, right: products.append(out.shape))
    student = language_model("llama:untied")
    mark_trained(student.module, settings, 0)
    gradient(student, [experience(student, language_model("llama", seed=2))], ObjectiveConfig(), WEIGHTS)
    assert bool(products) is formed


@pytest.mark.parametrize("kind", ["llama:untied", "t5:untied"])
def test_frozen_parts_leave_the_gradients_of_the_others_alone(kind: str):
    whole, part = language_model(kind), language_model(kind)
    patterns = ["lm_head.*", "*norm*", "*embed*", "shared.*"][: 4 if kind.startswith("t5") else 3]
    mark_trained(part.module, StudentConfig(freeze=patterns), 0)
    rows = experience(whole, language_model(kind, seed=2), 3, 2, dataset=1)
    gradient(whole, [rows], ObjectiveConfig(), WEIGHTS)
    gradient(part, [rows], ObjectiveConfig(), WEIGHTS)
    for (name, theirs), ours in zip(whole.module.named_parameters(), part.module.parameters(), strict=True):
        assert theirs.grad is not None
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4, msg=name)
        else:
            assert ours.grad is None, name


@pytest.mark.parametrize("student", [StudentConfig(lora=LoraConfig(rank=2)), StudentConfig(freeze=["lm_head.*"])])
def test_a_rank_without_rows_reaches_all_that_is_trained(student: StudentConfig):
    model = language_model("llama:untied")
    mark_trained(model.module, student, 0)
    Learner(model, ObjectiveConfig(), WEIGHTS, GlobalCounts(1.0, 1.0, 1.0)).loss(None).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.module.parameters())
    assert not flat_gradient(model).any()


# teachers


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_under_the_adapter_is_the_initial_student(kind: str):
    student = adapted(kind)
    rollouts = experience(student, None, 3, 2, dataset=2).rollouts
    base, separate = LocalTeacher(student, 60, under_adapter=True), LocalTeacher(language_model(kind), 60)
    ours, theirs, present = base.score(rollouts), separate.score(rollouts), LocalTeacher(student, 60).score(rollouts)
    assert torch.equal(ours.hidden, theirs.hidden) and torch.equal(ours.head.weight, theirs.head.weight)
    assert not torch.allclose(ours.hidden, present.hidden, atol=1e-2)
    _move(student)
    assert torch.equal(base.score(rollouts).hidden, theirs.hidden), "however far the adapter goes"
    assert base.parameters == separate.parameters < student.parameters
    top, top_of_it = (TopKTeacher(teacher, 3).score(rollouts) for teacher in (base, separate))
    assert torch.equal(top.logprobs, top_of_it.logprobs) and torch.equal(top.ids, top_of_it.ids)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_an_average_follows_the_student_with_its_adapter(kind: str):
    student, average = adapted(kind), MovingAverage(language_model(kind), 0.75)
    average.follow(student)
    with merged(student.module):
        trained = {name: p.clone() for name, p in student.module.named_parameters()}
    for name, before in language_model(kind).module.named_parameters():
        torch.testing.assert_close(average.state_dict()[name], 0.75 * before.detach() + 0.25 * trained[name], msg=name)


# samplers


@pytest.mark.parametrize("sampler", [InProcessSampler, lambda model, rows: GenerateSampler(model, rows, 200)])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_samples_come_from_the_policy_with_its_adapter(kind: str, sampler: Any):
    student, plain = adapted(kind), language_model(kind)
    rollouts = sampler(student, 64).sample(examples(4), 2, SamplingParams(6), 1)
    torch.testing.assert_close(rollouts.sampler_logprobs, policy_logprobs(student, rollouts, 200), atol=1e-4, rtol=0)
    torch.testing.assert_close(rollouts.logprobs, policy_logprobs(student, rollouts, 200), atol=1e-4, rtol=0)
    assert not torch.allclose(rollouts.logprobs, policy_logprobs(plain, rollouts, 200), atol=1e-2)
    with merged(student.module):
        assert sampler(student, 64).sample(examples(4), 2, SamplingParams(6), 1).texts == rollouts.texts


def test_a_copy_shares_what_is_frozen_and_follows_what_is_not():
    student, params = adapted("llama"), SamplingParams(6)
    copied = CopySampler(student, 64)
    pairs = list(zip(copied.model.module.parameters(), student.module.parameters(), strict=True))
    assert all((mine is theirs) != theirs.requires_grad for mine, theirs in pairs)
    before = InProcessSampler(student, 64).sample(examples(4), 2, params, 1).texts
    _move(student)
    with merged(student.module):  # what the trained model is made to be meanwhile is no matter to the copy
        assert copied.sample(examples(4), 2, params, 1).texts == before
    LocalTeacher(student, 60, under_adapter=True).score(dataset_rollouts(student, examples(2), 6, 0))
    assert copied.sample(examples(4), 2, params, 1).texts == before
    copied.sync(1)
    assert copied.sample(examples(4), 2, params, 1).texts == InProcessSampler(student, 64).sample(examples(4), 2, params, 1).texts != before


@pytest.mark.parametrize("kind", KINDS)
def test_vllm_gets_merged_weights_under_the_models_own_names(kind: str):
    student, plain = adapted(kind), language_model(kind)
    sent, original = checkpoint_weights(student.module), checkpoint_weights(plain.module)
    assert list(sent) == list(original)
    changed = {name for name, weight in sent.items() if not torch.equal(weight, original[name])}
    targets = {f"{name}.weight" for name, part in student.module.named_modules() if hasattr(part, "lora_A")}
    assert changed == targets
    plain.module.load_state_dict(sent)
    rollouts = dataset_rollouts(plain, examples(3), 6, 0)
    torch.testing.assert_close(policy_logprobs(plain, rollouts, 200), policy_logprobs(student, rollouts, 200), atol=1e-4, rtol=0)
