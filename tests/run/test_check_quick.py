"""``gkd-rl check --quick``: each line fails by a fault of its own, and only by that, without a model being loaded."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from checking import Lines, lines_of, not_passed, with_rows, with_words
from workbench import Models, Outcome, problems

from gkd_rl.config.load import load_config
from gkd_rl.errors import UserError
from gkd_rl.models.language_model import load_language_model
from gkd_rl.preflight.command import check
from gkd_rl.preflight.places import checkpoint_bytes, kept_checkpoints
from gkd_rl.preflight.trial import Trial
from gkd_rl.preflight.words import ends
from gkd_rl.rollout.stopping import end_tokens

NAMES = [
    *("configuration", "model files", "data", "folders", "disk space", "memory", "tokenizers", "end of answers", "lengths"),
    *("references", "rewards"),
]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def quick(cli: Callable[..., Outcome], small: Path, tmp_path: Path) -> Callable[..., Lines]:
    """``quick(*overrides)``: lines of the small configuration, of which nothing is left on the disk."""

    def quick(*overrides: str) -> Lines:
        before = sorted(tmp_path.rglob("*"))
        lines = lines_of(cli("check", small, "--quick", "--json", f"run_dir={tmp_path / 'run'}", *overrides))
        assert sorted(tmp_path.rglob("*")) == before
        return lines

    return quick


def test_a_sound_configuration_passes_in_lines_of_one_form(quick) -> None:
    lines = quick()
    assert list(lines) == NAMES and not_passed(lines) == {}
    for line in lines.values():
        assert set(line) == {"name", "status", "detail", "fix", "seconds"}
        assert line["detail"] and line["fix"] == "" and 0 <= line["seconds"] < 60


def test_no_model_is_loaded(quick, models: Models, tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        shutil.copytree(getattr(models, name), tmp_path / name)
        (tmp_path / name / "model.safetensors").write_bytes(b"no weights")
    assert not_passed(quick(f"student.path={tmp_path / 'student'}", f"teacher.path={tmp_path / 'teacher'}")) == {}


def test_a_wrong_setting_leaves_the_other_checks_to_be_made(quick) -> None:
    lines = quick("objective.divergence.estimator=k1")
    assert not_passed(lines) == {"configuration": "fail"} and list(lines) == NAMES
    assert "has the gradient" in lines["configuration"]["detail"] + lines["configuration"]["fix"]


def test_a_wrong_key_is_all_that_can_be_said(quick) -> None:
    lines = quick("objective.alfa=1")
    assert list(lines) == ["configuration"]
    assert lines["configuration"]["fix"] == "the nearest is 'objective.alpha'"


def test_a_missing_model_is_said_once(quick) -> None:
    lines = quick("student.path=/nowhere/model")
    assert "/nowhere/model does not exist" in lines["model files"]["detail"]
    assert [lines[name]["status"] for name in ("tokenizers", "end of answers", "lengths", "references")] == ["skip"] * 4
    assert "the student's tokenizer" in lines["references"]["detail"] or "the student's files" in lines["references"]["detail"]
    assert lines["data"]["status"] == lines["folders"]["status"] == "pass"


def test_missing_weights_are_named(quick, models: Models, tmp_path: Path) -> None:
    shutil.copytree(models.student, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert "holds no *.safetensors" in quick(f"student.path={tmp_path / 'bare'}")["model files"]["detail"]
    cut = tmp_path / "cut"
    shutil.copytree(models.teacher, cut)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (cut / "model.safetensors.index.json").write_text(json.dumps(index))
    lines = quick(f"teacher.path={cut}")
    assert not_passed(lines) == {"model files": "fail"}
    assert "lacks model-00002-of-00002.safetensors" in lines["model files"]["detail"]


def test_missing_data_is_a_failure_of_the_data(quick) -> None:
    lines = quick("data_dir=/nowhere")
    assert lines["data"]["status"] == "fail" and "/nowhere/train.jsonl does not exist" in lines["data"]["detail"]
    assert lines["rewards"]["status"] == lines["lengths"]["status"] == "skip" and lines["tokenizers"]["status"] != "fail"


def test_fewer_prompts_than_a_step_takes_are_doubtful(quick) -> None:
    assert not_passed(quick("rollout.prompts_per_step=25")) == {"data": "warn"}
    assert not_passed(quick("rollout.prompts_per_step=24")) == {}


def test_a_folder_that_holds_a_run_is_not_free(quick, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    lines = quick()
    assert not_passed(lines) == {"folders": "fail"} and "already holds a run" in lines["folders"]["detail"]
    assert not_passed(quick("resume=auto")) == {}


def test_a_folder_in_use_is_not_free(quick, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = quick("resume=auto")
    assert not_passed(lines) == {"folders": "fail"} and "in use by another run" in lines["folders"]["detail"]


def test_a_file_in_the_place_of_a_folder_is_named(quick, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a folder" in quick(f"run_dir={tmp_path / 'file' / 'run'}")["folders"]["detail"]
    assert "rollout.completions_dir" in quick(f"rollout.completions_dir={tmp_path / 'file'}")["folders"]["detail"]


@pytest.mark.parametrize(("free_share", "status"), [(0.99, "fail"), (1.01, "warn"), (1.24, "warn"), (1.26, "pass")])
def test_a_full_disk_fails(quick, small: Path, models: Models, monkeypatch, free_share: float, status: str) -> None:
    parameters = load_language_model(str(models.student), "student.path").parameters
    needed = (1 + 1) * 12 * parameters + 4 * parameters  # the only checkpoint, beside which it is written anew, and the model
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**12, 0, int(free_share * needed)))
    lines = quick()
    assert not_passed(lines) == ({} if status == "pass" else {"disk space": status})


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (("max_steps=100", "checkpoint.every=0"), 1),
        (("max_steps=100", "checkpoint.every=60", "checkpoint.keep=5"), 2),
        (("max_steps=100", "checkpoint.every=10", "checkpoint.keep=3"), 3),
        (("max_steps=100", "checkpoint.every=10", "checkpoint.keep=3", "checkpoint.keep_best=true"), 4),
    ],
)
def test_checkpoints_are_counted_as_they_are_kept(small: Path, overrides: tuple[str, ...], kept: int) -> None:
    assert kept_checkpoints(load_config(small, overrides)) == kept


@pytest.mark.parametrize("overrides", [(), ("engine.zero_stage=1",), ("student.dtype=bfloat16",), ("student.lora.rank=2",)])
def test_a_checkpoint_is_as_large_as_was_said(cli, arithmetic: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    settings = [*overrides, "max_steps=1", "rollout.prompts_per_step=2", "evaluation.examples=2", "evaluation.teacher=false"]
    outcome = cli("train", arithmetic, f"run_dir={tmp_path / 'run'}", *settings)
    assert outcome.status == 0, outcome.err
    written = sum(file.stat().st_size for file in (tmp_path / "run" / "checkpoints").rglob("*") if file.is_file())
    assert written == pytest.approx(checkpoint_bytes(load_config(arithmetic, settings)), rel=0.1, abs=200_000)


def test_a_model_too_large_for_the_memory_fails(quick) -> None:
    """Its size is a hint: the hub is not at hand."""
    lines = quick("student.path=nobody/student", "student.parameters=1e15")
    assert lines["memory"]["status"] == "fail" and "engine.zero_stage" in lines["memory"]["fix"]
    small = quick("student.path=nobody/student", "student.parameters=1e5")["memory"]
    assert small["status"] == "warn" and small["detail"].endswith("unknown: cache of keys and values")
    assert "unknown: weights, gradients, optimiser" in quick("student.path=nobody/student")["memory"]["detail"]


def test_a_swapped_tokenizer_fails_with_the_first_difference(quick, models: Models) -> None:
    lines = quick(f"teacher.path={models.foreign}")
    assert not_passed(lines) == {"tokenizers": "fail"}
    assert "token 390 is" in lines["tokenizers"]["detail"]


def test_a_tokenizer_larger_than_the_model_fails(quick, models: Models, tmp_path: Path) -> None:
    path = with_words(models.student, tmp_path / "few", lambda settings: settings.update(vocab_size=100), "config.json")
    assert "400 tokens, and the model embeds 100" in quick(f"student.path={path}")["tokenizers"]["detail"]


def _without_end(settings: dict) -> None:
    settings["chat_template"] = settings["chat_template"].replace("<end>", "")


def _with_another_end(settings: dict) -> None:
    settings["chat_template"] = settings["chat_template"].replace("<end>", "<system>")


@pytest.fixture
def templated(models: Models, tmp_path: Path) -> Callable[[Callable[[dict], None]], str]:
    def templated(change: Callable[[dict], None]) -> str:
        folder = tmp_path / "templated"
        shutil.copytree(models.student, folder)
        text = {"chat_template": (folder / "chat_template.jinja").read_text()}
        change(text)
        (folder / "chat_template.jinja").write_text(text["chat_template"])
        return f"student.path={folder}"

    return templated


def test_a_template_without_an_end_fails(quick, templated) -> None:
    lines = quick("task.prompt_format=chat", templated(_without_end))
    assert not_passed(lines) == {"end of answers": "fail"}
    assert "closes an answer with nothing, and answers end at '<end>' only" in lines["end of answers"]["detail"]


def test_a_template_with_another_end_fails_unless_it_is_a_stop(quick, templated) -> None:
    overrides = ["task.prompt_format=chat", templated(_with_another_end)]
    assert not_passed(quick(*overrides)) == {"end of answers": "fail"}
    assert not_passed(quick(*overrides, "rollout.stop_token_ids=[4]")) == {}
    assert not_passed(quick(*overrides, "rollout.stop=['<system>']")) == {}
    learned = quick(*overrides, "rollout.stop_token_ids=[4]", "rollout.on_policy_share=0.5", "rollout.max_new_tokens=100")
    assert learned["end of answers"]["status"] == "warn"


def test_a_model_that_ends_otherwise_than_its_tokenizer_is_doubtful(quick, models: Models, tmp_path: Path) -> None:
    path = with_words(models.student, tmp_path / "base", lambda settings: settings.update(eos_token_id=3), "generation_config.json")
    lines = quick(f"student.path={path}")
    assert not_passed(lines) == {"end of answers": "warn"} and "'<assistant>'" in lines["end of answers"]["detail"]
    config = load_config_of(path)
    model = load_language_model(str(path), "student.path")
    assert end_tokens(model) == [1, 3]
    assert ends(Trial(config)).status == "warn"


def load_config_of(path: Path):
    return load_config(Path(__file__).resolve().parents[2] / "configs" / "arithmetic.yaml", [f"student.path={path}"])


def test_too_long_prompts_are_counted(quick) -> None:
    lines = quick("task.max_prompt_tokens=1")
    assert not_passed(lines) == {"lengths": "fail"}
    assert lines["lengths"]["detail"].startswith("28 of 28 prompts (100.0%) over task.max_prompt_tokens=1, the longest ")
    assert not_passed(quick("task.max_prompt_tokens=1", "task.long_prompts=drop"))["lengths"] == "warn"


def test_the_longest_prompt_is_the_limit(quick) -> None:
    longest = int(quick()["lengths"]["detail"].split("the longest ")[1].split()[0])
    assert quick(f"task.max_prompt_tokens={longest}")["lengths"]["status"] == "pass"
    assert quick(f"task.max_prompt_tokens={longest - 1}")["lengths"]["status"] == "fail"


def test_completions_that_are_learned_from_are_measured_too(quick) -> None:
    assert "24 of 24 completions" in quick("rollout.on_policy_share=0.5", "rollout.max_new_tokens=2")["lengths"]["detail"]


def test_prompt_and_answer_have_to_fit_the_window(quick) -> None:
    assert "reads at most 1024 tokens" in quick("rollout.max_new_tokens=200")["lengths"]["detail"]


def test_unreadable_references_are_counted_and_shown(quick, tmp_path: Path) -> None:
    rows = problems("train", 24)
    lines = quick(*with_rows(tmp_path / "rows.jsonl", rows))
    assert not_passed(lines) == {}
    rows[3]["answer"] = rows[22]["answer"] = "I do not know"
    lines = quick(*with_rows(tmp_path / "rows.jsonl", rows))
    assert lines["references"]["status"] == "fail"
    assert lines["references"]["detail"].startswith("22 of 24 rows can be judged by 'exact' and 'ArithmeticVerifier'; not example")
    assert "'I do not know'" in lines["references"]["detail"]


@pytest.mark.parametrize("value", ["1.0", "float(len(c) < 5)"])
def test_a_reward_that_does_not_tell_answers_apart_fails(quick, tmp_path: Path, value: str) -> None:
    source = f"def judge(prompts, completions, **columns):\n    return [{value} for c in completions]\n"
    (tmp_path / "judge.py").write_text(source)
    lines = quick(f"rewards=[{{path: '{tmp_path / 'judge.py'}:judge'}}]")
    assert not_passed(lines) == {"rewards": "fail"} and "does not tell solutions" in lines["rewards"]["detail"]


def test_a_reward_that_fails_is_a_failure_with_its_sentence(quick, tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("def judge(prompts, completions, **columns):\n    raise KeyError('answer')\n")
    lines = quick(f"rewards=[{{path: '{tmp_path / 'judge.py'}:judge'}}]")
    assert lines["rewards"]["status"] == "fail" and "KeyError" in lines["rewards"]["detail"]


def test_lines_say_the_same_as_json(cli, small: Path, models: Models, tmp_path: Path) -> None:
    outcome = cli("check", small, "--quick", f"run_dir={tmp_path / 'run'}", f"teacher.path={models.foreign}")
    assert outcome.status == 1
    assert "\nfail  tokenizers: teacher: student and teacher have different tokenizers" in outcome.out
    assert "\n      → choose a teacher of the student's family" in outcome.out
    assert outcome.out.endswith("10 passed, 0 to look at, 1 failed, 0 had nothing to check\n")


def test_a_run_is_not_started_on_a_full_disk(refused_run, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**12, 0, 1000))
    said = refused_run()
    assert said.startswith("disk space: ") and said.endswith("lower checkpoint.keep")


def test_a_run_is_not_started_whose_answers_do_not_end(refused_run, templated) -> None:
    assert refused_run("task.prompt_format=chat", templated(_without_end)).startswith("end of answers: the chat template closes")


def test_several_processes_are_refused(small: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start it without a launcher"):
        check(str(small), [], quick=True, as_json=True, ranks=None)


def test_memory_is_that_of_one_of_the_ranks(quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)  # DeepSpeed leaves it behind in the process of an earlier test
    one, four = (quick("engine.zero_stage=3", "--ranks", str(ranks))["memory"]["detail"] for ranks in (1, 4))
    assert "for each of 4 ranks" in four and "for each" not in one
    room = [float(said.split("; ")[1].split()[0]) for said in (one, four)]
    assert room[0] / room[1] == pytest.approx(4, rel=0.3)
