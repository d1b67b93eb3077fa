"""Several teachers over real rows: each row's teacher is the one that its column names; a mixture is that of all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from experiences import experience, gradient, rows_of
from tiny_models import language_model

from gkd_rl.config.objective import DivergenceConfig, ObjectiveConfig
from gkd_rl.errors import UserError
from gkd_rl.objective.head import logits_of
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.rollout.buffer import SamplingBuffer
from gkd_rl.teacher.local import LocalTeacher, TopKTeacher
from gkd_rl.teacher.several import MixedTeachers, RoutedTeachers
from gkd_rl.types import Example, Experience, MixtureScores, Rollouts

WEIGHTS = TermWeights(0.5, 0.5, 0.0)
DOMAINS = ["code", "mathematics", "mathematics", "code", "mathematics", "code"]


def local(seed: int, width: int = 16) -> LocalTeacher:
    return LocalTeacher(language_model("llama", seed=seed, hidden_size=width), 200)


@pytest.fixture(scope="module")
def rows() -> Experience:
    """Four prompts with two answers each and two dataset rows, with a column that names their domain."""
    made = experience(language_model("llama"), None, 4, 2, dataset=2)
    return replace(made, rollouts=in_domains(made.rollouts))


def in_domains(rollouts: Rollouts) -> Rollouts:
    def named(example: Example) -> Example:
        return replace(example, columns={**example.columns, "domain": DOMAINS[example.key]})

    return replace(rollouts, examples=tuple(named(example) for example in rollouts.examples))


def domain_of(rows: Experience) -> list[str]:
    return [str(example.columns["domain"]) for example in rows.rollouts.examples]


def test_each_row_is_scored_by_the_teacher_that_its_column_names(rows: Experience):
    teachers = {"mathematics": local(1), "code": local(2, width=24)}
    scores = RoutedTeachers(teachers, "domain").score(rows.rollouts)
    assert isinstance(scores, MixtureScores)
    for row, domain in enumerate(domain_of(rows)):
        number = list(teachers).index(domain)
        alone = teachers[domain].score(rows.rollouts)
        torch.testing.assert_close(scores.parts[number].hidden[row], alone.hidden[row], atol=1e-5, rtol=1e-4)
        assert not scores.parts[1 - number].hidden[row].any()
        assert scores.weights[row, :, number].eq(1).all() and scores.weights[row, :, 1 - number].eq(0).all()


def test_the_routed_gradient_is_the_sum_of_each_teachers_own_rows(rows: Experience):
    student, config = language_model("llama"), ObjectiveConfig()
    teachers = {"mathematics": local(1), "code": local(2, width=24)}
    routed = replace(rows, teacher=RoutedTeachers(teachers, "domain").score(rows.rollouts))
    cuts = [[i for i, domain in enumerate(domain_of(rows)) if domain == name] for name in teachers]
    apart = [replace(part, teacher=t.score(part.rollouts)) for part, t in zip(rows_of(rows, *cuts), teachers.values(), strict=True)]
    expected = gradient(student, apart, config, WEIGHTS)
    torch.testing.assert_close(gradient(student, [routed], config, WEIGHTS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        gradient(student, rows_of(routed, [0, 9, 4], [1, 2, 3, 5], [6, 7, 8]), config, WEIGHTS), expected, rtol=1e-4, atol=1e-5
    )
    swapped = replace(rows, teacher=RoutedTeachers({"mathematics": local(2), "code": local(1)}, "domain").score(rows.rollouts))
    assert (gradient(student, [swapped], config, WEIGHTS) - expected).abs().max() > 1e-3


def test_top_k_scores_are_routed_too(rows: Experience):
    teachers = {name: TopKTeacher(local(seed), 4) for seed, name in enumerate(("mathematics", "code"), 1)}
    scores = RoutedTeachers(teachers, "domain").score(rows.rollouts)
    for row, domain in enumerate(domain_of(rows)):
        alone = teachers[domain].score(rows.rollouts)
        assert torch.equal(scores.ids[row], alone.ids[row])  # pyright: ignore
        torch.testing.assert_close(scores.token_logprobs[row], alone.token_logprobs[row], atol=1e-5, rtol=0)  # pyright: ignore
    config = ObjectiveConfig(divergence=DivergenceConfig(estimator="top_k", top_k=4))
    gradient(language_model("llama"), [replace(rows, teacher=scores)], config, WEIGHTS)


@pytest.mark.parametrize(
    ("weights", "shares"), [({}, (0.5, 0.5)), ({"first": 1.0, "second": 3.0}, (0.25, 0.75)), ({"second": 2.0}, (0.0, 1.0))]
)
def test_a_mixture_teaches_as_the_average_of_probabilities(rows: Experience, weights, shares):
    teachers = {"first": local(1), "second": local(2, width=24)}
    student, config = language_model("llama"), ObjectiveConfig()
    mixed = replace(rows, teacher=MixedTeachers(teachers, weights).score(rows.rollouts))
    scores = [teacher.score(rows.rollouts) for teacher in teachers.values()]
    log_mean = sum(share * logits_of(s.hidden, s.head).softmax(-1) for share, s in zip(shares, scores, strict=True)).log()  # pyright: ignore
    one = replace(scores[0], hidden=log_mean, head=replace(scores[0].head, weight=torch.eye(log_mean.shape[-1])))
    expected = gradient(student, [replace(rows, teacher=one)], config, WEIGHTS)
    torch.testing.assert_close(gradient(student, [mixed], config, WEIGHTS), expected, rtol=1e-4, atol=1e-5)


def test_a_buffer_of_several_teachers_comes_back_whole(rows: Experience, tmp_path: Path):
    teachers = RoutedTeachers({"mathematics": local(1), "code": local(2, width=24)}, "domain")
    buffer, restored = SamplingBuffer(1, 0), SamplingBuffer(1, 0)
    buffer.add(replace(rows, teacher=teachers.score(rows.rollouts)), 0, per_prompt=2)
    longer = replace(experience(language_model("llama"), None, 2, 2, max_new_tokens=9).rollouts)
    more = experience(language_model("llama"), None, 2, 2, max_new_tokens=9)
    buffer.add(replace(more, rollouts=in_domains(longer), teacher=teachers.score(in_domains(longer))), 1, per_prompt=2)
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    restored.load_state_dict(torch.load(tmp_path / "buffer.pt", weights_only=True), teachers.head)
    ours, theirs = (next(iter(one.updates(1, 1, 0))) for one in (buffer, restored))
    student, config = language_model("llama"), ObjectiveConfig()
    assert torch.equal(gradient(student, [ours], config, WEIGHTS), gradient(student, [theirs], config, WEIGHTS))


@pytest.mark.parametrize(
    ("teachers", "column", "said"),
    [
        ({"mathematics": 1}, "domain", "column 'domain' of example 0 is 'code', for which there is no teacher; teachers has mathematics"),
        ({"mathematics": 1, "code": 2}, "subject", "example 0 has no such column; it has domain, reference"),
    ],
)
def test_a_row_without_a_teacher_is_named(rows: Experience, teachers, column, said):
    with pytest.raises(UserError, match=said):
        RoutedTeachers({name: local(seed) for name, seed in teachers.items()}, column).score(rows.rollouts)
