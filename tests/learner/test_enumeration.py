"""Expected gradients over every answer that a tiny vocabulary allows, against gradients of the expectations themselves.

An answer y of up to three tokens has probability p(y). Each row's term is weighted by p(y), so that one gradient over all answers is
the expectation of the gradient that sampling estimates.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from experiences import flat_gradient, own_logits
from tiny_models import language_model
from torch import Tensor

from gkd_rl.config.objective import AdvantageConfig, DivergenceConfig, ObjectiveConfig
from gkd_rl.learner import Learner
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.objective.advantage import advantages
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.rollout.rows import take_experience
from gkd_rl.teacher.local import LocalTeacher
from gkd_rl.types import Example, Experience, Gates, GlobalCounts, Rollouts

PROMPT = [2, 2]
EOS = 1


def all_answers(vocabulary: int, length: int) -> list[tuple[int, ...]]:
    """Every answer that ends with its first EOS, or at ``length``."""
    others = [token for token in range(vocabulary) if token != EOS]
    ended = [(*start, EOS) for n in range(length) for start in itertools.product(others, repeat=n)]
    return ended + list(itertools.product(others, repeat=length))


class Enumeration:
    """All answers of a student to one prompt, as one experience."""

    def __init__(self, kind: str, vocabulary: int, length: int) -> None:
        self.student = language_model(kind, vocabulary, seed=2)
        self.teacher = language_model(kind, vocabulary, seed=3)
        for model in (self.student, self.teacher):
            model.module.double()
        self.answers = all_answers(vocabulary, length)
        self.logprobs, self.logits = self._own(self.student)
        self.probabilities = self.logprobs.detach().exp()
        self.teacher_logprobs, self.teacher_logits = (
            [t.detach() for t in part] if isinstance(part, list) else part.detach() for part in self._own(self.teacher)
        )
        assert self.probabilities.sum().item() == pytest.approx(1, abs=1e-6)
        generator = torch.Generator().manual_seed(1)
        self.rewards = torch.rand(len(self.answers), generator=generator, dtype=torch.float64)
        self.experience = self._experience(length)

    def _own(self, model: LanguageModel) -> tuple[Tensor, list[Tensor]]:
        """log p(y) of every answer, and the log-probabilities [C, V] along it, by the model's own logits."""
        rows = [own_logits(model, PROMPT, list(answer)).log_softmax(-1) for answer in self.answers]
        sums = [row.gather(-1, torch.tensor(a)[:, None]).sum() for row, a in zip(rows, self.answers, strict=True)]
        return torch.stack(sums), rows

    def _experience(self, length: int) -> Experience:
        count = len(self.answers)
        ids, mask = torch.zeros(count, length, dtype=torch.long), torch.zeros(count, length, dtype=torch.bool)
        logprobs = torch.zeros(count, length, dtype=torch.float64)
        for i, answer in enumerate(self.answers):
            ids[i, : len(answer)], mask[i, : len(answer)] = torch.tensor(answer), True
            logprobs[i, : len(answer)] = self.logits[i].detach().gather(-1, torch.tensor(answer)[:, None])[:, 0]
        rollouts = Rollouts(
            examples=(Example("a a"),) * count,
            prompt_ids=torch.tensor([PROMPT] * count),
            prompt_mask=torch.ones(count, 2, dtype=torch.bool),
            completion_ids=ids,
            completion_mask=mask,
            logprobs=logprobs,
            sampler_logprobs=logprobs,
            on_policy=torch.ones(count, dtype=torch.bool),
            group=torch.zeros(count, dtype=torch.long),
            version=torch.zeros(count, dtype=torch.long),
            ended=torch.ones(count, dtype=torch.bool),
            inserted=torch.zeros_like(mask),
        )
        scores = LocalTeacher(self.teacher, 10_000).score(rollouts)
        zeros = torch.zeros(count, dtype=torch.float64)
        return Experience(rollouts, self.rewards, {}, zeros, scores, gates=Gates(torch.ones(count), torch.ones(count)))

    def reward_gradient(self, rows: Tensor, weighted_advantages: Tensor) -> Tensor:
        """Gradient of the reward's term over some answers."""
        e = replace(take_experience(self.experience, rows), advantages=weighted_advantages)
        return self._gradient(e, ObjectiveConfig(), TermWeights(1.0, 0.0, 0.0))

    def divergence_gradient(self, divergence: DivergenceConfig) -> Tensor:
        """Expected gradient of the divergence's term."""
        e = replace(self.experience, gates=Gates(torch.ones(len(self.answers)), self.probabilities))
        return self._gradient(e, ObjectiveConfig(divergence=divergence), TermWeights(0.0, 1.0, 0.0))

    def _gradient(self, e: Experience, config: ObjectiveConfig, weights: TermWeights) -> Tensor:
        self.student.module.zero_grad()
        Learner(self.student, config, weights, GlobalCounts(1.0, 1.0, 1.0)).loss(e).backward()
        return flat_gradient(self.student)

    def exact_gradient(self, expectation: Tensor) -> Tensor:
        """Gradient of a quantity of the student's own probabilities."""
        self.student.module.zero_grad()
        expectation.backward(retain_graph=True)
        return flat_gradient(self.student)

    def over_prefixes(self, divergence) -> Tensor:
        """Σ p(prefix)·divergence(teacher, student) over every prefix, p(prefix) held fixed."""
        seen: dict[tuple[int, ...], Tensor] = {}
        for i, answer in enumerate(self.answers):
            for n in range(len(answer)):
                seen.setdefault(answer[:n], divergence(self.teacher_logits[i][n], self.logits[i][n]) * self._mass(answer[:n]))
        return torch.stack(list(seen.values())).sum()

    def _mass(self, prefix: Sequence[int]) -> Tensor:
        rows = [i for i, answer in enumerate(self.answers) if answer[: len(prefix)] == prefix]
        return self.probabilities[rows].sum()


