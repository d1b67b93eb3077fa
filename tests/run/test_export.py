"""Model folders made from checkpoints: what the run itself would have written at that step, to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launching import torchrun
from peft import PeftModel
from workbench import Models, Outcome, load, rows_of

SHORT = ("max_steps=2", "checkpoint.every=1", "evaluation.teacher=false", "evaluation.examples=2")
LORA = ("student.lora.rank=4", "optimizer.lr=1e-2")


@pytest.fixture
def train(cli: Callable[..., Outcome], small: Path, tmp_path: Path) -> Callable[..., Path]:
    """``train(name, *overrides)``: the folder of a small run, ``tmp_path/name``."""

    def train(name: str, *overrides: str) -> Path:
        outcome = cli("train", small, f"run_dir={tmp_path / name}", *SHORT, *overrides)
        assert outcome.status == 0, outcome.err
        return tmp_path / name

    return train


@pytest.fixture
def export(cli: Callable[..., Outcome], tmp_path: Path) -> Callable[..., Path]:
    """``export(source)``: the folder of its student, ``tmp_path/out``, which every call makes anew."""

    def export(source: Path, *options: str) -> Path:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        outcome = cli("export", source, "--out", tmp_path / "out", *options)
        assert outcome.status == 0, outcome.err
        assert outcome.out.count("\n") == 1 and "holds the student of" in outcome.out
        return tmp_path / "out"

    return export


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def check_same(out: Path, run: Path) -> None:
    """``out`` is what the run left in ``model/`` and ``adapter/``, file by file."""
    assert files(out) == files(run / "model")
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(files(out))
    assert (out / "adapter").exists() == (run / "adapter").exists()
    if (run / "adapter").exists():
        assert files(out / "adapter") == files(run / "adapter")


@pytest.mark.parametrize(
    "settings",
    [
        ("engine.zero_stage=0",),
        ("engine.zero_stage=3", "student.freeze=[lm_head.*, '*norm*']"),
        ("engine.zero_stage=2", *LORA),
        ("engine.zero_stage=3", *LORA),
    ],
    ids=["0", "3, frozen", "2, lora", "3, lora"],
)
def test_the_newest_checkpoint_is_the_runs_own_model(train, export, models: Models, settings: tuple[str, ...]) -> None:
    run = train("run", *settings)
    out = export(run)
    check_same(out, run)
    trained, initial = (load(folder).state_dict() for folder in (out, models.student))
    assert any(not torch.equal(trained[name], initial[name]) for name in initial)


@pytest.mark.parametrize("settings", [("engine.zero_stage=0", *LORA), ("engine.zero_stage=3",)], ids=["0, lora", "3"])
def test_encoder_decoder_students_too(train, export, models: Models, settings: tuple[str, ...]) -> None:
    """Their embedding has several names."""
    run = train("run", f"student.path={models.t5_student}", f"teacher.path={models.t5_teacher}", *settings)
    out = export(run)
    check_same(out, run)
    assert load(out).config.is_encoder_decoder


@pytest.mark.parametrize("stage", [1, 3])
def test_half_precision_is_the_engines_own(train, export, stage: int) -> None:
    run = train("run", "student.dtype=bfloat16", f"engine.zero_stage={stage}")
    check_same(export(run), run)


def test_the_adapter_fits_the_model_that_the_run_began_with(train, export, models: Models) -> None:
    out = export(train("run", *LORA))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        whole = load(out)(ids).logits
        adapted = PeftModel.from_pretrained(load(models.student), str(out / "adapter")).eval()(ids).logits
    torch.testing.assert_close(whole, adapted, atol=1e-3, rtol=1e-3)


def test_an_earlier_checkpoint_is_the_model_of_a_shorter_run(train, export) -> None:
    run, shorter = train("run"), train("shorter", "max_steps=1")
    assert len(rows_of(run / "metrics.jsonl")) == 2
    out = export(run / "checkpoints" / "step-00000001")
    assert files(out) == files(shorter / "model") != files(run / "model")


def test_a_cut_off_run_needs_nothing_but_its_configuration(train, export, models: Models, tmp_path: Path) -> None:
    run, moved = train("run"), tmp_path / "moved"
    (moved / "checkpoints").mkdir(parents=True)
    shutil.copytree(run / "checkpoints" / "step-00000002", moved / "checkpoints" / "step-00000002")
    (moved / "checkpoints" / "step-00000003").mkdir()  # begun and not closed
    base = shutil.copytree(models.student, tmp_path / "base")
    text = (run / "config.yaml").read_text()
    assert str(models.student) in text
    (moved / "config.yaml").write_text(text.replace(str(models.student), "elsewhere/no-model"))
    assert files(export(moved, "--student", str(base))) == files(run / "model")


def _two_ranks(run: Callable[..., Outcome], small: Path, folder: Path, *settings: str) -> Path:
    outcome = run("train", small, f"run_dir={folder}", *SHORT, *settings, launcher=torchrun())
    assert outcome.status == 0, outcome.err
    return folder


def test_two_ranks_shards_make_one_model(run, small: Path, export, tmp_path: Path) -> None:
    folder = _two_ranks(run, small, tmp_path / "run", "engine.zero_stage=3")
    assert len(list((folder / "checkpoints" / "step-00000002" / "state").glob("*_optim_states.pt"))) == 2
    check_same(export(folder), folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [("engine.zero_stage=0",), ("engine.zero_stage=1",), ("engine.zero_stage=2", *LORA), ("engine.zero_stage=3", *LORA)]
)
def test_two_ranks_at_every_stage(run, small: Path, export, tmp_path: Path, settings: tuple[str, ...]) -> None:
    folder = _two_ranks(run, small, tmp_path / "run", *settings)
    check_same(export(folder), folder)


def test_what_cannot_be_exported_is_said_in_one_sentence(train, refused, models: Models, tmp_path: Path, monkeypatch) -> None:
    run, out = train("run", "engine.zero_stage=3", "checkpoint.keep=1"), tmp_path / "out"
    place = run / "checkpoints" / "step-00000002"

    def said(source: Path, *options: object) -> str:
        text = refused("export", source, "--out", *(options or (out,)))
        assert not out.exists() and not list(tmp_path.glob(".out*"))
        return text

    assert "is not a folder; give a run's folder or one of its checkpoints" in said(tmp_path / "nothing")
    assert "is no run's folder and no checkpoint of one" in said(models.student)
    assert f"--out {run} is not empty" in said(run, run)
    assert "config.yaml is a file; give a folder that is new or empty" in said(run, run / "config.yaml")
    assert "student.path: model folder" not in said(run, out, "--student", tmp_path / "gone")
    assert f"--student: model folder {tmp_path / 'gone'} does not exist" in said(run, out, "--student", tmp_path / "gone")
    assert "does not fit the student" in said(run, out, "--student", models.teacher)
    shard = next(place.joinpath("state").glob("*_optim_states.pt"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert f"the checkpoint {place} cannot be read (state/{shard.name} is not what was written)" in said(place)
    assert f"the checkpoint {place} is passed over: state/{shard.name} is not what was written" in said(run)
    shard.unlink()
    assert f"{shard.name} is missing" in said(place)
    (place / "state.json").unlink()
    assert "is no finished checkpoint: it has no state.json" in said(place)
    assert "holds no intact checkpoint (" in said(run) and "it was not finished); checkpoint.every says how often" in said(run)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("gkd_rl.cli._leave", _exit)
    assert "export works in one process; start it without a launcher" in said(run)


def _exit(status: int) -> None:
    raise SystemExit(status)
