"""``gkd-rl check`` with models: log-probabilities, divergences and gradients, each with a fault that its line has to find."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checking import Lines, lines_of, not_passed
from safetensors.torch import load_file, save_file
from teacher_server import serving
from workbench import Models, Outcome

from gkd_rl.models.language_model import load_language_model
from gkd_rl.rollout import sampler
from gkd_rl.teacher.local import LocalTeacher

ROOT = Path(__file__).resolve().parents[2]
TOP = ["objective.divergence.estimator=top_k", "objective.divergence.top_k=8"]
WITH_MODELS = ["student", "teacher", "sampler and trainer", "served and local teacher", "student as its own teacher", "gradients"]


@pytest.fixture
def checked(cli: Callable[..., Outcome], arithmetic: Path, tmp_path: Path) -> Callable[..., Lines]:
    """``checked(*overrides)``: lines of a run on the embedded task, of which nothing is left on the disk."""

    def checked(*overrides: str) -> Lines:
        before = sorted(tmp_path.rglob("*"))
        lines = lines_of(cli("check", arithmetic, "--json", f"run_dir={tmp_path / 'run'}", *overrides))
        assert sorted(tmp_path.rglob("*")) == before
        return lines

    return checked


def with_weights(folder: Path, made: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a model's folder at ``made`` with other weights."""
    shutil.copytree(folder, made)
    weights = load_file(made / "model.safetensors")
    change(weights)
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    return made


def asset(name: str) -> Path:
    return ROOT / "gkd_rl" / "assets" / name


def test_the_embedded_configuration_passes(cli, tmp_path: Path) -> None:
    lines = lines_of(cli("check", ROOT / "configs" / "arithmetic.yaml", "--json", f"run_dir={tmp_path / 'run'}"))
    assert not_passed(lines) == {} and list(lines)[-len(WITH_MODELS) :] == WITH_MODELS
    assert [name for name, line in lines.items() if line["status"] == "skip"] == ["served and local teacher"]
    assert lines["teacher"]["detail"].startswith("2,162,496 parameters")
    assert lines["gradients"]["detail"].count("reward") == lines["gradients"]["detail"].count("divergence") == 1
    assert not (tmp_path / "run").exists() and list(tmp_path.iterdir()) == []


def test_every_term_that_is_used_is_tried(checked) -> None:
    lines = checked("objective.cross_entropy_weight=0.1")
    assert not_passed(lines) == {}
    assert [word in lines["gradients"]["detail"] for word in ("reward", "divergence", "cross-entropy")] == [True] * 3
    alone = checked("objective.alpha=1", "rollout.on_policy_share=1")
    assert "reward" not in alone["gradients"]["detail"]
    assert "divergence" not in checked("objective.alpha=0", "rollout.on_policy_share=1", "teacher.path=null")["gradients"]["detail"]


