"""Drawing tokens: frequencies against exact probabilities, and uniform numbers that belong to their row."""

from __future__ import annotations

import pytest
import torch
from statistics_of_draws import chi_square_limit, chi_square_of
from torch import Tensor

from gkd_rl.rollout.drawing import SamplingParams, draw, row_uniforms

LOGITS = torch.tensor([1.0, 2.5, -0.5, 2.0, 0.0, -3.0])
CASES = {
    "plain": SamplingParams(1),
    "temperature": SamplingParams(1, temperature=0.5),
    "hot": SamplingParams(1, temperature=2.0),
    "top_k": SamplingParams(1, top_k=3),
    "top_p": SamplingParams(1, top_p=0.75),
    "min_p": SamplingParams(1, min_p=0.2),
    "all": SamplingParams(1, temperature=1.5, top_k=4, top_p=0.9, min_p=0.3),
}
PROBABILITIES = {
    "plain": torch.tensor([0.1135, 0.5087, 0.0253, 0.3086, 0.0418, 0.0021]),
    "top_k": torch.tensor([0.1220, 0.5465, 0.0, 0.3315, 0.0, 0.0]),
    "top_p": torch.tensor([0.0, 0.6225, 0.0, 0.3775, 0.0, 0.0]),
    "min_p": torch.tensor([0.1220, 0.5465, 0.0, 0.3315, 0.0, 0.0]),
}
"""By hand: e^1 : e^2.5 : ... over their sum, and over the sum of those that are kept (0.51 + 0.31 reach 0.75; 0.11 is a
fifth of 0.51)."""


def _exact(params: SamplingParams) -> Tensor:
    """The definition: temperature, then the k likeliest, then the fewest of those whose mass reaches p, then those near the top."""
    masses = {i: float(torch.exp(z / params.temperature)) for i, z in enumerate(LOGITS.double())}
    order = sorted(masses, key=lambda i: -masses[i])[: params.top_k or len(masses)]
    total, kept, mass = sum(masses[i] for i in order), [], 0.0
    for i in order:
        if mass < params.top_p * total and masses[i] >= params.min_p * max(masses.values()):
            kept.append(i)
            mass += masses[i]
    return torch.tensor([masses[i] / mass if i in kept else 0.0 for i in masses])


