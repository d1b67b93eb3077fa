"""Bad data, models, rewards and folders: one sentence, status 2, and no run half made."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from workbench import Models, problems

GOOD = "".join(json.dumps(row) + "\n" for row in problems("train", 3))


@pytest.fixture
def refused_run(refused: Callable[..., str], small: Path, tmp_path: Path) -> Callable[..., str]:
    """``refused_run(*overrides, command="train")``: the one line of a run that cannot start, of which no folder is left."""

    def refused_run(*overrides: str, command: str = "train") -> str:
        said = refused(command, small, f"run_dir={tmp_path / 'run'}", *overrides)
        assert not (tmp_path / "run").exists()
        return said

    return refused_run


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., str]:
    """``rows(train)``: the override that names a data folder with that ``train.jsonl``."""

    def rows(train: str | bytes, test: str = GOOD) -> str:
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / "train.jsonl").write_bytes(train if isinstance(train, bytes) else train.encode())
        (folder / "test.jsonl").write_text(test)
        return f"data_dir={folder}"

    return rows


@pytest.fixture
def changed(models: Models, tmp_path: Path) -> Callable[..., Path]:
    """``changed(change)``: a copy of the student's folder after ``change(folder)``."""

    def changed(change: Callable[[Path], object]) -> Path:
        folder = shutil.copytree(models.student, tmp_path / "changed")
        change(folder)
        return folder

    return changed


# data


@pytest.mark.parametrize("command", ["train", "sft", "evaluate"])
def test_gsm8k_without_a_data_folder_names_the_setting(refused_run, command: str) -> None:
    assert "the gsm8k task needs data_dir (or GKD_RL_DATA)" in refused_run("data_dir=null", command=command)


def test_a_data_folder_without_the_file_is_named(refused_run, tmp_path: Path) -> None:
    said = refused_run(f"data_dir={tmp_path / 'absent'}")
    assert f"data file {tmp_path / 'absent' / 'train.jsonl'} does not exist; set data_dir" in said


def test_an_empty_file_is_refused(refused_run, rows) -> None:
    assert refused_run(rows("\n\n")).endswith("train.jsonl holds no rows")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "x", ', "not valid JSON (Expecting property name enclosed in double quotes at column 19)"),
        ('["a", "b"]', "a row is a JSON object, not list"),
        ('{"question": "x", "anser": "1"}', "has no field 'answer'; the nearest is 'anser'"),
        ('{"question": "  ", "answer": "1"}', "field 'question' is empty or not text"),
        ('{"question": 5, "answer": "1"}', "field 'question' is empty or not text"),
        (b'{"question": "\xff", "answer": "1"}', "byte 15 is not UTF-8"),
        ('{"question": "\\ud800", "answer": "1"}', "half of a surrogate pair"),
        ('{"question": "x", "answer": ' + "9" * 5000 + "}", "too long"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(refused_run, rows, line: str | bytes, said: str) -> None:
    given = line if isinstance(line, bytes) else line.encode()
    answer = refused_run(rows(GOOD.encode() + b"\n" + given + b"\n"))
    assert "train.jsonl, line 5: " in answer
    assert said in answer


def test_a_bad_row_of_the_held_out_file_is_found_before_training(refused_run, rows) -> None:
    assert "test.jsonl, line 4: not valid JSON" in refused_run(rows(GOOD, GOOD + "{"))


def test_a_prompt_over_the_limit_is_named_with_its_length(refused_run) -> None:
    said = refused_run("task.max_prompt_tokens=20")
    assert "the prompt of held-out example 0 has " in said and "over task.max_prompt_tokens=20; raise it" in said


def test_a_long_training_prompt_is_found_before_the_run(refused_run, rows) -> None:
    long = json.dumps({"question": "word " * 400, "answer": "#### 1"}) + "\n"
    assert "the prompt of training example 3 has " in refused_run(rows(GOOD + long), "task.max_prompt_tokens=300")


def test_prompt_and_answer_must_fit_the_model(refused_run) -> None:
    said = refused_run("task.max_prompt_tokens=1020")
    assert "task.max_prompt_tokens + rollout.max_new_tokens = 1030" in said and "reads at most 1024 tokens" in said


def test_options_of_a_task_are_checked(refused_run) -> None:
    assert "task 'gkd_rl.tasks.gsm8k.Gsm8kTask' has no option 'calculator_mark'; did you mean 'calculator_marks'?" in refused_run(
        "task.options={calculator_mark: true}"
    )


def test_an_unknown_task_names_the_nearest(refused_run) -> None:
    assert "did you mean 'Gsm8kTask'?" in refused_run("task.path=gkd_rl.tasks.gsm8k.Gsm8KTask")


def test_a_class_that_is_no_task_is_refused(refused_run) -> None:
    said = refused_run("task.path=gkd_rl.types.Example", "task.options={prompt: x}")
    assert "gkd_rl.types.Example" in said


def test_the_data_folder_may_come_from_the_environment(refused_run, rows, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = rows("{").removeprefix("data_dir=")
    monkeypatch.setenv("GKD_RL_DATA", folder)
    assert f"{folder}/train.jsonl, line 1: not valid JSON" in refused_run("data_dir=null")


# models


def test_vocabularies_that_differ_name_the_first_token(refused_run, models: Models) -> None:
    said = refused_run(f"teacher.path={models.foreign}")
    assert "student and teacher have different tokenizers: token 390 is " in said and "choose a teacher of the student's family" in said


def test_a_teacher_that_ends_answers_otherwise_is_refused(refused_run, models: Models, changed) -> None:
    def other_end(folder: Path) -> None:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<user>"}))

    assert "EOS is '<end>' for the student and '<user>' for the teacher" in refused_run(f"teacher.path={changed(other_end)}")


@pytest.mark.parametrize("key", ["student.path", "teacher.path"])
def test_a_model_folder_that_is_not_there_names_the_nearest(refused_run, models: Models, key: str) -> None:
    said = refused_run(f"{key}={models.student.parent / 'studnt'}")
    assert said == f"{key}: model folder {models.student.parent / 'studnt'} does not exist; did you mean {models.student}?"


def test_an_unknown_embedded_model_names_the_nearest(refused_run) -> None:
    assert "the nearest is 'embedded:arithmetic-teacher'" in refused_run("teacher.path=embedded:arithmetic-taecher")


def test_the_model_to_evaluate_is_checked_under_its_own_key(refused_run, tmp_path: Path) -> None:
    assert refused_run(f"model={tmp_path / 'absent'}", command="evaluate").startswith("model: model folder")


def _without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def _with(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _deeper(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}))


def _wider(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "intermediate_size": 72}))


