"""Picking, joining and cutting rows: nothing is lost, nothing is doubled, and padding is all that changes."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
from experiences import experience, rows_of, token_rows
from tiny_models import language_model, padded_rows

from gkd_rl.rollout.rows import join_experiences, lengths, micro_batches, padding_share, take_experience
from gkd_rl.types import Example, Experience, Gates, Rollouts


@pytest.fixture(scope="module")
def whole() -> Experience:
    """Fourteen rows of unequal lengths, with everything that an experience can carry."""
    made = experience(language_model("llama"), language_model("llama", seed=1), 6, 2, dataset=2)
    gates = Gates(torch.arange(14.0), -torch.arange(14.0))
    assert made.teacher is not None
    return replace(made, gates=gates, reference=replace(made.teacher, hidden=made.teacher.hidden * 2))


def _contents(e: Experience) -> list[tuple]:
    """Everything that belongs to each row, free of padding."""
    assert e.teacher is not None and e.reference is not None and e.gates is not None
    r = e.rollouts
    rows = []
    for i, (prompt, completion) in enumerate(token_rows(r)):
        valid = slice(0, len(completion))
        rows.append(
            (
                *(tuple(prompt), tuple(completion), r.examples[i].key, r.texts[i]),
                *(tuple(r.logprobs[i, valid].tolist()), tuple(r.sampler_logprobs[i, valid].tolist())),
                *(r.on_policy[i].item(), r.group[i].item(), r.version[i].item()),
                *(str(e.rewards[i].item()), str(e.components["random"][i].item()), e.advantages[i].item()),
                *(e.gates.reward[i].item(), e.gates.divergence[i].item()),
                *(e.teacher.hidden[i, valid].sum().item(), e.reference.hidden[i, valid].sum().item()),
            )
        )
    return rows


def test_taken_rows_keep_all_that_is_theirs_and_lose_shared_padding(whole: Experience):
    rows = [3, 0, 12]
    taken = take_experience(whole, torch.tensor(rows))
    assert _contents(taken) == [_contents(whole)[i] for i in rows]
    prompt, completion = lengths(taken.rollouts)
    assert taken.rollouts.prompt_ids.shape[1] == prompt.max()
    assert taken.rollouts.completion_ids.shape[1] == completion.max()
    assert taken.teacher is not None and taken.teacher.hidden.shape[1] == completion.max()


def test_no_rows_can_be_taken(whole: Experience):
    none = take_experience(whole, torch.tensor([], dtype=torch.long))
    assert len(none.rewards) == len(none.rollouts.examples) == 0


def test_joined_parts_are_the_whole_again(whole: Experience):
    prompt, completion = lengths(whole.rollouts)
    first, second = int(prompt.argmin()), int(completion.argmin())
    rest = [i for i in range(14) if i not in (first, second)]
    parts = rows_of(whole, [first], [second], rest)
    assert len({part.rollouts.completion_ids.shape[1] for part in parts}) > 1
    assert len({part.rollouts.prompt_ids.shape[1] for part in parts}) > 1
    joined = join_experiences(parts, pad=0)
    assert _contents(joined) == [_contents(whole)[i] for i in (first, second, *rest)]
    assert (joined.rollouts.prompt_ids[~joined.rollouts.prompt_mask] == 0).all()
    assert (joined.rollouts.completion_ids[~joined.rollouts.completion_mask] == 0).all()


@pytest.mark.parametrize("budget", [1, 15, 24, 60, 10_000])
def test_micro_batches_hold_every_row_once_within_the_budget(whole: Experience, budget: int):
    parts = micro_batches(whole, budget)
    found = [row for part in parts for row in _contents(part)]
    assert sorted(found, key=str) == sorted(_contents(whole), key=str)
    for part in parts:
        padded = part.rollouts.prompt_ids.numel() + part.rollouts.completion_ids.numel()
        assert padded <= budget or len(part.rewards) == 1
    assert len(parts) == {1: 14, 10_000: 1}.get(budget, len(parts))


def _of_sizes(sizes: list[tuple[int, int]]) -> Experience:
    """Rows of given lengths of prompt and completion, numbered."""
    prompt_ids, prompt_mask, ids, mask = padded_rows([([2] * p, [i + 1] * c) for i, (p, c) in enumerate(sizes)])
    zeros, count = torch.zeros(ids.shape), len(sizes)
    number = torch.arange(count)
    on_policy = torch.ones(count, dtype=torch.bool)
    tensors = prompt_ids, prompt_mask, ids, mask, zeros, zeros, on_policy, number, number, on_policy, torch.zeros_like(mask)
    rollouts = Rollouts((Example("a"),) * count, *tensors)
    return Experience(rollouts, torch.zeros(count), {}, torch.zeros(count))


@pytest.mark.parametrize("count", [128, 512])
@pytest.mark.parametrize("seed", range(3))
def test_less_than_a_tenth_is_padding_on_mixed_lengths(count: int, seed: int):
    rng = random.Random(seed)
    whole = _of_sizes([(rng.randint(16, 64), rng.randint(16, 256)) for _ in range(count)])
    parts = micro_batches(whole, 4096, one_sequence=True)
    assert padding_share(parts, one_sequence=True) < 0.1
    widths = [int((prompt + completion).max()) for prompt, completion in (lengths(part.rollouts) for part in parts)]
    padded = [len(part.rewards) * width for part, width in zip(parts, widths, strict=True)]
    assert max(padded) <= 4096 and min(padded[:-1]) >= 4096 // 8


@pytest.mark.parametrize("budget", [4096, 8192])
@pytest.mark.parametrize("count", [64, 256])
def test_less_than_a_tenth_is_padding_where_prompts_and_completions_are_padded_apart(count: int, budget: int):
    rng = random.Random(count)
    parts = micro_batches(_of_sizes([(rng.randint(16, 256), rng.randint(16, 256)) for _ in range(count)]), budget)
    assert padding_share(parts) < 0.1
    padded = [part.rollouts.prompt_ids.numel() + part.rollouts.completion_ids.numel() for part in parts]
    assert max(padded) <= budget and len(parts) < count / 2


def test_rows_of_one_length_fill_the_budget():
    parts = micro_batches(_of_sizes([(6, 4)] * 25), 60)
    assert [len(part.rewards) for part in parts] == [6, 6, 6, 6, 1]


@pytest.mark.parametrize("budget", [18, 40, 90, 300])
def test_the_budget_holds_for_prompts_and_completions_of_all_lengths(budget: int):
    rng = random.Random(budget)
    sizes = [(1, 1), (8, 1), (1, 9)] + [(rng.randint(1, 12), rng.randint(1, 12)) for _ in range(60)]
    parts = micro_batches(_of_sizes(sizes), budget)
    assert sorted(row for part in parts for row in part.rollouts.group.tolist()) == list(range(len(sizes)))
    for part in parts:
        for row, (prompt, completion) in zip(part.rollouts.group.tolist(), token_rows(part.rollouts), strict=True):
            assert (prompt, completion) == ([2] * sizes[row][0], [row + 1] * sizes[row][1])
        assert part.rollouts.prompt_ids.numel() + part.rollouts.completion_ids.numel() <= budget or len(part.rewards) == 1


def test_rows_of_like_length_go_together(whole: Experience):
    parts = micro_batches(whole, 40, one_sequence=True)
    sizes = [[p + c for p, c in zip(*(n.tolist() for n in lengths(part.rollouts)), strict=True)] for part in parts]
    assert all(max(before) <= min(after) for before, after in itertools.pairwise(sizes))
    assert padding_share(parts) < padding_share([whole])


def test_the_share_of_padding_is_counted(whole: Experience):
    part = take_experience(whole, torch.tensor([0, 12]))
    valid = sum(len(prompt) + len(completion) for prompt, completion in token_rows(part.rollouts))
    total = part.rollouts.prompt_ids.numel() + part.rollouts.completion_ids.numel()
    assert padding_share([part]) == pytest.approx(1 - valid / total)
    assert padding_share([take_experience(whole, torch.tensor([5]))]) == 0.0


def test_what_is_handed_out_is_a_copy(whole: Experience):
    before = _contents(whole)
    for part in micro_batches(whole, 10_000):
        assert part.teacher is not None
        for tensor in (part.rollouts.completion_ids, part.rollouts.logprobs, part.advantages, part.teacher.hidden, part.rewards):
            tensor.zero_()
    assert _contents(whole) == before
