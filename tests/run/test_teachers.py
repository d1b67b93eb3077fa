"""Whole runs with every kind of teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from teacher_server import TeacherServer, serving
from workbench import Models, Outcome, check_folder

from gkd_rl.models.language_model import load_language_model

TOP_8 = ("objective.divergence.estimator=top_k", "objective.divergence.top_k=8")


@pytest.fixture
def train(cli: Callable[..., Outcome], small: Path, tmp_path: Path) -> Callable[..., tuple[Any, Any, Any]]:
    """``train(name, *overrides)``: metrics, rollouts and summary of a small run in ``tmp_path/name``."""

    def train(name: str, *overrides: str) -> tuple[Any, Any, Any]:
        outcome = cli("train", small, f"run_dir={tmp_path / name}", *overrides)
        assert outcome.status == 0, outcome.err
        return check_folder(tmp_path / name, steps=2)

    return train


@pytest.fixture
def server(models: Models, monkeypatch: pytest.MonkeyPatch) -> Iterator[TeacherServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(load_language_model(str(models.teacher), "teacher.path", "float32", False)) as state:
        yield state


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], *names: str) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for name in names:
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name


def test_a_served_teacher_trains_like_the_same_model_in_the_process(train, server: TeacherServer) -> None:
    served = (f"teacher.url={server.url}", "teacher.served_model=tiny", "teacher.top_k=8", "teacher.rows_per_request=2")
    metrics, rollouts, summary = train("served", *TOP_8, *served)
    expected, wanted, local = train("local", *TOP_8)
    assert_same(metrics, expected, "loss", "divergence", "grad_norm", "teacher_top1_agreement", "teacher_top_k_mass")
    assert [row["tokens"] for row in rollouts] == [row["tokens"] for row in wanted]
    assert summary["after"]["divergence"] == pytest.approx(local["after"]["divergence"], rel=1e-3)
    assert "reverse_kl" in expected[0] and "reverse_kl" not in metrics[0]
    assert summary["after"]["reverse_kl"] is None and summary["accuracy_teacher"] is None


def test_a_teacher_in_the_process_may_keep_its_top_k_only(train) -> None:
    kept, whole = train("kept", *TOP_8, "teacher.top_k=8")[0], train("whole", *TOP_8)[0]
    assert_same(kept, whole, "loss", "divergence", "grad_norm")
    assert "reverse_kl" in whole[0] and "reverse_kl" not in kept[0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["teacher.top_k=8"], "estimator 'full' needs the whole distribution"),
        (["teacher.top_k=-1"], "teacher.top_k is -1"),
        (["teacher.url=localhost:8000", "teacher.served_model=a", "teacher.top_k=8", *TOP_8], "must begin with http://"),
        (["teacher.url=http://localhost:1", "teacher.top_k=8", *TOP_8], "teacher.served_model is not"),
        (["teacher.url=http://localhost:1", "teacher.served_model=a", *TOP_8], "teacher.url needs teacher.top_k"),
        (["teacher.served_model=a"], "teacher.served_model is set but teacher.url is not"),
        (["teacher.concurrency=0"], "teacher.concurrency is 0"),
        (["teacher.timeout=0"], "teacher.timeout is 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused(refused_run: Callable[..., str], overrides: list[str], said: str) -> None:
    assert said in refused_run(*overrides)


def test_a_server_that_does_not_answer_is_found_out_before_a_model_is_loaded(refused_run, monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setattr("gkd_rl.build.load_language_model", None)
    settings = ("teacher.url=http://localhost:9", "teacher.served_model=a", "teacher.top_k=8", "teacher.retries=0")
    assert "teacher.url http://localhost:9/v1/completions: " in refused_run(*settings, *TOP_8)


def test_a_server_with_a_models_tokenizer_of_another_family_is_refused(refused_run, models: Models) -> None:
    settings = ("teacher.url=http://localhost:9", "teacher.served_model=a", "teacher.top_k=8", f"teacher.path={models.foreign}")
    assert "student and teacher have different tokenizers" in refused_run(*settings, *TOP_8)
