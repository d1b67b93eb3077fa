"""The local teacher: what it keeps of rollouts is what it predicts, however it is cut."""

from __future__ import annotations

import pytest
import torch
from experiences import experience, own_logits, token_rows
from tiny_models import language_model

from gkd_rl.objective.head import logits_of
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.sampler import InProcessSampler
from gkd_rl.teacher.local import LocalTeacher


@pytest.mark.parametrize("budget", [1, 30, 10_000])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "t5", "bart"])
def test_scores_give_the_teachers_distribution_back(kind: str, budget: int):
    rollouts = experience(language_model(kind), None, 4, 2, dataset=2).rollouts
    teacher = LocalTeacher(language_model(kind, seed=1), budget)
    scores = teacher.score(rollouts)
    assert not scores.hidden[~rollouts.completion_mask].any()
    logprobs = logits_of(scores.hidden, scores.head).log_softmax(-1)
    for row, (prompt, completion) in enumerate(token_rows(rollouts)):
        with torch.no_grad():
            own = own_logits(teacher.model, prompt, completion).log_softmax(-1)
        torch.testing.assert_close(logprobs[row, : len(completion)], own, atol=2e-5, rtol=0)


def test_no_gradient_leads_into_the_teacher():
    rollouts = experience(language_model("llama"), None, 2, 1).rollouts
    scores = LocalTeacher(language_model("llama:untied", seed=1), 64).score(rollouts)
    assert not scores.hidden.requires_grad and not scores.head.weight.requires_grad


def test_no_rollouts_give_no_scores():
    rollouts = InProcessSampler(language_model("llama"), 4).sample([], 2, SamplingParams(3), 0)
    assert LocalTeacher(language_model("llama", hidden_size=32), 64).score(rollouts).hidden.shape == (0, 1, 32)
