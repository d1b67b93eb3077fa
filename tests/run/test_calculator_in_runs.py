"""``rollout.calculator`` as a setting of a run: in training and evaluation, and refused where it cannot work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from workbench import Outcome, check_folder
from writer_of_sums import writer

ARITHMETIC = Path(__file__).resolve().parents[2] / "configs" / "arithmetic.yaml"
SUM = re.compile(r"<<(\d+(?:\+\d+)*)=(\d+)>>")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A student and a teacher that write sums."""
    made = []
    for name, noise in (("student", 0.05), ("teacher", 0.08)):
        model, folder = writer("llama", noise), tmp_path_factory.mktemp(name)
        model.module.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        made.append(f"{name}.path={folder}")
    return made[0], made[1]


def share_of_right_sums(texts: list[str]) -> float:
    sums = [found for text in texts for found in SUM.findall(text)]
    return sum(sum(map(int, expression.split("+"))) == int(result) for expression, result in sums) / len(sums)


def test_training_and_evaluation_go_on_from_computed_results(cli: Callable[..., Outcome], small: Path, paths, tmp_path: Path):
    figures = {}
    for calculator in ("true", "false"):
        outcome = cli(
            *("train", small, f"run_dir={tmp_path / calculator}", *paths, f"rollout.calculator={calculator}"),
            *("task.max_prompt_tokens=190", "rollout.max_new_tokens=30", "log_top_choices=2"),
        )
        assert outcome.status == 0, outcome.err
        metrics, rollouts, _ = check_rows(tmp_path / calculator)
        figures[calculator] = metrics, rollouts
    metrics, rollouts = figures["true"]
    assert share_of_right_sums([row["completion"] for row in rollouts]) > 0.5  # but for results that one token has begun wrongly
    assert share_of_right_sums([row["completion"] for row in figures["false"][1]]) < 0.3
    inserted = sum(value is None for row in rollouts if row["step"] == 1 for value in row["logprobs"])
    assert metrics[0]["calculator_share"] == pytest.approx(inserted / sum(len(row["tokens"]) for row in rollouts if row["step"] == 1))
    assert inserted > 0 and "calculator_share" not in figures["false"][0][0]


def check_rows(folder: Path):
    metrics, rollouts, summary = check_folder(folder, steps=2)
    for row in rollouts:
        assert [value is None for value in row["logprobs"]] == [value is None for value in row["divergence"]]
        assert [value is None for value in row["logprobs"]] == [choices == [] for choices in row["student_top"]]
    return metrics, rollouts, summary


def test_evaluation_has_the_calculator_too(cli: Callable[..., Outcome], small: Path, paths, tmp_path: Path):
    (tmp_path / "right.py").write_text(
        "import re\n"
        "def sums(prompts, completions, **columns):\n"
        f"    found = [re.findall({SUM.pattern!r}, text) for text in completions]\n"
        "    return [sum(sum(map(int, a.split('+'))) == int(b) for a, b in each) / max(len(each), 1) for each in found]\n"
    )
    given = {}
    for calculator in ("true", "false"):
        outcome = cli(
            *("evaluate", small, *paths, f"run_dir={tmp_path / 'none'}", f"rollout.calculator={calculator}", "--json"),
            *("task.max_prompt_tokens=190", "rollout.max_new_tokens=60", "evaluation.samples=8", "evaluation.teacher=false"),
            f"rewards=[{{path: '{tmp_path / 'right.py'}:sums'}}]",
        )
        assert outcome.status == 0, outcome.err
        given[calculator] = json.loads(outcome.out)["reward"]
    assert given["true"] > given["false"] + 0.3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("rollout.sampler=generate",), "writes into answers as they are made, which rollout.sampler=generate cannot; use native"),
        (("rollout.sampler=vllm", "objective.surrogate.correction.kind=truncate"), "which rollout.sampler=vllm cannot; use native"),
        (("teacher.other_tokenizer=true",), "teacher.other_tokenizer compares whole spans; drop one of them"),
    ],
)
def test_what_cannot_have_a_calculator_is_refused(refused_run: Callable[..., str], overrides: tuple[str, ...], said: str):
    assert said in refused_run("rollout.calculator=true", "student.path=embedded:no-such-model", *overrides)


def test_a_tokenizer_without_marks_is_refused(refused: Callable[..., str], tmp_path: Path):
    said = refused("train", ARITHMETIC, f"run_dir={tmp_path / 'run'}", "rollout.calculator=true")
    assert said.startswith("rollout.calculator: the tokenizer of embedded:arithmetic-student writes <<48/2=24>> as ")


def test_the_check_before_a_run_finds_it_too(cli: Callable[..., Outcome], tmp_path: Path):
    outcome = cli("check", ARITHMETIC, "--quick", "--json", f"run_dir={tmp_path / 'run'}", "rollout.calculator=true")
    (found,) = [line for line in json.loads(outcome.out)["checks"] if line["name"] == "tokenizers"]
    assert outcome.status == 1 and found["status"] == "fail" and "writes <<48/2=24>> as" in found["detail"]


def test_completions_of_a_teacher_with_a_calculator_are_kept_apart(cli: Callable[..., Outcome], small: Path, paths, tmp_path: Path):
    given = [f"rollout.completions_dir={tmp_path / 'said'}", "rollout.completions=teacher", "rollout.on_policy_share=0.5"]
    plain = ["task.max_prompt_tokens=190", "rollout.max_new_tokens=20", *given]
    outcome = cli("train", small, f"run_dir={tmp_path / 'one'}", *paths, *plain, "rollout.calculator=true")
    assert outcome.status == 0, outcome.err
    texts = [line for path in (tmp_path / "said").glob("rank-*.jsonl") for line in path.read_text().splitlines()]
    assert texts and share_of_right_sums(_decoded(texts, paths)) > 0.5
    outcome = cli("train", small, f"run_dir={tmp_path / 'two'}", *paths, *plain)
    assert outcome.status == 2 and "holds completions made with rollout.calculator=True, not None; choose another folder" in outcome.err


def _decoded(lines: list[str], paths: tuple[str, str]) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(paths[0].partition("=")[2])
    return [str(tokenizer.decode(json.loads(line)["tokens"])) for line in lines]
