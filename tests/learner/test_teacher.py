"""The teacher in the process: what it keeps of rollouts is what it predicts, however it is cut; and what is left of it in top-k form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from experiences import experience, gradient, own_logits, rows_of, token_rows
from tiny_models import language_model

from gkd_rl.config.objective import DivergenceConfig, ObjectiveConfig
from gkd_rl.objective.head import logits_of
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.sampler import InProcessSampler
from gkd_rl.teacher.local import LocalTeacher, TopKTeacher


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


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_top_k_are_the_teachers_likeliest_tokens_and_the_completions_own(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gkd_rl.teacher.local.SCORED_TOKENS", 5)
    rollouts = experience(language_model(kind), None, 4, 2, dataset=2).rollouts
    whole = LocalTeacher(language_model(kind, seed=1), 200)
    scores = TopKTeacher(whole, 3).score(rollouts)
    for row, (prompt, completion) in enumerate(token_rows(rollouts)):
        with torch.no_grad():
            own = own_logits(whole.model, prompt, completion).log_softmax(-1)
        valid = slice(len(completion))
        torch.testing.assert_close(scores.logprobs[row, valid], own.topk(3).values, atol=2e-5, rtol=0)
        torch.testing.assert_close(own.gather(-1, scores.ids[row, valid]), scores.logprobs[row, valid], atol=2e-5, rtol=0)
        picked = own.gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)
        torch.testing.assert_close(scores.token_logprobs[row, valid], picked, atol=2e-5, rtol=0)
    assert not scores.logprobs[~rollouts.completion_mask].any() and not scores.token_logprobs[~rollouts.completion_mask].any()


def test_a_vocabulary_smaller_than_k_is_kept_whole():
    rollouts = experience(language_model("llama"), None, 2, 1).rollouts
    scores = TopKTeacher(LocalTeacher(language_model("llama", seed=1), 64), 100).score(rollouts)
    torch.testing.assert_close(scores.logprobs[rollouts.completion_mask].exp().sum(-1), torch.ones(int(rollouts.completion_mask.sum())))


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_a_top_k_teachers_gradient_is_that_of_the_whole_one(tail: str):
    student, teacher = language_model("llama"), LocalTeacher(language_model("llama", seed=1), 64)
    whole = experience(student, teacher.model, 4, 2, dataset=2)
    config = ObjectiveConfig(divergence=DivergenceConfig(estimator="top_k", top_k=4, tail=tail, mean="sequence"))  # pyright: ignore
    kept = replace(whole, teacher=TopKTeacher(teacher, 4).score(whole.rollouts))
    weights = TermWeights(0.5, 0.5, 0.0)
    expected = gradient(student, [whole], config, weights)
    torch.testing.assert_close(gradient(student, [kept], config, weights), expected, rtol=1e-5, atol=1e-5)
    cut = rows_of(kept, [3, 0, 9], [1, 2, 8], [4, 5, 6, 7])
    torch.testing.assert_close(gradient(student, cut, config, weights), expected, rtol=1e-4, atol=1e-5)