@pytest.fixture(scope="module", params=["llama", "t5"])
def enumeration(request: pytest.FixtureRequest) -> Enumeration:
    return Enumeration(request.param, vocabulary=4, length=3)


def _assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.norm() > 1e-3
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("baseline", [0.0, 0.4])
def test_the_rewards_term_follows_the_gradient_of_the_expected_reward(enumeration: Enumeration, baseline: float):
    e = enumeration
    everything = torch.arange(len(e.answers))
    ours = e.reward_gradient(everything, e.probabilities * (e.rewards - baseline))
    _assert_same(ours, e.exact_gradient(-(e.logprobs.exp() * e.rewards).sum()))


@pytest.mark.parametrize(("kind", "factor"), [("rloo", 1.0), ("dr_grpo", 0.5)])
def test_advantages_within_groups_keep_the_direction(kind: str, factor: float):
    """Groups of two: leaving one out is unbiased, the group's own mean takes half of the gradient away."""
    e = Enumeration("llama", vocabulary=3, length=2)
    pairs = list(itertools.product(range(len(e.answers)), repeat=2))
    rows = torch.tensor(pairs).flatten()
    groups = torch.arange(len(pairs)).repeat_interleave(2)
    chances = (e.probabilities[torch.tensor(pairs)].prod(1) / 2).repeat_interleave(2)
    values = advantages(e.rewards[rows], groups, AdvantageConfig(kind=kind))  # pyright: ignore
    ours = e.reward_gradient(rows, chances * values)
    _assert_same(ours, factor * e.exact_gradient(-(e.logprobs.exp() * e.rewards).sum()))


def _forward(lq: Tensor, lp: Tensor) -> Tensor:
    return (lq.exp() * (lq - lp)).sum()


def _reverse(lq: Tensor, lp: Tensor) -> Tensor:
    return (lp.exp() * (lp - lq)).sum()


def _jsd(lq: Tensor, lp: Tensor) -> Tensor:
    p, q = lp.exp(), lq.exp()
    m = 0.9 * q + 0.1 * p
    return (0.9 * q * (lq - m.log())).sum() + (0.1 * p * (lp - m.log())).sum()


@pytest.mark.parametrize(
    ("config", "definition"),
    [
        (DivergenceConfig(kind="forward_kl"), _forward),
        (DivergenceConfig(kind="reverse_kl"), _reverse),
        (DivergenceConfig(kind="gjsd", beta=0.9), _jsd),
        (DivergenceConfig(kind="reverse_kl", estimator="k2"), _reverse),
        (DivergenceConfig(kind="forward_kl", estimator="k3"), _forward),
        (DivergenceConfig(kind="reverse_kl", estimator="k1", use="advantage"), _reverse),
    ],
    ids=["forward_kl", "reverse_kl", "gjsd", "k2", "k3", "k1 as advantage"],
)
def test_the_divergences_term_follows_its_gradient_at_the_prefixes(enumeration: Enumeration, config: DivergenceConfig, definition):
    ours = enumeration.divergence_gradient(config)
    _assert_same(ours, enumeration.exact_gradient(enumeration.over_prefixes(definition)))


def test_undiscounted_k1_advantages_follow_the_divergence_of_whole_answers(enumeration: Enumeration):
    e = enumeration
    ours = e.divergence_gradient(DivergenceConfig(kind="reverse_kl", estimator="k1", use="advantage", discount=1.0))
    _assert_same(ours, e.exact_gradient((e.logprobs.exp() * (e.logprobs - e.teacher_logprobs)).sum()))
