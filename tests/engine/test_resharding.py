"""What ZeRO cut up over two ranks is on one, and on two again, the very same: weights, both moments, number of updates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_work import _engine, _shard_small_parameters_too, _update, student
from experiences import experience
from tiny_models import language_model

from gkd_rl.errors import UserError
from gkd_rl.processes import Processes
from gkd_rl.resharding import FP32, MOMENTS, whole_states
from gkd_rl.types import Experience

CASES = [
    *(("llama", stage, torch.float32) for stage in (1, 2, 3)),
    *(("t5", stage, torch.float32) for stage in (2, 3)),
    *(("llama", stage, torch.bfloat16) for stage in (2, 3)),
]


def _place(folder: str, case: tuple[str, int, torch.dtype], step: str) -> Path:
    kind, stage, dtype = case
    return Path(folder) / f"{kind}-{stage}-{dtype}" / step


def _write(folder: str, experiences: dict[str, Experience], before: str | None, after: str, count: int) -> None:
    """Two updates, or what ``count`` ranks wrote as ``before``; saved as ``after``."""
    processes = Processes(threads=1)
    _shard_small_parameters_too()
    for case in CASES:
        kind, stage, dtype = case
        model = student(kind, seed=0 if before is None else 7)
        model.module.to(dtype)  # pyright: ignore
        engine = _engine(model, kind, stage, processes)
        if before is None:
            for number in range(2):
                _update(engine, model, kind, experiences[kind], number)
        else:
            engine.load_of(_place(folder, case, before), count)
        engine.save(_place(folder, case, after))
    processes.close()


@pytest.fixture(scope="module")
def written(ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cut")
    rows = {
        kind: experience(student(kind), language_model(kind, seed=1, **({"vocab_size": 16} if kind == "llama" else {})), 4, 2, dataset=2)
        for kind in ("llama", "t5")
    }
    for count, before, after, wrote in ((2, None, "two", 0), (1, "two", "one", 2), (2, "one", "again", 1)):
        ranks(count, _write, str(folder), rows, before, after, wrote)
    return folder


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_changes_on_its_way_over_other_numbers_of_ranks(written: Path, case: tuple[str, int, torch.dtype]):
    two, one, again = (whole_states(_place(str(written), case, step), count) for step, count in (("two", 2), ("one", 1), ("again", 2)))
    names = {f"model.{name}" for name, _ in student(case[0]).module.named_parameters()}
    for states, step in (two, one, again):
        assert step == 2.0 and set(states) == names
    for name, values in two[0].items():
        for kind in (FP32, *MOMENTS):
            assert torch.equal(values[kind], one[0][name][kind]) and torch.equal(values[kind], again[0][name][kind])
    assert all(any(float(values[moment].abs().sum()) > 0 for values in two[0].values()) for moment in MOMENTS)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_weights_put_together_are_the_trained_ones(written: Path, stage: int):
    """Against the weights as plain training has them, which the engine's own tests compare with."""
    states = [whole_states(_place(str(written), ("llama", other, torch.float32), "two"), 2)[0] for other in (1, stage)]
    untrained = dict(student("llama").module.named_parameters())
    for name, values in states[1].items():
        torch.testing.assert_close(values[FP32], states[0][name][FP32], atol=1e-6, rtol=1e-5)
        assert not torch.equal(values[FP32], untrained[name.removeprefix("model.")].flatten())


def test_files_of_another_form_are_refused(tmp_path: Path):
    (tmp_path / "state").mkdir()
    torch.save({"optimizer_state_dict": {"of": "another kind"}}, tmp_path / "state" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(UserError, match="in a way that only 1 processes can go on from"):
        whole_states(tmp_path, 1)
