"""The engine's contract: one update is that of the global mean, whatever the cut into micro-batches, ranks and ZeRO stages."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_work
import pytest
import torch
from engine_work import KINDS, OPTIMIZERS, STAGES, family, student
from experiences import examples, experience
from tiny_models import language_model

from gkd_rl.models.lora import without_lora
from gkd_rl.objective.head import logits_of
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.rescoring import policy_logprobs
from gkd_rl.rollout.sampler import InProcessSampler
from gkd_rl.teacher.local import LocalTeacher
from gkd_rl.types import Experience

CASES = [(kind, stage) for kind in KINDS for stage in STAGES]


@pytest.fixture(scope="module")
def experiences() -> dict[str, Experience]:
    """Ten rows of unequal lengths: eight sampled, two of the dataset."""
    return {kind: experience(student(kind, 3), language_model(family(kind), seed=4), 4, 2, dataset=2) for kind in KINDS}


@pytest.fixture(scope="module")
def plain(experiences: dict[str, Experience]) -> dict[str, Any]:
    """What plain PyTorch makes of the same updates."""
    return {kind: engine_work.plain_training(kind, experiences[kind]) for kind in KINDS}


@pytest.fixture(scope="module")
def two_ranks(ranks: Callable[..., list], experiences: dict[str, Experience], tmp_path_factory: pytest.TempPathFactory) -> list:
    """All figures of two processes; their launch times out where they wait for each other for ever."""
    return ranks(2, engine_work.everything, experiences, str(tmp_path_factory.mktemp("two")), timeout=240)


@pytest.fixture(scope="module")
def one_rank(ranks: Callable[..., list], experiences: dict[str, Experience], tmp_path_factory: pytest.TempPathFactory) -> list:
    """All figures of a single process."""
    return ranks(1, engine_work.everything, experiences, str(tmp_path_factory.mktemp("one")), timeout=240)


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_one_rank_trains_as_plain_pytorch_does(one_rank: list, plain: dict[str, Any], kind: str, stage: int):
    _assert_equal_training(one_rank[0][kind, stage], plain[kind])


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_two_ranks_train_as_one_batch_does_with_unequal_shares_and_an_empty_one(
    two_ranks: list, plain: dict[str, Any], kind: str, stage: int
):
    for found in two_ranks:
        _assert_equal_training(found[kind, stage], plain[kind])


@pytest.mark.slow
def test_four_ranks_train_as_one_batch_does_with_unequal_shares_and_empty_ones(
    ranks: Callable[..., list], experiences: dict[str, Experience], plain: dict[str, Any], tmp_path: Path
):
    four = ranks(4, engine_work.updates, experiences, str(tmp_path), timeout=600)
    for kind, stage in itertools.product(engine_work.OBJECTIVES, STAGES):
        for found in four:
            _assert_equal_training(found[kind, stage], plain[kind])
            norm, parameters = found[kind, stage]["restored"]
            assert norm == found[kind, stage]["norms"][2]
            assert torch.equal(parameters, found[kind, stage]["parameters"][2])


@pytest.mark.parametrize("stage", STAGES)
def test_a_half_precision_model_takes_the_same_step_but_for_rounding(one_rank: list, two_ranks: list, plain: dict[str, Any], stage: int):
    initial = torch.cat([p.detach().flatten() for p in student("llama").module.parameters()])
    expected = plain["llama"]["parameters"][0] - initial
    for found in (*one_rank, *two_ranks):
        assert (found["bfloat16", stage] - expected).norm() < 0.2 * expected.norm()


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_a_restored_engine_continues_to_the_last_digit(one_rank: list, two_ranks: list, kind: str, stage: int):
    for found in (*one_rank, *two_ranks):
        norm, parameters = found[kind, stage]["restored"]
        assert norm == found[kind, stage]["norms"][2]
        assert torch.equal(parameters, found[kind, stage]["parameters"][2])


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_states_go_away_and_come_back(one_rank: list, two_ranks: list, kind: str, stage: int):
    """What the updates after that are compared with has never been away."""
    for found in (*one_rank, *two_ranks):
        assert found[kind, stage]["away"] == (stage in (1, 2), False)


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_ranks_sample_for_themselves_whatever_is_sharded(one_rank: list, two_ranks: list, kind: str, stage: int):
    sampler = InProcessSampler(student(kind), max_rows=64)
    expected = [list(sampler.sample(examples(5), 2, SamplingParams(length), seed=1).texts) for length in (9, 3)]
    assert one_rank[0][kind, stage]["texts"] == expected[0]
    assert two_ranks[0][kind, stage]["texts"] == expected[0][:8]
    assert two_ranks[1][kind, stage]["texts"] == expected[1][8:]


def test_gradients_are_sent_to_the_rank_that_needs_them_alone(two_ranks: list):
    """Gradients and weights once each, or an all-reduce; beside them sums of some numbers, of which a tiny model makes a few per cent."""
    for found in two_ranks:
        assert found["sent"] == pytest.approx([2, 2, 2], abs=0.3)


def test_the_gradient_is_clipped_where_the_limit_says_so(plain: dict[str, Any]):
    assert min(plain["llama"]["norms"]) > OPTIMIZERS["llama"].max_grad_norm


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_the_number_of_parameters_does_not_depend_on_sharding(two_ranks: list, kind: str, stage: int):
    model = student(kind)
    assert two_ranks[0][kind, stage]["parameter_count"] == (model.parameters, model.trained_parameters)


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_what_is_frozen_stays_and_what_is_trained_moves(two_ranks: list, kind: str, stage: int):
    before, after = student(kind), two_ranks[0][kind, stage]["parameters"][-1]
    sizes = [parameter.numel() for parameter in before.module.parameters()]
    for (name, old), new in zip(before.module.named_parameters(), after.split(sizes), strict=True):
        assert torch.equal(old.detach().flatten(), new) is not old.requires_grad, name


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_a_checkpoint_holds_no_frozen_weight(one_rank: list, two_ranks: list, kind: str, stage: int):
    parameters = dict(student(kind).module.named_parameters(remove_duplicate=False))
    for found in (*one_rank, *two_ranks):
        held = found[kind, stage]["checkpoint"] & set(parameters)
        assert held == {name for name, parameter in parameters.items() if parameter.requires_grad}


@pytest.mark.parametrize("stage", STAGES)
def test_under_the_adapter_and_merged_with_it_whatever_is_sharded(
    one_rank: list, two_ranks: list, experiences: dict[str, Experience], stage: int
):
    kind = "llama:lora"
    initial, trained, rollouts = student(kind), student(kind), experiences[kind].rollouts
    with without_lora(initial.module):
        scores = LocalTeacher(initial, 1000).score(rollouts)
    expected = logits_of(scores.hidden, scores.head)
    for found, rows in zip((*one_rank, *two_ranks), (10, 10, 3), strict=True):
        width = found[kind, stage]["base"].shape[1]
        mask = rollouts.completion_mask[:rows, :width]
        torch.testing.assert_close(found[kind, stage]["base"][mask], expected[:rows, :width][mask], atol=1e-5, rtol=1e-5)
        after = found[kind, stage]["parameters"][-1]
        torch.nn.utils.vector_to_parameters(after, trained.module.parameters())
        logprobs = policy_logprobs(trained, rollouts, 1000)
        torch.testing.assert_close(found[kind, stage]["merged"][mask], logprobs[:rows, :width][mask], atol=1e-4, rtol=0)
        assert not torch.allclose(logprobs, policy_logprobs(student(kind), rollouts, 1000), atol=1e-2)


def test_sums_shares_and_gathers_over_ranks(one_rank: list, two_ranks: list):
    alone, (first, second) = one_rank[0]["processes"], (found["processes"] for found in two_ranks)
    assert alone["sum"] == {"both": 1.5, "first": 4.0}
    assert first["sum"] == second["sum"] == {"both": 4.0, "first": 4.0, "second": 2.0}
    assert (alone["largest"], first["largest"], second["largest"]) == (0.0, 1.0, 1.0)
    assert alone["gather"] == ["rank 0"] and first["gather"] == second["gather"] == ["rank 0", "rank 1"]
    assert (alone["share"], first["share"], second["share"]) == ([0, 1, 2, 3, 4], [0, 1], [2, 3, 4])
    assert (alone["rank"], first["rank"], second["rank"]) == ((0, 1), (0, 2), (1, 2))


def test_baselines_of_advantages_are_taken_over_the_rows_of_all_ranks(one_rank: list, two_ranks: list):
    expected = pytest.approx([-4 / 3, -1 / 3, 5 / 3, -2, 2])
    assert all(found == expected for found in one_rank[0]["processes"]["advantages"])
    (first, everything), (second, nothing) = (found["processes"]["advantages"] for found in two_ranks)
    assert first + second == expected == everything
    assert nothing == []


def _assert_equal_training(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["norms"] == pytest.approx(expected["norms"], rel=5e-4)  # AdamW makes rounding of small gradients larger, update by update
    for ours, theirs in zip(found["parameters"], expected["parameters"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
