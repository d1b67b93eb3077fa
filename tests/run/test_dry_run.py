"""A plan says beforehand what a run would count, without reading a weight or writing a file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build, letters, save
from workbench import Models, load, rows_of

from gkd_rl.config.run import Config
from gkd_rl.models.language_model import load_language_model
from gkd_rl.models.trained import mark_trained
from gkd_rl.plan.memory import rank_memory, trained_memory
from gkd_rl.plan.sizes import ModelSize, student_size


@pytest.fixture
def planned(cli, small: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``planned(*overrides)``: the plan of the small configuration, of which nothing is left on the disk."""

    def planned(*overrides: str) -> dict[str, Any]:
        outcome = cli("train", small, "--dry-run", "--json", "--flops-per-second=1e9", f"run_dir={tmp_path / 'run'}", *overrides)
        assert outcome.status == 0, outcome.err
        assert not (tmp_path / "run").exists()
        return json.loads(outcome.out)

    return planned


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_parameters_are_those_of_the_models(planned, models: Models, family: str) -> None:
    student, teacher = (models.t5_student, models.t5_teacher) if family == "t5" else (models.student, models.teacher)
    made = planned(f"student.path={student}", f"teacher.path={teacher}")["models"]
    assert made["student"]["parameters"] == made["student"]["trained"] == load(student).num_parameters()
    assert made["teacher"]["parameters"] == load(teacher).num_parameters()


@pytest.mark.parametrize("overrides", [("student.lora.rank=3",), ("student.freeze=[model.embed_tokens.*]",)], ids=["lora", "freeze"])
def test_what_is_trained_is_what_a_run_trains(planned, models: Models, overrides: tuple[str, ...]) -> None:
    config = Config()
    config.student.lora.rank = 3 if "lora" in overrides[0] else 0
    config.student.freeze = [] if "lora" in overrides[0] else ["model.embed_tokens.*"]
    module = load(models.student)
    mark_trained(module, config.student, 0)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert planned(*overrides)["models"]["student"]["trained"] == trained < load(models.student).num_parameters()


@pytest.mark.parametrize(
    "more", [(), ("rollout.passes=2", "student.lora.rank=2"), ("objective.divergence.extrapolation=1.25", "student.lora.rank=2")]
)
def test_the_work_planned_is_the_work_that_a_run_counts(planned, cli, small: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """All prompts are of one length here, and answers as long as allowed."""
    rows = [{"prompt": "How many?", "number": i} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        *("task.path=gkd_rl.tasks.custom.CustomTask", f"task.options={{train: {tmp_path / 'rows.jsonl'}, held_out_rows: 1}}"),
        *("objective.alpha=1", "rollout.min_new_tokens=10", *more),
    ]
    made = planned(*settings)
    outcome = cli("train", small, f"run_dir={tmp_path / 'run'}", *settings)
    assert outcome.status == 0, outcome.err
    for row in rows_of(tmp_path / "run" / "metrics.jsonl"):
        for name in ("flops_generation", "flops_teacher", "flops_student"):
            assert row[name] == pytest.approx(made["step"][name]), name
    whole = sum(made["step"][name] for name in ("flops_generation", "flops_teacher", "flops_student"))
    assert made["step"]["flops"] == pytest.approx(whole) and made["run"]["flops"] == pytest.approx(2 * whole)
    assert made["step"]["seconds"] == pytest.approx(whole / 1e9)
    assert made["data"]["examples"] == 8 and made["data"]["epochs"] == pytest.approx(2 * 3 / 8)


def test_more_ranks_take_less_time(planned) -> None:
    one, four = (planned("--ranks", str(ranks)) for ranks in (1, 4))
    assert four["step"]["seconds"] == pytest.approx(one["step"]["seconds"] / 4)
    assert four["step"]["flops"] == one["step"]["flops"]


def test_a_share_that_moves_is_planned_by_its_mean(planned) -> None:
    made = planned("rollout.on_policy_share=0.2", "rollout.on_policy_schedule={kind: linear, end: 1}", "objective.alpha=1", "max_steps=5")
    assert made["step"]["sampled_completions"] == pytest.approx(6 * (0.2 + 0.4 + 0.6 + 0.8 + 1.0) / 5)


def test_no_weight_is_read(planned, models: Models, tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        shutil.copytree(getattr(models, name), tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
    made = planned(f"student.path={tmp_path / 'student'}", f"teacher.path={tmp_path / 'teacher'}")
    assert made["models"]["student"]["parameters"] == load(models.student).num_parameters()


def test_a_model_of_the_hub_that_cannot_be_reached_is_unknown_or_planned_by_hint(planned) -> None:
    unknown = planned("student.path=nobody/student", "teacher.path=nobody/teacher", "data_dir=null")
    assert unknown["models"]["student"]["parameters"] is None and "set student.parameters" in unknown["models"]["student"]["source"]
    assert unknown["step"]["flops"] is None and unknown["run"]["seconds"] is None and unknown["memory_per_rank"]["total"] is None
    assert (
        unknown["data"]["said"].startswith("not read: task 'gkd_rl.tasks.gsm8k.Gsm8kTask': the gsm8k task needs data_dir")
        and unknown["data"]["prompt"] == 900
    )
    hinted = planned("student.path=nobody/student", "teacher.path=nobody/teacher", "student.parameters=1e9", "teacher.parameters=4e9")
    assert hinted["step"]["flops_teacher"] == 2 * 4e9 * 6 * 910
    assert hinted["step"]["flops_student"] == 6 * 1e9 * 6 * 910
    assert hinted["memory_per_rank"]["teacher"] == 16e9


def test_a_hub_data_set_is_not_loaded_for_a_plan(planned) -> None:
    made = planned("task.options={train: 'hub:openai/gsm8k:main:train', test: 'hub:openai/gsm8k:main:test'}")
    assert made["data"]["said"] == "of the hub, not loaded for a plan"


def test_tables_hold_the_same_numbers(cli, small: Path) -> None:
    outcome = cli("train", small, "--dry-run")
    assert outcome.status == 0, outcome.err
    for words in ("student", "gradients", "FLOPs, teacher", "tokens a row, means of 24 training examples", "a matrix product in float32"):
        assert words in outcome.out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("student.path=/nowhere/model",), "student.path: model folder /nowhere/model does not exist"),
        (("objective.alpha=0.5", "objective.divergence.estimator=k1"), "has the gradient"),
        (("data_dir=/nowhere",), "data file /nowhere/train.jsonl does not exist"),
        (("--ranks=0",), "--ranks is 0"),
        (("student.lora.rank=2", "student.lora.targets=[nope]"), "the student has no layer 'nope'"),
    ],
)
def test_what_a_run_would_refuse_a_plan_refuses(refused, small: Path, overrides: tuple[str, ...], said: str) -> None:
    assert said in refused("train", small, "--dry-run", *overrides)


