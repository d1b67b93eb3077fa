"""Gradients through the model: each term against a plain definition by the model's own logits, and what must not change them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from experiences import experience, gradient, in_double, own_logits, rows_of, token_rows
from tiny_models import language_model
from torch import Tensor

from gkd_rl.config.objective import DivergenceConfig, ObjectiveConfig, SurrogateConfig
from gkd_rl.learner import Learner, local_counts
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.objective.schedule import TermWeights, weights_at
from gkd_rl.rollout.rows import join_experiences
from gkd_rl.teacher.local import LocalTeacher
from gkd_rl.types import Experience, Gates, GlobalCounts

KINDS = ("llama", "t5")
MEANS = ("token", "sequence")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def student(kind: str) -> LanguageModel:
    return _double(language_model(kind))


@pytest.fixture(scope="module")
def teacher(kind: str) -> LanguageModel:
    return language_model(kind, seed=1)


@pytest.fixture(scope="module")
def rows(kind: str, teacher: LanguageModel) -> Experience:
    """Six sampled rows (one without reward) and two of the dataset, as the student of this moment sampled them."""
    return in_double(experience(language_model(kind), teacher, 3, 2, dataset=2))


def _double(model: LanguageModel) -> LanguageModel:
    model.module.double()
    return model


def _moved(model: LanguageModel, kind: str) -> LanguageModel:
    """The student after some updates: its ratios to the policy at sampling are spread."""
    other = _double(language_model(kind))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in other.module.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return other


def _config(mean: str = "token", **changes) -> ObjectiveConfig:
    divergence = DivergenceConfig(mean=mean, kind=changes.pop("kind", "gjsd"))  # pyright: ignore
    return ObjectiveConfig(divergence=divergence, surrogate=SurrogateConfig(mean=mean), **changes)  # pyright: ignore


def _plain(model: LanguageModel, teacher: LanguageModel, e: Experience, term: str, mean: str) -> Tensor:
    """The term's loss by definition, row by row and without padding, from the models' own logits."""
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for i, (prompt, completion) in enumerate(token_rows(e.rollouts)):
        lp = own_logits(model, prompt, completion).log_softmax(-1)
        with torch.no_grad():
            lq = own_logits(teacher, prompt, completion).double().log_softmax(-1)
        tokens = torch.tensor(completion)[:, None]
        logprob = lp.gather(-1, tokens)[:, 0]
        if term == "reward":
            old = e.rollouts.logprobs[i, : len(completion)].double()
            ratio, advantage = (logprob - old).exp(), e.advantages[i].double()
            loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
            applies = bool(e.rollouts.on_policy[i]) and not math.isnan(e.rewards[i].item())
        elif term == "divergence":
            p, q = lp.exp(), lq.exp()
            m = (p + q) / 2
            loss = (0.5 * q * (lq - m.log()) + 0.5 * p * (lp - m.log())).sum(-1)
            applies = True
        else:
            loss, applies = -logprob, not e.rollouts.on_policy[i]
        if applies:
            total = total + (loss.sum() if mean == "token" else loss.mean())
            weight += len(completion) if mean == "token" else 1
    return total / weight


def _plain_gradient(model: LanguageModel, loss: Tensor) -> Tensor:
    gradients = torch.autograd.grad(loss, list(model.module.parameters()), allow_unused=True)
    parameters = model.module.parameters()
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(gradients, parameters, strict=True)])


def _assert_same(ours: Tensor, theirs: Tensor, relative: float = 1e-6) -> None:
    assert theirs.norm() > 1e-4
    assert (ours - theirs).norm() <= relative * theirs.norm()


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("term", ["reward", "divergence", "cross_entropy"])
def test_each_terms_gradient_is_that_of_its_definition(
    kind: str, student: LanguageModel, teacher: LanguageModel, rows: Experience, term: str, mean: str
):
    weights = TermWeights(**{name: float(name == term) for name in ("reward", "divergence", "cross_entropy")})
    for model in (student, _moved(student, kind)):
        ours = gradient(model, [rows], _config(mean), weights)
        _assert_same(ours, _plain_gradient(model, _plain(model, teacher, rows, term, mean)), 1e-5)


def test_alpha_goes_from_pure_reward_to_pure_distillation(student: LanguageModel, teacher: LanguageModel, rows: Experience):
    reward, divergence = (_plain_gradient(student, _plain(student, teacher, rows, t, "token")) for t in ("reward", "divergence"))
    for alpha in (0.0, 0.3, 1.0):
        config = _config(alpha=alpha)
        ours = gradient(student, [rows], config, weights_at(config, 0, 10))
        _assert_same(ours, (1 - alpha) * reward + alpha * divergence, 1e-5)


@pytest.mark.parametrize("kind_of_divergence", ["gjsd", "forward_kl", "reverse_kl"])
def test_another_teacher_gives_another_gradient(kind: str, student: LanguageModel, rows: Experience, kind_of_divergence: str):
    other = replace(rows, teacher=LocalTeacher(language_model(kind, seed=9), 256).score(rows.rollouts))
    config, weights = _config(kind=kind_of_divergence), TermWeights(0.0, 1.0, 0.0)
    ours, theirs = (gradient(student, [e], config, weights) for e in (rows, in_double(other)))
    assert (ours - theirs).norm() > 0.1 * ours.norm()


def test_a_teacher_equal_to_the_student_gives_no_gradient(kind: str, student: LanguageModel, rows: Experience):
    same = in_double(replace(rows, teacher=LocalTeacher(language_model(kind), 256).score(rows.rollouts)))
    assert gradient(student, [same], _config(), TermWeights(0.0, 1.0, 0.0)).norm() < 1e-5


@pytest.mark.parametrize("mean", MEANS)
def test_the_cut_into_micro_batches_changes_no_gradient(student: LanguageModel, rows: Experience, mean: str):
    weights = TermWeights(0.5, 0.3, 0.2)
    whole = gradient(student, [rows], _config(mean), weights)
    for cuts in ([[i] for i in range(8)], [[0, 7], [1, 6], [2, 5], [3, 4]], [[4, 0, 6], [7, 3, 1, 2, 5]]):
        _assert_same(gradient(student, rows_of(rows, *cuts), _config(mean), weights), whole)


@pytest.mark.parametrize("mean", MEANS)
def test_padding_changes_no_gradient(student: LanguageModel, rows: Experience, mean: str):
    weights = TermWeights(0.5, 0.3, 0.2)
    whole = gradient(student, [rows], _config(mean), weights)
    _assert_same(gradient(student, [_padded(rows, 4, 3, 0)], _config(mean), weights), whole)
    _assert_same(gradient(student, [_padded(rows, 2, 5, 7)], _config(mean), weights), whole)


def _padded(e: Experience, left: int, right: int, pad: int) -> Experience:
    """More columns of padding on both sides, with any id and with garbage where nothing may look."""
    r = e.rollouts
    assert e.teacher is not None

    def wider(tensor: Tensor, value: float, before: int, after: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (before, after), value=value)

    teacher = replace(e.teacher, hidden=torch.nn.functional.pad(e.teacher.hidden, (0, 0, 0, right), value=1e9))
    rollouts = replace(
        r,
        prompt_ids=wider(r.prompt_ids, pad, left, 0),
        prompt_mask=wider(r.prompt_mask, False, left, 0),
        completion_ids=wider(r.completion_ids, pad, 0, right),
        completion_mask=wider(r.completion_mask, False, 0, right),
        logprobs=wider(r.logprobs, torch.nan, 0, right),
        sampler_logprobs=wider(r.sampler_logprobs, torch.nan, 0, right),
        inserted=wider(r.inserted, True, 0, right),
    )
    return replace(e, rollouts=rollouts, teacher=teacher)


def test_rows_sampled_by_different_steps_can_be_joined(kind: str, student: LanguageModel, rows: Experience):
    weights = TermWeights(0.5, 0.3, 0.2)
    joined = join_experiences(rows_of(rows, [5, 1, 2], [7, 0], [3, 4, 6]), pad=0)
    _assert_same(gradient(student, [joined], _config(), weights), gradient(student, [rows], _config(), weights))


def test_a_gate_takes_a_row_from_its_term_but_not_from_the_mean(student: LanguageModel, rows: Experience):
    config, weights = _config(), TermWeights(0.4, 0.6, 0.0)
    ones = torch.ones(8)
    counts = GlobalCounts(**local_counts([rows], config))
    reward, divergence = ones.clone(), ones.clone()
    reward[0], divergence[2] = 0, 0
    ours = gradient(student, [replace(rows, gates=Gates(reward, divergence))], config, weights)
    expected = torch.zeros_like(ours)
    for i, e in enumerate(rows_of(rows, *([i] for i in range(8)))):
        own = TermWeights(0.4 * (i != 0), 0.6 * (i != 2), 0.0)
        learner = Learner(student, config, own, counts)
        expected += _plain_gradient(student, learner.loss(e))
    _assert_same(ours, expected)
    assert (ours - gradient(student, [rows], config, weights)).norm() > 1e-2 * ours.norm()


def test_the_reference_pulls_only_once_the_student_has_left_it(kind: str, student: LanguageModel, rows: Experience):
    config = _config()
    config.surrogate.reference_kl_weight = 0.5
    initial = LocalTeacher(student, 256).score(rows.rollouts)
    without, weights = replace(rows, advantages=torch.zeros(8), reference=initial), TermWeights(1.0, 0.0, 0.0)
    assert gradient(student, [without], config, weights).norm() < 1e-9
    assert gradient(_moved(student, kind), [without], config, weights).norm() > 1e-3


def test_counts_are_tokens_or_sequences_of_the_rows_a_term_is_about(rows: Experience):
    sizes = rows.rollouts.completion_mask.sum(1).tolist()
    rewarded = [i for i in range(6) if i != 1]
    assert local_counts([rows], _config("token")) == {
        "reward": sum(sizes[i] for i in rewarded),
        "divergence": sum(sizes),
        "cross_entropy": sum(sizes[6:]),
    }
    assert local_counts([rows], _config("sequence")) == {"reward": 5, "divergence": 8, "cross_entropy": 2}
    assert local_counts(rows_of(rows, [0, 1, 7], [2, 3, 4, 5, 6]), _config("token")) == local_counts([rows], _config("token"))
    assert local_counts([], _config()) == {"reward": 0, "divergence": 0, "cross_entropy": 0}


def test_no_micro_batch_gives_a_zero_gradient_that_reaches_every_parameter(student: LanguageModel):
    learner = Learner(student, _config(), TermWeights(0.5, 0.5, 0.0), GlobalCounts(3.0, 3.0, 0.0))
    student.module.zero_grad()
    loss = learner.loss(None)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in student.module.parameters())


def test_metrics_are_summed_over_micro_batches(student: LanguageModel, rows: Experience):
    sums = []
    for cuts in ([range(8)], [[0, 1, 2], [3], [4, 5, 6, 7]]):
        config = _config()
        config.telemetry.interference_stride = 0  # every n-th token is another one in another cut
        learner = Learner(student, config, TermWeights(0.5, 0.5, 0.0), GlobalCounts(**local_counts([rows], config)), records=[])
        for part in rows_of(rows, *cuts):
            learner.loss(part)
        assert learner.records is not None and len(learner.records) == len(cuts)
        sums.append({name: value.item() for name, value in learner.sums.items()})
    assert sums[0] == pytest.approx(sums[1], rel=1e-5, abs=1e-6)
    assert sums[0]["tokens"] == rows.rollouts.completion_mask.sum()
