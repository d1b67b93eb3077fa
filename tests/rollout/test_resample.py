"""Groups that are judged alike make room for fresh prompts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from experiences import examples
from tiny_models import language_model

from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.resample import FRESH, Judged, flat_groups, replace_flat_groups
from gkd_rl.rollout.rows import join
from gkd_rl.rollout.sampler import InProcessSampler, dataset_rollouts
from gkd_rl.types import Example

MODEL = language_model("llama")
SAMPLER = InProcessSampler(MODEL, 64)


def _judge(rows: Sequence[Example]) -> Judged:
    """Answers of three per prompt; right are those whose ids have a sum that 3 divides, often none of a group."""
    rollouts = SAMPLER.sample(rows, 3, SamplingParams(6), seed=4)
    rewards = ((rollouts.completion_ids * rollouts.completion_mask).sum(1) % 3 == 0).float()
    return Judged(rollouts, rewards, {"odd": rewards})


def _fresh(place: int) -> Example:
    return Example(examples(1, place % 1000 + 50)[0].prompt, key=place)


def _groups(judged: Judged) -> dict[int, list[tuple[list[int], float]]]:
    found: dict[int, list[tuple[list[int], float]]] = {}
    rollouts = judged.rollouts
    rows = zip(rollouts.group.tolist(), rollouts.completion_ids, rollouts.completion_mask, judged.rewards.tolist(), strict=True)
    for group, ids, mask, reward in rows:
        found.setdefault(group, []).append((ids[mask].tolist(), reward))
    return found


@pytest.fixture(scope="module")
def first() -> Judged:
    judged = _judge(examples(12))
    assert 0 < len(flat_groups(judged)) < 12
    return judged


def test_flat_groups_are_replaced_and_the_others_stay_as_they_are(first: Judged):
    after, count = replace_flat_groups(first, 1, _fresh, _judge, 0)
    flat, before, now = flat_groups(first), _groups(first), _groups(after)
    assert count == len(flat) and len(now) == len(before) and len(after.rewards) == len(first.rewards)
    assert now.keys() == (before.keys() - set(flat)) | {group + FRESH for group in flat}
    assert all(now[group] == before[group] for group in before if group not in flat)
    assert torch.equal(after.components["odd"], after.rewards)


def test_rounds_go_on_until_none_is_flat_or_the_limit_is_reached(first: Judged):
    after, count = replace_flat_groups(first, 14, _fresh, _judge, 0)
    assert not flat_groups(after) and count > len(flat_groups(first))
    two, _ = replace_flat_groups(first, 2, _fresh, _judge, 0)
    assert max(_groups(two)) // FRESH == 2


def test_a_prompt_that_cannot_be_used_leaves_the_group(first: Judged):
    kept = flat_groups(first)[0]
    after, count = replace_flat_groups(first, 1, lambda place: None if place % FRESH == kept else _fresh(place), _judge, 0)
    assert count == len(flat_groups(first)) - 1 and kept in _groups(after)


def test_ranks_together_replace_what_one_would(first: Judged):
    whole = _groups(replace_flat_groups(first, 3, _fresh, _judge, 0)[0])
    parts = [_groups(replace_flat_groups(_judge(rows), 3, _fresh, _judge, 0)[0]) for rows in (examples(12)[:5], examples(12)[5:])]
    assert parts[0] | parts[1] == whole


def test_dataset_rows_and_rows_without_a_reward_are_not_flat():
    sampled = _judge(examples(2))
    rewards = torch.cat([torch.full((6,), torch.nan), torch.ones(2)])
    rollouts = join([sampled.rollouts, dataset_rollouts(MODEL, examples(2, 30), 6, 0)], 0)
    assert flat_groups(Judged(rollouts, rewards, {})) == []
