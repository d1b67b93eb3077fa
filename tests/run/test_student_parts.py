"""Whole runs that train an adapter or a part of the student."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from workbench import Models, Outcome, check_folder, load, rows_of

from gkd_rl.engine import Engine
from gkd_rl.models.language_model import load_language_model
from gkd_rl.teacher.local import LocalTeacher
from gkd_rl.types import HiddenScores, Rollouts

LORA = ("student.lora.rank=4", "optimizer.lr=1e-2")
MOVED = (
    *("teacher.path=null", "rollout.on_policy_share=0.5", "rollout.max_new_tokens=200", "task.max_prompt_tokens=800"),
    *("rollout.per_prompt=1", "objective.advantage.kind=batch", "objective.cross_entropy_weight=0.5"),
)
"""The student learns the dataset's completions and so leaves its base."""
LOGS = ("metrics.jsonl", "rollouts.jsonl")
EMBEDDED = Path(__file__).resolve().parents[2] / "gkd_rl" / "assets" / "arithmetic-student"


@pytest.fixture
def train(cli: Callable[..., Outcome], small: Path, tmp_path: Path) -> Callable[..., Path]:
    """``train(name, *overrides)``: the folder of a small run, ``tmp_path/name``."""

    def train(name: str, *overrides: str, command: str = "train") -> Path:
        outcome = cli(command, small, f"run_dir={tmp_path / name}", *overrides)
        assert outcome.status == 0, outcome.err
        return tmp_path / name

    return train


@torch.no_grad()
def _logits(model) -> torch.Tensor:
    ids = torch.arange(5, 25)[None]
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **more).logits


