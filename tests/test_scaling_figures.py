"""What ``scripts/bench_scaling.py`` counts and projects."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launching import ROOT


@pytest.fixture
def projection(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("scaling_projection")


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("collective_traffic")


def _collectives() -> SimpleNamespace:
    """Stand-ins with the arguments of ``torch.distributed``."""

    def all_reduce(tensor, op=None, group=None): ...
    def reduce(tensor, dst=0): ...
    def broadcast(tensor, src=0): ...
    def reduce_scatter(output, input_list): ...
    def reduce_scatter_tensor(output, input): ...
    def all_gather(tensor_list, tensor): ...
    def all_gather_into_tensor(output_tensor, input_tensor): ...

    return SimpleNamespace(**locals())


def test_a_collective_counts_by_what_a_ring_sends(counting) -> None:
    traffic, module = counting.Traffic(), _collectives()
    traffic.watch(module)
    whole, half = torch.zeros(8), torch.zeros(4, dtype=torch.bfloat16)
    for call, expected in (
        (lambda: module.all_reduce(whole), 64),
        (lambda: module.reduce(whole), 32),
        (lambda: module.broadcast(tensor=half), 8),
        (lambda: module.reduce_scatter(half, [whole, whole]), 64),
        (lambda: module.reduce_scatter_tensor(half, input=whole), 32),
        (lambda: module.all_gather([whole, half], whole), 40),
        (lambda: module.all_gather_into_tensor(output_tensor=whole, input_tensor=half), 32),
    ):
        traffic.sent.clear()
        call()
        assert traffic.sent == {"elsewhere": expected}
    traffic.place = "update"
    module.broadcast(whole)
    assert traffic.sent == {"elsewhere": 32, "update": 32}


def test_memory_that_is_held_counts_once(counting) -> None:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    assert counting.held_bytes(model, optimizer) == 4 * 15
    model(torch.ones(1, 4)).sum().backward()
    assert counting.held_bytes(model, optimizer) == 4 * 2 * 15, "gradients too"
    optimizer.step()
    assert counting.held_bytes(model, optimizer) == 4 * 4 * 15 + 2 * 4, "two moments, and a step count for each of two tensors"
    model.tied = model.weight[0]
    assert counting.held_bytes(model, optimizer) == 4 * 4 * 15 + 2 * 4


@pytest.mark.parametrize(("stage", "expected"), [(1, 110), (2, 60), (3, 45)])
def test_each_stage_divides_one_thing_more(projection, stage: int, expected: float) -> None:
    """10 weights over 4 processes: 2 + 4 + 12 bytes each, and 2 of a loose gradient at the first stage."""
    assert projection.student_bytes(10, stage, 4) == expected
    assert projection.sampling_bytes(10, stage, 4) == (15 if stage == 3 else 0)


def test_a_ring_is_as_fast_as_its_slowest_link(projection) -> None:
    hardware = projection.Hardware(nvlink=100, network=10, link_share=0.5)
    assert projection.transfer_seconds(1000, 1, hardware) == 0
    assert projection.transfer_seconds(1000, 8, hardware) == pytest.approx(1000 * 7 / 8 / 50)
    assert projection.transfer_seconds(1000, 16, hardware) == pytest.approx(1000 * 15 / 16 / 5)


def test_phases_take_their_operations_on_the_gpus_that_do_them(projection) -> None:
    hardware = projection.Hardware(flops=100, compute_share=0.5, memory_bandwidth=20, memory_share=0.5)
    work = projection.Work(student=3, teacher=30, rows_per_gpu=2, prompt=5, completion=7)
    everywhere = projection.phase_seconds(work, projection.Placement("", 2.0), 4, hardware)
    assert everywhere["student"] == pytest.approx(6 * 3 * 2 * 12 / 50)
    assert everywhere["teacher"] == pytest.approx(2 * 30 * 2 * 12 / 50)
    assert everywhere["sample"] == pytest.approx(2 * 3 * 2 * 5 / 50 + 7 * 3 * 2 / 10)
    served = projection.phase_seconds(work, projection.Placement("", serving=0.5), 4, hardware)
    assert served["student"] == pytest.approx(2 * everywhere["student"]) and served["teacher"] == pytest.approx(2 * everywhere["teacher"])
    cached = projection.phase_seconds(work, projection.Placement("", samples=False), 4, hardware)
    assert cached["teacher"] == cached["sample"] == 0 and cached["student"] == everywhere["student"]


def test_a_teacher_that_is_too_large_does_not_fit(projection) -> None:
    rows = projection.project({stage: {"update": 6.0, "elsewhere": 0.0} for stage in (1, 2, 3)})
    assert len(rows) == 3 * 5 * 3
    fits = {(row["gpus"], row["teacher"], row["stage"]): row["fits"] for row in rows}
    assert not any(fit for (_, teacher, _), fit in fits.items() if teacher.startswith("bf16"))
    assert fits[64, "4 bits on every GPU", 3] and not fits[8, "8 bits on every GPU", 3]
    assert fits[64, "served by half of the GPUs", 2]
    one = next(row for row in rows if (row["gpus"], row["stage"]) == (64, 1))
    assert one["communication"]["update"] == pytest.approx(7e9 * 6 * 63 / 64 / 40e9)
    assert one["seconds"] == pytest.approx(sum(one["phases"].values()) + one["communication"]["update"])