def test_weights_that_are_not_numbers_are_named(checked, tmp_path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"][3] = float("nan")

    lines = checked(f"student.path={with_weights(asset('arithmetic-student'), tmp_path / 'spoilt', spoil)}")
    assert lines["student"]["status"] == "fail" and "model.norm.weight" in lines["student"]["detail"]
    assert lines["sampler and trainer"]["status"] == "fail"
    assert lines["gradients"]["status"] == "fail"
    assert lines["teacher"]["status"] == "pass"


def test_a_teacher_that_is_not_finite_gives_no_finite_gradient(checked, tmp_path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"][3] = float("nan")

    lines = checked(f"teacher.path={with_weights(asset('arithmetic-teacher'), tmp_path / 'spoilt', spoil)}")
    assert not_passed(lines) == {"gradients": "fail"}
    assert "divergence nan" in lines["gradients"]["detail"] and "reward nan" not in lines["gradients"]["detail"]


@pytest.mark.parametrize(("factor", "status"), [(1.003, "warn"), (1.5, "fail")])
def test_a_sampler_with_other_log_probabilities_is_found(checked, monkeypatch, factor: float, status: str) -> None:
    """As one that samples at a temperature of its own."""
    draw = sampler.draw
    monkeypatch.setattr(sampler, "draw", lambda logits, *rest, **named: draw(logits * factor, *rest, **named))
    lines = checked()
    assert not_passed(lines) == {"sampler and trainer": status}
    assert "and 0.001 is what rounding explains" in lines["sampler and trainer"]["detail"]


@pytest.mark.parametrize("kind", ["generate", "overlap"])
def test_other_samplers_agree_too(checked, kind: str) -> None:
    lines = checked("rollout.overlap=true" if kind == "overlap" else "rollout.sampler=generate")
    assert lines["sampler and trainer"]["status"] == "pass"


def test_a_teacher_that_is_the_student_has_nothing_to_teach(checked) -> None:
    lines = checked("teacher.path=embedded:arithmetic-student")
    assert not_passed(lines) == {"gradients": "warn"} and "is teacher.path the student" in lines["gradients"]["fix"]
    assert not_passed(checked("teacher.kind=student", "teacher.path=null")) == {}


def test_answers_that_are_all_judged_alike_give_no_gradient(cli, small: Path, tmp_path: Path) -> None:
    """Solutions end in a mark that random answers do not have."""
    source = "def marked(prompts, completions, **columns):\n    return [float('####' in text) for text in completions]\n"
    (tmp_path / "marked.py").write_text(source)
    reward = f"rewards=[{{path: '{tmp_path / 'marked.py'}:marked'}}]"
    lines = lines_of(cli("check", small, "--json", f"run_dir={tmp_path / 'run'}", reward))
    assert set(not_passed(lines)) == {"rewards", "gradients"} and lines["gradients"]["status"] == "warn"
    assert "reward 0," in lines["gradients"]["detail"] and "judged alike" in lines["gradients"]["fix"]


def test_encoder_decoder_models_with_an_adapter_are_checked(cli, small: Path, models: Models, tmp_path: Path) -> None:
    overrides = [f"student.path={models.t5_student}", f"teacher.path={models.t5_teacher}", "student.lora.rank=2"]
    lines = lines_of(cli("check", small, "--json", f"run_dir={tmp_path / 'run'}", *overrides))
    assert not_passed(lines) in ({}, {"gradients": "warn"}) and " trained" in lines["student"]["detail"]


def test_a_teacher_that_cannot_be_had_leaves_the_student_to_be_checked(checked, models: Models) -> None:
    lines = checked(f"teacher.path={models.foreign}")
    assert lines["tokenizers"]["status"] == "fail"
    assert lines["student as its own teacher"]["status"] == lines["sampler and trainer"]["status"] == "pass"


@pytest.mark.parametrize("name", ["arithmetic-teacher", "arithmetic-student"])
def test_a_server_is_compared_with_the_model_that_it_is_to_serve(checked, name: str) -> None:
    with serving(load_language_model(str(asset(name)), "teacher.path")) as server:
        lines = checked(f"teacher.url={server.url}", "teacher.served_model=tiny", "teacher.top_k=8", *TOP)
    same = name == "arithmetic-teacher"
    assert lines["served and local teacher"]["status"] == ("pass" if same else "fail"), lines
    assert set(not_passed(lines)) <= {"served and local teacher", "gradients"}
    assert same or "teacher.served_model" in lines["served and local teacher"]["fix"]


def test_a_server_that_is_away_is_a_failure_of_the_tokenizers_line(checked) -> None:
    overrides = ["teacher.url=http://127.0.0.1:9", "teacher.served_model=tiny", "teacher.top_k=8", "teacher.retries=0"]
    lines = checked(*overrides, *TOP)
    assert lines["tokenizers"]["status"] == "fail" and "cannot be reached" in lines["tokenizers"]["detail"]
    assert lines["sampler and trainer"]["status"] == "pass"


def test_the_students_weights_are_the_same_after_it(tmp_path: Path, arithmetic: Path) -> None:
    from gkd_rl.config.load import load_config
    from gkd_rl.preflight.numbers import finite_steps
    from gkd_rl.preflight.trial import Trial

    trial = Trial(load_config(arithmetic, [f"run_dir={tmp_path / 'run'}"]))
    before = {name: value.clone() for name, value in trial.student.module.state_dict().items()}
    assert finite_steps(trial).status == "pass"
    assert all(torch.equal(value, before[name]) for name, value in trial.student.module.state_dict().items())
    assert not (tmp_path / "run").exists()


def test_a_teacher_read_off_by_one_position_is_found(checked, monkeypatch) -> None:
    score = LocalTeacher.score

    def shifted(self, rollouts):
        scores = score(self, rollouts)
        return replace(scores, hidden=scores.hidden.roll(1, dims=1))

    monkeypatch.setattr(LocalTeacher, "score", shifted)
    lines = checked()
    assert not_passed(lines) == {"student as its own teacher": "fail"}
