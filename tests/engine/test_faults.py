"""Updates with a fault: none of it is left, whatever the ZeRO stage, and all ranks know of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import faults_work
import pytest
import torch
from engine_work import student
from experiences import experience
from faults_work import ENGINES, ON_CPU
from tiny_models import language_model

NOT_FINITE = [
    *((*engine, fault) for engine in ENGINES for fault in ("loss", "gradient")),
    *((stage, "cpu", "gradient") for stage in ON_CPU),
]
NO_MEMORY = [
    *((*engine, place) for engine in ENGINES for place in sorted(faults_work._survived(engine[0]))),
    *((stage, "cpu", "forward") for stage in ON_CPU if "forward" in faults_work._survived(stage)),
]


@pytest.fixture(scope="module")
def found(ranks: Callable[..., list]) -> dict[int, list[dict[Any, Any]]]:
    """All figures by number of processes; a launch times out where they wait for each other for ever."""
    rows = experience(student("llama", 3), language_model("llama", seed=4), 4, 2, dataset=2)
    return {count: ranks(count, faults_work.everything, rows, timeout=240) for count in (1, 2)}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("stage", "dtype", "fault"), NOT_FINITE)
def test_an_update_that_is_not_finite_on_one_rank_leaves_nothing_on_any(
    found, stage: int, dtype: torch.dtype | str, fault: str, count: int
):
    for rank, figures in enumerate(found[count]):
        skipped, plain = figures[stage, dtype, fault], figures[stage, dtype, "plain"]
        assert math.isnan(skipped["bad"].norm)
        assert math.isfinite(skipped["bad"].loss) is (fault == "gradient" or rank < count - 1)
        _assert_same(skipped["after"], skipped["before"])
        assert skipped["last"] == plain["last"]
        _assert_same(skipped["end"], plain["end"])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("stage", "dtype", "place"), NO_MEMORY)
def test_an_update_without_memory_on_one_rank_is_repeated_in_smaller_parts(
    found, stage: int, dtype: torch.dtype | str, place: str, count: int
):
    for figures in found[count]:
        repeated, plain = figures[stage, dtype, place], figures[stage, dtype, "plain"]
        assert repeated["bad"] is True
        _assert_same(repeated["after"], repeated["before"])
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
        assert repeated["last"].norm == pytest.approx(plain["last"].norm, rel=10 * tolerance)
        torch.testing.assert_close(repeated["end"][0], plain["end"][0], atol=tolerance, rtol=0)
        assert not torch.allclose(repeated["end"][0], repeated["before"][0], atol=tolerance)


@pytest.mark.parametrize(("stage", "dtype"), ENGINES)
def test_where_an_update_cannot_be_repeated_the_run_ends_with_a_sentence(found, stage: int, dtype: torch.dtype):
    said = found[1][0][stage, dtype, "ends"]
    assert len(said) == {0: 0, 1: 0, 2: 1, 3: 2}[stage]
    for sentence in said:
        assert sentence.startswith(f"rank 0 ran out of memory in a pass of engine.zero_stage={stage} that cannot be repeated; lower ")


def test_a_failure_of_one_rank_ends_all_of_them_with_its_sentence(found):
    alone, (first, second) = found[1][0]["together"], (figures["together"] for figures in found[2])
    judged = "reward 'mine' failed on 0"
    assert alone == [("UserError", "the data ends first"), ("RewardError", judged), ("KeyError", "'column'"), 0]
    both = [("UserError", "rank 1: the data ends first"), ("UserError", f"rank 0: {judged}")]
    assert first == [*both, ("UserError", "rank 1: KeyError: 'column'"), 0]
    assert second == [*both, ("KeyError", "'column'"), 1]


def _assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    """To the last bit."""
    assert len(ours) == len(theirs)
    assert all(torch.equal(mine, its) for mine, its in zip(ours, theirs, strict=True))