@pytest.mark.parametrize("name", PROBABILITIES)
def test_the_definition_gives_the_numbers_made_by_hand(name: str):
    torch.testing.assert_close(_exact(CASES[name]), PROBABILITIES[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_tokens_come_as_often_as_their_probabilities_say(name: str):
    count, exact = 20_000, _exact(CASES[name])
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, policy, sampler = draw(LOGITS.expand(count, -1), uniforms, CASES[name])
    statistic, freedom = chi_square_of(tokens.bincount(minlength=6).float(), exact)
    assert statistic < chi_square_limit(freedom)
    torch.testing.assert_close(policy, LOGITS.log_softmax(-1)[tokens], atol=1e-6, rtol=0)
    torch.testing.assert_close(sampler, exact.log()[tokens], atol=1e-5, rtol=0)


def test_a_uniform_number_picks_the_token_whose_share_of_the_line_it_falls_into():
    edges = [0.0, *_exact(CASES["plain"]).double().cumsum(0)[:-1].tolist()]
    for token, edge in enumerate(edges):
        drawn, _, _ = draw(LOGITS[None], torch.tensor([edge + 1e-6], dtype=torch.float64), CASES["plain"])
        assert drawn.item() == token


def test_numbers_at_both_ends_pick_tokens_that_are_possible():
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    for name in ("top_k", "top_p"):
        tokens, _, sampler = draw(LOGITS.expand(2, -1), ends, CASES[name])
        assert (_exact(CASES[name])[tokens] > 0).all() and sampler.isfinite().all()


@pytest.mark.parametrize("vocabulary", [1, 2, 61, 64, 997, 5000])
def test_blocks_of_the_vocabulary_change_nothing(vocabulary: int):
    """Against one running sum over the whole vocabulary, tokens of probability 0 among them."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(200, vocabulary, generator=generator)
    logits[:, 1::3] = -torch.inf
    uniforms = torch.rand(200, generator=generator, dtype=torch.float64)
    uniforms[:2] = torch.tensor([0.0, 1 - 2.0**-53])
    tokens, policy, _ = draw(logits, uniforms, CASES["plain"])
    sums = logits.double().softmax(-1).cumsum(-1)
    place = sums.gather(-1, tokens[:, None])[:, 0]
    before = place - logits.double().softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert ((before - 1e-6 <= uniforms) & (uniforms <= place + 1e-6)).all() and policy.isfinite().all()
    torch.testing.assert_close(policy, logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0], atol=1e-5, rtol=1e-5)


def test_top_p_over_many_tokens_keeps_what_a_whole_sort_keeps():
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)) / 10  # nearly flat: 0.9 needs 4,400 tokens
    logits[0, 7] = 20.0  # and one sure row
    uniforms = torch.full((3,), 0.5, dtype=torch.float64)
    _, policy, sampler = draw(logits, uniforms, SamplingParams(1, top_p=0.9))
    _, order = (probabilities := logits.softmax(-1)).sort(descending=True)
    sizes = (probabilities.gather(-1, order).cumsum(-1) < 0.9).sum(-1) + 1
    kept = [probabilities[i, order[i, : sizes[i]]].sum() for i in range(3)]
    torch.testing.assert_close(policy - sampler, torch.stack(kept).log(), atol=1e-4, rtol=0)
    assert int(sizes[0]) == 1 and int(sizes[1]) > 1024


def test_banned_tokens_are_never_drawn_and_count_in_the_policy():
    uniforms = torch.rand(500, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    tokens, policy, sampler = draw(LOGITS.expand(500, -1), uniforms, CASES["plain"], banned=torch.tensor([1, 3]))
    assert not torch.isin(tokens, torch.tensor([1, 3])).any()
    torch.testing.assert_close(policy, LOGITS.log_softmax(-1)[tokens])
    kept = LOGITS.index_fill(0, torch.tensor([1, 3]), -torch.inf)
    torch.testing.assert_close(sampler, kept.log_softmax(-1)[tokens])
    greedy, _, _ = draw(LOGITS[None], uniforms[:1], SamplingParams(1, temperature=0.0), banned=torch.tensor([1]))
    assert greedy.item() == 3


def test_temperature_0_takes_the_likeliest_token():
    tokens, policy, sampler = draw(LOGITS[None], torch.tensor([0.99], dtype=torch.float64), SamplingParams(1, temperature=0.0))
    assert tokens.item() == 1 and sampler.item() == 0.0
    assert policy.item() == pytest.approx(LOGITS.log_softmax(-1)[1].item())


def test_a_rows_uniforms_depend_on_its_key_alone():
    rows = row_uniforms([(1, 2, 0), (1, 2, 1), (1, 3, 0), (2, 2, 0)], 50)
    assert rows.shape == (4, 50) and rows.dtype == torch.float64
    assert ((rows >= 0) & (rows < 1)).all()
    assert len({tuple(row.tolist()) for row in rows}) == 4
    assert torch.equal(rows[2:3], row_uniforms([(1, 3, 0)], 50))
    assert torch.equal(rows[:, :20], row_uniforms([(1, 2, 0), (1, 2, 1), (1, 3, 0), (2, 2, 0)], 20))


def test_uniforms_are_uniform():
    numbers = row_uniforms([(0, key, place) for key in range(100) for place in range(4)], 25).flatten()
    statistic, freedom = chi_square_of(torch.histc(numbers.float(), 20, 0, 1), torch.full((20,), 0.05))
    assert statistic < chi_square_limit(freedom)


def test_logits_that_are_no_numbers_give_tokens_of_the_vocabulary():
    """A diverged policy is reported by what follows; drawing from it must not fail in a way of its own."""
    tokens, policy, _ = draw(torch.full((2, 7), torch.nan), torch.tensor([0.2, 0.9], dtype=torch.float64), CASES["plain"])
    assert ((tokens >= 0) & (tokens < 7)).all() and policy.isnan().all()