def _check_student(folder: Path, initial: Path) -> None:
    """The merged model and base with adapter agree, and are not the initial student."""
    before = load(initial)
    whole, first = _logits(load(folder / "model")), _logits(before)
    adapter = _logits(PeftModel.from_pretrained(before, str(folder / "adapter")).eval())
    torch.testing.assert_close(whole, adapter, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(whole, first, atol=1e-2)


def test_an_adapter_learns_from_the_teacher(cli: Callable[..., Outcome], arithmetic: Path, tmp_path: Path) -> None:
    settings = (
        *("student.lora.rank=8", "student.lora.rslora=true", "optimizer.lr=3e-3", "optimizer.schedule=linear", "max_steps=20"),
        *("objective.alpha=1", "objective.divergence.kind=forward_kl", "rollout.passes=1", "rollout.updates_per_pass=1"),
        *(
            "rollout.prompts_per_step=24",
            "rollout.per_prompt=1",
            "evaluation.examples=24",
            "evaluation.every=0",
            "evaluation.teacher=false",
        ),
    )
    folder = tmp_path / "run"
    assert cli("train", arithmetic, f"run_dir={folder}", *settings).status == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["after"]["divergence"] < 0.8 * summary["before"]["divergence"]
    assert summary["trained_parameters"] == 43776 == summary["parameters"] - 352800
    _check_student(folder, EMBEDDED)


@pytest.mark.parametrize("name", ["student", "t5_student"])
def test_the_final_model_is_the_merged_one(train, models: Models, name: str) -> None:
    initial, teacher = getattr(models, name), models.t5_teacher if name.startswith("t5") else models.teacher
    folder = train("run", *LORA, f"student.path={initial}", f"teacher.path={teacher}")
    check_folder(folder, steps=2)
    _check_student(folder, initial)


def test_the_final_model_is_evaluated_like_any_other(train, cli, small: Path) -> None:
    folder = train("run", *LORA, *MOVED, "teacher.kind=base")
    outcome = cli("evaluate", folder / "config.yaml", "--json")
    assert outcome.status == 0, outcome.err
    result, summary = json.loads(outcome.out), json.loads((folder / "summary.json").read_text())
    assert result["model"] == str(folder / "model")
    for name in ("divergence", "reverse_kl", "reward"):
        assert result[name] == pytest.approx(summary["after"][name], rel=1e-3, abs=1e-6)
    assert result["divergence"] > 1e-4, "to the base, which has no adapter"


SAME = (*MOVED, "objective.surrogate.reference_kl_weight=0.05", "max_steps=3")


@pytest.mark.parametrize("more", [(), ("rollout.overlap=true", "objective.surrogate.ratio=token")], ids=["", "overlap"])
def test_the_base_teaches_as_a_copy_of_the_initial_student_does(train, monkeypatch, more: tuple[str, ...]) -> None:
    loaded = []
    for place in ("gkd_rl.build", "gkd_rl.teacher.build"):
        monkeypatch.setattr(f"{place}.load_language_model", lambda *given: loaded.append(1) or load_language_model(*given))
    base = train("base", *LORA, *SAME, *more, "teacher.kind=base")
    assert len(loaded) == 1, "student, teacher and reference share one model"
    copy = train("copy", *LORA, *SAME, *more, "teacher.kind=student")
    for name in LOGS:
        assert (base / name).read_bytes() == (copy / name).read_bytes()
    assert rows_of(base / "metrics.jsonl")[-1]["reverse_kl"] > 1e-5, "the student has left its base"


@pytest.mark.slow
def test_the_base_teaches_where_its_weights_are_sharded(train) -> None:
    whole, sharded = (train(f"zero {stage}", *LORA, *SAME, "teacher.kind=base", f"engine.zero_stage={stage}") for stage in (0, 3))
    for ours, theirs in zip(rows_of(sharded / "metrics.jsonl"), rows_of(whole / "metrics.jsonl"), strict=True):
        for name in ("loss", "divergence", "reverse_kl", "reference_kl", "reward_loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize(
    "overrides",
    [
        ("teacher.kind=base", "teacher.path=null"),
        ("teacher.path=null", "teachers.a.kind=base", "teachers.a.path=null", "teachers.b.kind=student", "teachers.b.path=null"),
        ("objective.surrogate.reference_kl_weight=0.05",),
    ],
    ids=["teacher", "teachers", "reference"],
)
def test_the_base_is_asked_while_every_rank_holds_its_weights(train, monkeypatch, overrides: tuple[str, ...]) -> None:
    depth, seen = [0], []
    gathered, score = Engine.gathered, LocalTeacher.score

    @contextmanager
    def counted(engine: Engine) -> Iterator[None]:
        with gathered(engine):
            depth[0] += 1
            yield
            depth[0] -= 1

    def watched(teacher: LocalTeacher, rollouts: Rollouts) -> HiddenScores:
        seen.extend([depth[0] > 0] if teacher.under_adapter else [])
        return score(teacher, rollouts)

    monkeypatch.setattr(Engine, "gathered", counted)
    monkeypatch.setattr(LocalTeacher, "score", watched)
    train("run", *LORA, *overrides)
    assert len(seen) >= 2 and all(seen)


def test_the_base_teaches_beside_other_teachers_and_by_its_likeliest_tokens(train, models: Models) -> None:
    one = train("one", *LORA, "teacher.path=null", "teachers.a.kind=base", "teachers.a.path=null", f"teachers.b.path={models.teacher}")
    other = train("two", *LORA, "teacher.path=null", "teachers.a.kind=student", "teachers.a.path=null", f"teachers.b.path={models.teacher}")
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    top = ("objective.divergence.estimator=top_k", "objective.divergence.top_k=8", "teacher.top_k=8")
    three, four = (train(f"top {kind}", *LORA, *MOVED, *top, f"teacher.kind={kind}") for kind in ("base", "student"))
    assert (three / "metrics.jsonl").read_bytes() == (four / "metrics.jsonl").read_bytes()


def test_supervised_fine_tuning_trains_the_adapter_alone(train, models: Models) -> None:
    long = ("rollout.max_new_tokens=200", "task.max_prompt_tokens=800")
    folder = train("run", "student.lora.rank=8", "sft.lr=2e-2", "sft.examples=24", "sft.batch_size=8", "sft.epochs=4", *long, command="sft")
    losses = [row["cross_entropy"] for row in rows_of(folder / "metrics.jsonl")]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), losses
    _check_student(folder, models.student)


