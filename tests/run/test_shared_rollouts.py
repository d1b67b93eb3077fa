"""Runs of a sweep that begin with one batch: as if each had sampled it, and refused where they would begin apart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from experiences import examples
from tiny_models import language_model
from workbench import Outcome, rows_of

from gkd_rl.config.load import load_config, with_overrides
from gkd_rl.config.run import Config
from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.first_batch import first_answers
from gkd_rl.rollout.sampler import InProcessSampler
from gkd_rl.types import Rollouts


def test_the_first_step_alone_takes_the_files_answers_and_takes_them_as_they_are(cli: Callable[..., Outcome], small: Path, tmp_path: Path):
    settings = ["evaluation.teacher=false", "rollout.first_batch=../first.pt", "rollout.overlap=true"]
    assert cli("train", small, f"run_dir={tmp_path / 'one'}", *settings).status == 0
    held = torch.load(tmp_path / "first.pt", weights_only=True)
    held["rollouts"]["texts"] = tuple(f"marked {number}" for number in range(6))
    torch.save(held, tmp_path / "first.pt")
    assert cli("train", small, f"run_dir={tmp_path / 'two'}", *settings).status == 0
    one, two = (rows_of(tmp_path / name / "rollouts.jsonl") for name in ("one", "two"))
    assert [row["completion"] for row in two if row["step"] == 1] == [f"marked {number}" for number in range(6)]
    assert [row["tokens"] for row in two] == [row["tokens"] for row in one], "the second step is sampled as ever"
    assert not [row for row in two if row["step"] == 2 and row["completion"].startswith("marked")]


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("rollout.temperature", "[0.7, 1]", "rollout.temperature (0.7 and 1.0)"),
        ("rollout.max_new_tokens", "[5, 6]", "rollout.max_new_tokens (5 and 6)"),
        ("rollout.prompts_per_step", "[2, 4]", "rollout.prompts_per_step (2 and 4)"),
        ("rollout.per_prompt", "[2, 4]", "rollout.per_prompt (2 and 4)"),
        ("rollout.on_policy_share", "[0.5, 1]", "rollout.on_policy_share (0.5 and 1.0)"),
        ("rollout.stop", "[[x], [y]]", "rollout.stop (['x'] and ['y'])"),
        ("task.max_prompt_tokens", "[800, 900]", "task.max_prompt_tokens (800 and 900)"),
        ("task.options", "[{a: 1}, {b: 1}]", "task.options ({'a': 1} and {'b': 1})"),
        ("student.dtype", "[float32, bfloat16]", "student.dtype (float32 and bfloat16)"),
    ],
)
def test_runs_that_would_begin_apart_are_refused_before_anything_starts(refused, small: Path, tmp_path: Path, key, values, said):
    sweep = tmp_path / "sweep"
    sentence = refused("ablate", small, f"run_dir={sweep}", "objective.alpha=1", f"ablation.grid={{{key}: {values}}}", "--share-rollouts")
    assert sentence.startswith(f"--share-rollouts: runs of the grid differ in {said}, on which") and not sweep.exists()


def test_a_sweep_that_samples_nothing_has_nothing_to_share(refused, small: Path, tmp_path: Path) -> None:
    grid = ["ablation.grid={optimizer.lr: [0.1, 0.2]}", "rollout.on_policy_share=0", "objective.alpha=1"]
    said = refused("ablate", small, f"run_dir={tmp_path / 'sweep'}", *grid, "--share-rollouts")
    assert "rollout.on_policy_share=0 has none sampled" in said


def test_settings_on_which_the_first_batch_does_not_depend_may_differ(small: Path, tmp_path: Path) -> None:
    from gkd_rl.ablation.grid import points_of
    from gkd_rl.ablation.sharing import sharing

    grid = "ablation.grid={rollout.on_policy_schedule.end: [0.2, 0.8], student.lora.rank: [0, 4], rewards: [null, [{path: a.b}]]}"
    schedule = ["rollout.on_policy_share=0.5", "rollout.on_policy_schedule.kind=linear"]
    config = load_config(small, [f"run_dir={tmp_path}", grid, *schedule, "ablation.seeds=[3]"])
    points = sharing(config, points_of(config))
    assert {point.first_batch for point in points} == {"../first-batches/seed-3.pt"} and len(points) == 8
    assert with_overrides(config, points[5].overrides).rollout.first_batch == "../first-batches/seed-3.pt"


class _Begun:
    """What a run has at its first step: a configuration, a student, prompts, and a count of how often it sampled."""

    def __init__(self, folder: Path, *overrides: str, seed: int = 0) -> None:
        base = ["rollout.first_batch=first.pt", "rollout.per_prompt=2", "rollout.max_new_tokens=4", *overrides]
        self.config = with_overrides(replace(Config(), run_dir=str(folder)), base)
        self.student: LanguageModel = language_model("llama", seed=seed)
        self.examples = examples(3)
        self.sampled = 0

    def sample(self) -> Rollouts:
        self.sampled += 1
        time.sleep(0.2)  # long enough for another run to come meanwhile
        params = SamplingParams(4, temperature=self.config.rollout.temperature)
        return InProcessSampler(self.student, 8).sample(self.examples, 2, params, self.config.seed)

    def answers(self) -> Rollouts:
        return first_answers(self.config, self.student, self.examples, self.sample)


def test_of_runs_that_come_at_once_one_samples(tmp_path: Path) -> None:
    runs = [_Begun(tmp_path) for _ in range(3)]
    found: list[Rollouts] = []
    threads = [threading.Thread(target=lambda one=one: found.append(one.answers())) for one in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = _Begun(tmp_path).sample()
    assert sum(one.sampled for one in runs) == 1 and len(found) == 3
    for rollouts in found:
        for name in ("prompt_ids", "completion_ids", "completion_mask", "logprobs", "sampler_logprobs", "group", "ended", "version"):
            assert torch.equal(getattr(rollouts, name), getattr(own, name)), name
        assert rollouts.texts == own.texts and rollouts.examples == own.examples


def test_a_batch_of_another_beginning_is_refused(tmp_path: Path) -> None:
    _Begun(tmp_path).answers()
    others = {
        "rollout.temperature=1.0, not 0.5": _Begun(tmp_path, "rollout.temperature=0.5"),
        "seed=0, not 4": _Begun(tmp_path, "seed=4"),
        "other weights of the student": _Begun(tmp_path, seed=1),
    }
    with_other_prompts = _Begun(tmp_path)
    with_other_prompts.examples = with_other_prompts.examples[::-1]
    for said, one in {**others, "other prompts": with_other_prompts}.items():
        with pytest.raises(UserError) as caught:
            one.answers()
        assert f"first.pt was sampled with {said}; remove the file" in str(caught.value) and one.sampled == 0


def test_a_damaged_file_and_a_place_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none/first\.pt cannot be written \(.*File exists.*\); make room"):
        (tmp_path / "none").write_text("a file")
        _Begun(tmp_path, "rollout.first_batch=none/first.pt").answers()
    (tmp_path / "first.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"first\.pt is not readable as a first batch; remove it"):
        _Begun(tmp_path).answers()


@pytest.mark.slow
def test_several_processes_are_refused(run, small: Path, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    outcome = run("train", small, f"run_dir={tmp_path / 'run'}", "rollout.first_batch=first.pt", launcher=launcher)
    assert outcome.status != 0 and "rollout.first_batch is for runs of one process, and there are 2; leave it out" in outcome.err


def test_adapters_that_have_learned_nothing_leave_the_student_the_same(tmp_path: Path) -> None:
    from gkd_rl.config.student import LoraConfig
    from gkd_rl.models.lora import add_lora

    first = _Begun(tmp_path).answers()
    adapted = _Begun(tmp_path, "student.lora.rank=2")
    add_lora(adapted.student.module, LoraConfig(rank=2), seed=0)
    assert torch.equal(adapted.answers().completion_ids, first.completion_ids) and adapted.sampled == 0