def _cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("config.json"), "holds no config.json"),
        (_without("model.safetensors"), "no file named model.safetensors"),
        (_without("tokenizer.json", "tokenizer_config.json"), "holds no tokenizer"),
        (_with("config.json", "{"), "config.json"),
        (_with("config.json", '{"model_type": "zork"}'), "zork"),
        (_with("tokenizer.json", "{}"), "no tokenizer could be loaded"),
        (_cut, "could not be loaded"),
        (_deeper, "9 are missing or of another shape, the first of them model.layers.2."),
        (_wider, "6 are missing or of another shape, the first of them model.layers.0.mlp.down_proj.weight"),
    ],
)
def test_a_damaged_model_folder_is_refused_under_its_key(refused_run, changed, change, said: str) -> None:
    answer = refused_run(f"student.path={changed(change)}")
    assert answer.startswith("student.path: ") and said in answer


def test_a_classifier_is_no_student(refused_run, models: Models) -> None:
    said = refused_run(f"student.path={models.judge}")
    assert "1 are missing or of another shape, the first of them lm_head.weight; give the checkpoint of a language model" in said


def test_a_chat_format_without_a_template_is_refused(refused_run, changed) -> None:
    path = changed(_without("chat_template.jinja"))
    assert "the student's tokenizer has no chat template" in refused_run(f"student.path={path}", "task.prompt_format=chat")


# rewards


@pytest.fixture
def own_reward(tmp_path: Path) -> Callable[[str], str]:
    """``own_reward(body)``: the override that names a reward of the user's own with that body."""

    def own_reward(body: str) -> str:
        file = tmp_path / "own.py"
        file.write_text(f"def reward(prompts, completions, **columns):\n    {body}\n")
        return f"rewards=[{{path: '{file}:reward', name: mine}}]"

    return own_reward


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ("[{path: reward_models.ArithmeticVerifer}]", "did you mean 'ArithmeticVerifier'?"),
        ("[{path: reward_model.ArithmeticVerifier}]", "there is no module 'reward_model'; did you mean 'reward_models'?"),
        ("[{path: nothing}]", "is not a dotted path"),
        ("[{path: 'absent.py:reward'}]", "there is no file 'absent.py'"),
        (
            "[{path: reward_models.ArithmeticVerifier, options: {tolerence: 1}}]",
            "has no option 'tolerence'; did you mean 'tolerance'?",
        ),
        ("[{path: reward_models.ArithmeticVerifier, options: {tolerance: -1}}]", "tolerance is -1"),
        ("[{path: reward_models.ArithmeticVerifier, options: {reference_field: referense}}]", "there is no column 'referense'"),
        ("[{path: reward_models.ArithmeticVerifier}, {path: reward_models.ArithmeticVerifier}]", "two rewards are named"),
        ("[{path: reward_models.SequenceClassificationReward}]", "model"),
        ("[{path: reward_models.SequenceClassificationReward, options: {model: /absent/judge}}]", "/absent/judge"),
        ("[{path: math.pi}]", "is a float, not a function or class"),
    ],
)
def test_a_reward_that_cannot_be_made_is_refused(refused_run, rewards: str, said: str) -> None:
    assert said in refused_run(f"rewards={rewards}")


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise RuntimeError('out of luck')", "reward 'mine' failed (RuntimeError: out of luck)"),
        ("return [1.0]", "reward 'mine' returned 1 values for 2 completions"),
        ("return ['good'] * len(completions)", "reward 'mine' returned 'good' for row 0; a reward is a number or None"),
        ("return [float('nan')] * len(completions)", "reward 'mine' returned nan for row 0; rewards must be finite"),
    ],
)
def test_a_reward_that_fails_is_named_before_a_model_is_loaded(refused_run, own_reward, command: str, body: str, said: str) -> None:
    assert said in refused_run(own_reward(body), command=command)