def test_frozen_weights_are_the_same_to_the_last_bit_at_the_end(train, models: Models) -> None:
    folder = train("run", "student.freeze=[model.embed_tokens.*, 'lm_head.*']", "optimizer.lr=1e-2")
    check_folder(folder, steps=2)
    before, after = (load(place).state_dict() for place in (models.student, folder / "model"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"model.embed_tokens.weight", "lm_head.weight"}
    assert not (folder / "adapter").exists()


def test_a_run_with_an_adapter_that_was_cut_off_continues_to_the_last_digit(cli, arithmetic: Path, tmp_path: Path) -> None:
    settings = ("student.lora.rank=4", "teacher.kind=base", "teacher.path=null", "evaluation.every=0", "optimizer.lr=3e-3", "max_steps=4")
    whole = tmp_path / "whole"
    assert cli("train", arithmetic, f"run_dir={whole}", *settings).status == 0
    cut = shutil.copytree(whole, tmp_path / "cut")
    for name in ("model", "adapter", "checkpoints/step-00000004"):
        shutil.rmtree(cut / name)
    (cut / "summary.json").unlink()
    outcome = cli("train", arithmetic, f"run_dir={cut}", *settings, "resume=auto")
    assert outcome.status == 0 and "(2 of 4 steps done)" in outcome.out, outcome
    for name in (*LOGS, "model/model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_another_adapter_does_not_continue_a_run(train, refused, small: Path) -> None:
    folder = train("run", *LORA)
    said = refused("train", small, f"run_dir={folder}", *LORA, "resume=auto", "student.lora.alpha=8")
    assert "holds a run with student.lora.alpha=16.0, not 8.0" in said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["student.lora.rank=-1"], "student.lora.rank is -1; it must be at least 0"),
        (["student.lora.alpha=0"], "student.lora.alpha is 0.0; it must be above 0"),
        (["student.lora.rank=4", "student.lora.targets=q_proj"], "student.lora.targets is 'q_proj'; give 'all-linear', or a list"),
        (["student.lora.targets=[]"], "student.lora.targets is []; give"),
        (["student.lora.targets=[q_proj,3]"], "student.lora.targets is ['q_proj', 3]; give"),
        (["student.lora.rank=4", "student.lora.targets=[query]"], "the student has no layer 'query'; there are down_proj"),
        (["student.lora.rank=4", "student.lora.targets=[lm_head]"], "names lm_head, the output projection"),
        (["student.lora.rank=4", "student.freeze=['*norm*']"], "student.freeze says nothing beside student.lora"),
        (["student.freeze=[embeddings]"], "student.freeze: no parameter fits 'embeddings'; the student's are named like"),
        (["student.freeze=['*']"], "leaves nothing to train"),
        (["teacher.kind=base", "teacher.path=null"], "teacher.kind 'base' is the model under the student's adapter, and student.lora.rank"),
        (["student.lora.rank=4", "teacher.kind=base", "teacher.path=a"], "teacher.kind 'base' is made of the student, but teacher.path"),
        (["student.lora.rank=4", "teacher.kind=base", "teacher.path=null", "objective.alpha=1"], "so every gradient is 0"),
        (["teacher.path=null", "teachers.a.kind=base"], "teachers.a.kind 'base' is the model under the student's adapter"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(refused_run, monkeypatch, overrides: list[str], said: str) -> None:
    monkeypatch.setattr("gkd_rl.build.load_language_model", None)
    assert said in refused_run(*overrides)


def test_a_missing_peft_is_found_out_before_a_model_is_loaded(refused_run, monkeypatch) -> None:
    monkeypatch.setattr("gkd_rl.build.load_language_model", None)
    monkeypatch.setattr("gkd_rl.models.lora.find_spec", lambda name: None)
    assert "peft is not installed" in refused_run("student.lora.rank=4")