def test_the_plans_options_need_the_plan(refused, small: Path) -> None:
    assert "belong to --dry-run" in refused("train", small, "--json")


P, T, N = 1000.0, 100.0, 4
MEMORY = {  # weights, gradients, optimiser of P weights, T trained, on N ranks
    ("float32", 0): (4 * P, 4 * T, 8 * T),
    ("float32", 1): (4 * P, 4 * T, 12 * T / N),
    ("float32", 2): (4 * P, 4 * T / N, 12 * T / N),
    ("float32", 3): (4 * P / N, 4 * T / N, 12 * T / N),
    ("bfloat16", 0): (2 * P, 6 * T, 12 * T / N),
    ("bfloat16", 1): (2 * P, 6 * T, 12 * T / N),
    ("bfloat16", 2): (2 * P, 4 * T / N, 12 * T / N),
    ("bfloat16", 3): (2 * P / N, 4 * T / N, 12 * T / N),
}


def configured(dtype: str = "float32", stage: int = 0) -> Config:
    config = Config()
    config.student.dtype, config.engine.zero_stage = dtype, stage  # pyright: ignore
    return config


@pytest.mark.parametrize(("dtype", "stage"), MEMORY)
def test_memory_by_stage_is_the_formulas(dtype: str, stage: int) -> None:
    width = 4.0 if dtype == "float32" else 2.0
    parts = trained_memory(configured(dtype, stage), ModelSize("s", "", P, T, width), N)
    assert (parts["weights"], parts["gradients"], parts["optimiser"]) == MEMORY[dtype, stage]
    assert parts.get("student gathered to sample") == (width * P * 3 / 4 if stage == 3 else None)


def test_settings_that_save_memory_save_it_in_the_plan() -> None:
    size = ModelSize("s", "", P, T, 4.0, hidden=8, cache_bytes=10.0)
    teachers = {"teacher": ModelSize("t", "", 10 * P, 0, 4.0, hidden=16)}

    def parts(config: Config) -> dict[str, float | None]:
        return rank_memory(config, size, teachers, 1, rows=20)

    plain = parts(configured())
    assert plain["teacher"] == 4 * 10 * P
    assert plain["cache of keys and values"] == 20 * (384 + 64) * 10
    assert plain["teacher's scores in the buffer"] == 20 * 64 * 16 * 4
    config = configured(stage=3)
    config.engine.offload_optimizer = config.engine.offload_parameters = "cpu"
    config.optimizer.kind, config.rollout.buffer_device, config.rollout.sampling_rows = "adamw", "cpu", 5
    saved = parts(config)
    assert saved["weights"] == saved["optimiser"] == saved["teacher's scores in the buffer"] == 0
    assert saved["cache of keys and values"] == 5 * (384 + 64) * 10
    config = configured()
    config.optimizer.kind, config.teacher.kind, config.teacher.path, config.student.lora.rank = "adafactor", "base", None, 2
    assert parts(config)["optimiser"] == parts(config)["teacher"] == 0
    config = configured()
    config.teacher.shard = True
    assert rank_memory(config, size, teachers, 4, rows=20)["teacher"] == 10 * P
    config = configured()
    config.rollout.overlap, config.objective.surrogate.reference_kl_weight, config.teacher.top_k = True, 0.1, 5
    assert parts(config)["copies of the student"] == 2 * 4 * P
    assert parts(config)["teacher's scores in the buffer"] == 20 * 64 * 5 * 12


@pytest.mark.parametrize("kind", ["t5", "t5:untied", "llama:untied"])
def test_a_head_of_its_own_is_counted(tmp_path: Path, kind: str) -> None:
    """Transformers ties the head of every T5 that it makes of a configuration, T5 1.1 included, whose files have one."""
    tokenizer = letters(12)
    config = Config()
    config.student.path = str(save(build(kind, tokenizer), tokenizer, tmp_path))
    loaded = load_language_model(config.student.path, "student.path")
    assert student_size(config.student).parameters == loaded.parameters
    config.student.freeze = ["lm_head.*"]
    mark_trained(loaded.module, config.student, 0)
    assert student_size(config.student).trained == loaded.trained_parameters < loaded.parameters


@pytest.mark.parametrize("family", ["student", "t5_student"])
def test_the_cache_of_a_token_is_that_of_the_decoder(models: Models, family: str) -> None:
    """Two layers, two heads of 16, keys and values, four bytes each."""
    config = Config()
    config.student.path = str(getattr(models, family))
    assert student_size(config.student).cache_bytes == 2 * 2 * 2 * 16 * 4