def test_a_reward_that_fails_in_the_midst_of_a_run_is_named_and_the_run_can_be_continued(
    cli, small: Path, own_reward, tmp_path: Path
) -> None:
    flag = tmp_path / "mended"
    body = f"import os; return [1.0 + 0 / (os.path.exists({str(flag)!r}) or len(completions) != 6) for _ in completions]"
    arguments = ["train", small, f"run_dir={tmp_path / 'run'}", own_reward(body), "resume=auto"]
    broken = cli(*arguments)
    assert broken.status == 2 and "Traceback" not in broken.err
    assert broken.err.startswith("gkd-rl: reward 'mine' failed (ZeroDivisionError: ")
    flag.touch()
    assert cli(*arguments).status == 0
    assert (tmp_path / "run" / "summary.json").is_file()


# folders


def test_a_folder_that_holds_a_run_is_left_as_it_is(refused, small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("max_steps: 1\n")
    assert "already holds a run; resume=auto continues it, resume=new sets it aside first" in refused("train", small, f"run_dir={run}")
    assert (run / "config.yaml").read_text() == "max_steps: 1\n"
    assert not (run / "metrics.jsonl").exists()


def test_a_folder_in_use_by_another_run_is_refused(refused, small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with (run / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for command in ("train", "sft"):
            assert f"run_dir {run} is in use by another run" in refused(command, small, f"run_dir={run}", "resume=auto")
        assert "is in use by another run" in refused("ablate", small, f"run_dir={run}", "ablation.grid={objective.alpha: [0, 1]}")
    assert [file.name for file in run.iterdir()] == [".lock"]


@pytest.mark.parametrize("command", ["train", "sft"])
def test_a_file_is_no_run_folder(refused, small: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        said = refused(command, small, f"run_dir={tmp_path / place}")
        assert f"run_dir {tmp_path / place} is not a folder" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_refused(refused, small: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    for place in (closed, closed / "below"):
        assert f"run_dir {place} cannot be written to" in refused("train", small, f"run_dir={place}")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc, where nobody can make a folder")
def test_a_folder_that_cannot_be_made_is_refused(refused, small: Path) -> None:
    assert "run_dir /proc/gkd-rl/run cannot be written to (" in refused("train", small, "run_dir=/proc/gkd-rl/run")


def test_a_file_in_the_place_of_a_run_of_a_grid_is_refused(cli, small: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "alpha-0_seed-0").write_text("mine")
    grid = ["ablation.grid={objective.alpha: [0]}", "ablation.seeds=[0]"]
    outcome = cli("ablate", small, f"run_dir={tmp_path / 'sweep'}", *grid)
    assert outcome.status == 2 and "alpha-0_seed-0, where a run of the grid belongs, is not a folder" in outcome.err


def test_an_earlier_run_stays_in_place_while_the_new_one_cannot_start(refused, small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("max_steps: 1\n")
    refused("train", small, f"run_dir={run}", "resume=new", "student.path=embedded:nobody")
    assert (run / "config.yaml").read_text() == "max_steps: 1\n"
    assert [folder.name for folder in tmp_path.iterdir()] == ["run"]


# grading


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("answers.jsonl", "", "is empty"),
        ("answers.jsonl", "\n\n", "has no rows"),
        ("answers.jsonl", '{"reference": "1", "completion": "1"}\n{"reference"', "line 2 is not JSON"),
        ("answers.jsonl", '{"reference": "1", "completoin": "1"}\n', "there is no field 'completion'; did you mean 'completoin'?"),
        ("answers.txt", "1", "the format '.txt' is unknown"),
        ("answers.csv", "reference,completion\n1\n", "line 2: 1 fields, but the header has 2"),
    ],
)
def test_a_file_that_cannot_be_graded_is_refused_and_nothing_written(refused, tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    assert said in refused("grade", tmp_path / name, "--out", tmp_path / "graded.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_grading_refuses_what_it_cannot_write_or_use(refused, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"reference": "1", "completion": "1"}\n')
    assert "is the input itself" in refused("grade", file, "--out", file)
    assert "there is no folder" in refused("grade", file, "--out", tmp_path / "absent" / "graded.jsonl")
    assert "did you mean" in refused("grade", tmp_path / "answer.jsonl")
    assert "did you mean 'tolerance'?" in refused("grade", file, "--option", "tolerence=1")
    assert "cannot grade" in refused("grade", file, "--verifier", "reward_models.load_reward", "--option", "path=math.sqrt")
