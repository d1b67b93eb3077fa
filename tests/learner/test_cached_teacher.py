"""The teacher's scores on disk: what comes back is what was put there, for the very tokens that it was said of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from experiences import examples, experience, gradient
from tiny_models import language_model

from gkd_rl.config.objective import DivergenceConfig, ObjectiveConfig
from gkd_rl.errors import UserError
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.rollout.sampler import dataset_rollouts
from gkd_rl.teacher.cache import CachedTeacher, CacheHeader, TeacherCache, open_cache
from gkd_rl.teacher.local import LocalTeacher, TopKTeacher
from gkd_rl.types import Experience, Rollouts


@pytest.fixture(scope="module")
def teacher() -> TopKTeacher:
    return TopKTeacher(LocalTeacher(language_model("llama", seed=1), 200), 6)


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    return dataset_rollouts(language_model("llama"), examples(9), 8, 0)


@pytest.fixture
def cache(teacher: TopKTeacher, rollouts: Rollouts, tmp_path: Path) -> TeacherCache:
    made = TeacherCache(tmp_path / "cache")
    made.begin(CacheHeader("teacher", 6))
    made.add(rollouts, teacher.score(rollouts), "0")
    return made


@pytest.mark.parametrize("k", [6, 3])
def test_scores_come_back_in_any_order_and_company(cache: TeacherCache, teacher: TopKTeacher, k: int):
    other = dataset_rollouts(language_model("llama"), [examples(9)[i] for i in (7, 2, 2, 8)], 8, 0)
    scores = CachedTeacher(open_cache(str(cache.folder), k, "teacher"), k, None).score(other)
    expected = TopKTeacher(teacher.whole, k).score(other)
    torch.testing.assert_close(scores.logprobs, expected.logprobs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scores.token_logprobs, expected.token_logprobs, rtol=1e-5, atol=1e-5)
    assert torch.equal(scores.ids[other.completion_mask], expected.ids[other.completion_mask])


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "gjsd"])
def test_the_gradient_is_nearly_that_of_the_live_teacher(cache: TeacherCache, teacher: TopKTeacher, rollouts: Rollouts, kind, tail):
    """Rounding must not reach the tail's mass, whose logarithm the reverse KL sees."""
    zeros = torch.zeros(len(rollouts.examples))
    live = Experience(rollouts, zeros, {}, zeros, teacher.score(rollouts))
    kept = replace(live, teacher=CachedTeacher(cache, 6, None).score(rollouts))
    config = ObjectiveConfig(divergence=DivergenceConfig(kind=kind, estimator="top_k", top_k=6, tail=tail))
    student, weights = language_model("llama"), TermWeights(0.0, 1.0, 0.0)
    wanted = gradient(student, [live], config, weights)
    assert (gradient(student, [kept], config, weights) - wanted).abs().max() < 2e-3 * wanted.abs().max()


def test_a_tail_that_rounding_would_swallow_is_kept(tmp_path: Path, rollouts: Rollouts, teacher: TopKTeacher):
    scores = teacher.score(rollouts)
    tail = 1e-5
    inside = torch.tensor([0.37, 0.23, 0.17, 0.11, 0.07, 0.05]) * (1 - tail)
    cache = TeacherCache(tmp_path)
    cache.begin(CacheHeader("teacher", 6))
    cache.add(rollouts, replace(scores, logprobs=inside.log().expand_as(scores.logprobs)), "0")
    back = CachedTeacher(cache, 6, None).score(rollouts).logprobs[rollouts.completion_mask]
    torch.testing.assert_close(1 - back.double().exp().sum(-1), torch.full((len(back),), tail, dtype=torch.float64), rtol=0.05, atol=0)
    assert (1 - inside.log().half().double().exp().sum()).sub(tail).abs() > tail, "without the kept tail it would be lost"


def test_the_cache_is_compact(cache: TeacherCache, rollouts: Rollouts):
    (shard,) = cache.folder.glob("shard-*")
    tokens, rows = int(rollouts.completion_mask.sum()), len(rollouts.examples)
    assert shard.stat().st_size < tokens * (6 * (4 + 2) + 8) + rows * 48 + 1500


def test_another_completion_and_another_prompt_are_told_apart(cache: TeacherCache):
    example = examples(9)[4]
    reader = CachedTeacher(cache, 6, None)
    changed = dataset_rollouts(language_model("llama"), [replace(example, completion="a a a", key=77)], 8, 0)
    with pytest.raises(UserError, match=r"completion of example 77 has other tokens .* \(as example 4\)"):
        reader.score(changed)
    absent = dataset_rollouts(language_model("llama"), [replace(example, prompt="h h h h h h h h", key=78)], 8, 0)
    with pytest.raises(UserError, match="example 78 is not in it"):
        reader.score(absent)


def test_sampled_rows_go_to_the_live_teacher(cache: TeacherCache, teacher: TopKTeacher):
    mixed = experience(language_model("llama"), None, 4, 2, dataset=5, max_new_tokens=8).rollouts
    asked: list[int] = []

    class Live:
        head = None

        def score(self, rollouts: Rollouts):
            assert bool(rollouts.on_policy.all())
            asked.append(len(rollouts.examples))
            return teacher.score(rollouts)

    scores, expected = CachedTeacher(cache, 6, Live()).score(mixed), teacher.score(mixed)
    assert asked == [8]
    torch.testing.assert_close(scores.logprobs, expected.logprobs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scores.token_logprobs, expected.token_logprobs, rtol=1e-5, atol=1e-5)


def test_what_is_missing_or_other_is_said(cache: TeacherCache, tmp_path: Path):
    folder = str(cache.folder)
    with pytest.raises(UserError, match="holds no cache; make one with gkd-rl cache-teacher"):
        open_cache(str(tmp_path / "none"), 4, None)
    with pytest.raises(UserError, match=r"holds 6 log-probabilities per token, fewer than teacher.top_k=7"):
        open_cache(folder, 7, None)
    with pytest.raises(UserError, match="holds scores of teacher, not of another"):
        open_cache(folder, 6, "another")
    with pytest.raises(UserError, match="holds scores of teacher with top_k=6, not of teacher with top_k=5"):
        TeacherCache(cache.folder).begin(CacheHeader("teacher", 5))
    (shard,) = cache.folder.glob("shard-*")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cannot be read .* remove it"):
        open_cache(folder, 6, None)
