"""Two processes do the work of one, whatever starts them, and leave one set of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from launching import free_port, torchrun
from workbench import Outcome, check_folder, rows_of

from gkd_rl.processes import require_ranks

SAME = ["max_steps=3", "rollout.updates_per_pass=1", "evaluation.every=2"]


@pytest.fixture(scope="module")
def two(run: Callable[..., Outcome], arithmetic: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A run of two processes at ZeRO stage 2."""
    folder = tmp_path_factory.mktemp("two") / "run"
    settings = [f"run_dir={folder}", "engine.zero_stage=2", "trackers=[tensorboard]", *SAME]
    return folder, run("train", arithmetic, *settings, launcher=torchrun())


@pytest.fixture
def one(cli: Callable[..., Outcome], arithmetic: Path, tmp_path: Path) -> Path:
    """The same run of one process without ZeRO."""
    outcome = cli("train", arithmetic, f"run_dir={tmp_path / 'one'}", *SAME)
    assert outcome.status == 0, outcome.err
    return tmp_path / "one"


def test_two_processes_learn_what_one_learns(two: tuple[Path, Outcome], one: Path) -> None:
    folder, outcome = two
    assert outcome.status == 0, outcome.err
    ours, ours_rollouts, summary = check_folder(folder, steps=3)
    theirs, theirs_rollouts, single = check_folder(one, steps=3)
    for mine, its in zip(ours, theirs, strict=True):
        assert set(mine) == set(its)
        for name in ("loss", "divergence_loss", "reward_loss", "divergence", "reverse_kl", "entropy", "grad_norm", "ratio"):
            assert mine[name] == pytest.approx(its[name], abs=1e-4), (mine["step"], name)
        for name in ("reward", "length", "truncated", "tokens", "advantage_rms"):
            assert mine[name] == pytest.approx(its[name]), (mine["step"], name)
    assert [row["tokens"] for row in ours_rollouts] == [row["tokens"] for row in theirs_rollouts]
    assert [row["advantage"] for row in ours_rollouts] == [row["advantage"] for row in theirs_rollouts]
    for name in ("accuracy_before", "accuracy_after", "accuracy_teacher"):
        assert summary[name] == single[name]


def test_only_one_of_two_processes_speaks_and_writes(two: tuple[Path, Outcome]) -> None:
    folder, outcome = two
    assert outcome.out.count("greedy accuracy") == 1
    assert outcome.out.count(str(folder / "curves.png")) == 1
    assert len(rows_of(folder / "metrics.jsonl")) == len(rows_of(folder / "timings.jsonl")) == 3
    assert len(list((folder / "tensorboard").glob("events.*"))) == 1 and "tracker" not in outcome.out
    assert {file.name for file in (folder / "checkpoints" / "step-00000003").glob("buffer-*.pt")} == {"buffer-0.pt", "buffer-1.pt"}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["deepspeed", "accelerate"])
def test_other_launchers_start_the_same_run(run, two: tuple[Path, Outcome], arithmetic: Path, tmp_path: Path, launcher: str) -> None:
    port = str(free_port())
    words = {
        "deepspeed": ("-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", port),
        "accelerate": (
            *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2"),
            *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port),
        ),
    }[launcher]
    outcome = run("train", arithmetic, f"run_dir={tmp_path / 'run'}", "engine.zero_stage=2", *SAME, launcher=words, module="--module")
    assert outcome.status == 0, outcome.err
    check_folder(tmp_path / "run", steps=3)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (two[0] / name).read_bytes()
    assert outcome.out.count("greedy accuracy") == 1


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, "leave --cpu out and give --multi_gpu"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "one of OMPI_COMM_WORLD_SIZE=2 processes but RANK and WORLD_SIZE are not set"),
        ({"PMI_SIZE": "4"}, "one of PMI_SIZE=4 processes"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "start one torchrun per host"),
    ],
)
def test_processes_without_ranks_do_not_train_each_by_itself(refused_run, monkeypatch, environment: dict[str, str], said: str) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)  # libraries leave it behind in this process
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("gkd_rl.build.load_language_model", None)
    assert said in refused_run()


def test_a_process_that_has_its_rank_or_is_alone_may_start() -> None:
    require_ranks({"OMPI_COMM_WORLD_SIZE": "2", "WORLD_SIZE": "2", "RANK": "1"})
    require_ranks({"ACCELERATE_USE_CPU": "True"})
    require_ranks({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"})


def test_the_word_that_the_deepspeed_launcher_puts_first_is_taken(cli, tmp_path: Path) -> None:
    outcome = cli("--local_rank=1", "train", tmp_path / "none.yaml")
    assert outcome.status == 2 and "none.yaml" in outcome.err and "local_rank" not in outcome.err


def _open(cases: list[list[str]]) -> list[tuple[str | None, str | None]]:
    """Of each run's folders by rank: what opening it says to this rank, and what then is in this rank's."""
    from gkd_rl.config.run import Config
    from gkd_rl.errors import UserError
    from gkd_rl.processes import Processes
    from gkd_rl.run import open_folder

    processes, found = Processes(), []
    for folders in cases:
        said, held = None, None
        try:
            held = open_folder(Config(run_dir=folders[processes.rank]), processes)
        except UserError as error:
            said = str(error)
        processes.barrier()
        lock = Path(folders[processes.rank]) / ".lock"
        found.append((said, lock.read_text() if lock.exists() else None))
        if held is not None:
            held.close()
    return found


def test_hosts_have_to_share_the_runs_folder(ranks, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / ".lock").write_text("of an earlier run")
    shared, apart = [str(tmp_path / "run")] * 2, [str(tmp_path / "here"), str(tmp_path / "there")]
    (first, other), (second, another) = ranks(2, _open, [shared, apart])
    assert first == second and first[0] is None and first[1]
    for said, _ in (other, another):
        assert said is not None and "is not that of the main process on another host; put it on a file system that all hosts share" in said
    assert other[1] is None and not (tmp_path / "here").exists() and another[1] == "of an earlier run"


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "dtype"), [(1, "float32"), (2, "float32"), (3, "float32"), (2, "bfloat16")])
def test_another_number_of_processes_continues_a_run_that_was_cut_up(run, arithmetic: Path, tmp_path: Path, stage: int, dtype: str) -> None:
    """Two begin, one goes on, two end it: weights and both moments are those of a run that was not cut off."""
    settings = [*SAME, f"engine.zero_stage={stage}", f"student.dtype={dtype}", "evaluation.every=0", "checkpoint.every=1", "resume=auto"]
    for steps, processes in ((1, 2), (2, 1), (3, 2)):
        launcher = torchrun() if processes == 2 else ()
        outcome = run("train", arithmetic, f"run_dir={tmp_path / 'cut'}", *settings, f"max_steps={steps}", launcher=launcher)
        assert outcome.status == 0, outcome.err
    assert run("train", arithmetic, f"run_dir={tmp_path / 'whole'}", *settings, "max_steps=3").status == 0
    cut, whole = (rows_of(tmp_path / name / "metrics.jsonl") for name in ("cut", "whole"))
    half = dtype == "bfloat16"  # of which one rank and two add gradients up otherwise, with or without a cut
    for mine, its in zip(cut, whole, strict=True):
        for name in ("loss", "divergence", "reward", "grad_norm", "length"):
            tolerance = {"grad_norm": 0.2, "loss": 0.1}.get(name, 0.02) if half else 1e-3
            assert mine[name] == pytest.approx(its[name], rel=tolerance, abs=1e-4), (mine["step"], name)


def test_what_cannot_be_cut_up_anew_is_refused_before_any_model_is_loaded(run, cli, arithmetic: Path, tmp_path: Path) -> None:
    settings = [*SAME, "engine.zero_stage=1", "student.dtype=bfloat16", f"run_dir={tmp_path / 'run'}", "evaluation.every=0"]
    assert run("train", arithmetic, *settings, "max_steps=1", launcher=torchrun()).status == 0
    outcome = cli("train", arithmetic, *settings, "resume=auto")
    assert outcome.status == 2
    assert (
        "holds a run of 2 processes, not 1, and the optimiser of a bfloat16 student at engine.zero_stage=1 is cut up by it" in outcome.err
    )


def test_two_processes_continue_the_run_of_one_but_for_the_last_digits(run, cli, one: Path, arithmetic: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    assert cli("train", arithmetic, f"run_dir={half}", *SAME, "max_steps=1", "evaluation.every=0").status == 0
    settings = ["resume=auto", "evaluation.every=0"]
    outcome = run("train", arithmetic, f"run_dir={half}", *SAME, *settings, launcher=torchrun())
    assert outcome.status == 0, outcome.err
    assert "it was written by 1 processes, and there are 2 now" in outcome.out.replace("\n", " ")
    for mine, its in zip(rows_of(half / "metrics.jsonl"), rows_of(one / "metrics.jsonl"), strict=True):
        for name in ("loss", "divergence", "reward", "grad_norm", "length"):
            assert mine[name] == pytest.approx(its[name], rel=1e-3, abs=1e-4), (mine["step"], name)


@pytest.mark.slow
def test_two_processes_continue_to_the_last_digit(run, two: tuple[Path, Outcome], arithmetic: Path, tmp_path: Path) -> None:
    settings = ["engine.zero_stage=2", *SAME, "checkpoint.every=1"]
    half, folder = tmp_path / "half", two[0]
    assert run("train", arithmetic, f"run_dir={half}", *settings, "max_steps=1", launcher=torchrun()).status == 0
    outcome = run("train", arithmetic, f"run_dir={half}", *settings, "resume=auto", launcher=torchrun())
    assert outcome.status == 0, outcome.err
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        assert (half / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["rollout.prompts_per_step=1"], ["engine.zero_stage=3"]])
def test_two_processes_end_well_with_few_prompts_and_at_stage_three(run, arithmetic, tmp_path: Path, overrides: list[str]) -> None:
    outcome = run("train", arithmetic, f"run_dir={tmp_path / 'run'}", *SAME, *overrides, launcher=torchrun())
    assert outcome.status == 0, outcome.err
    check_folder(tmp_path / "run", steps=3)


@pytest.mark.slow
def test_two_processes_with_a_share_of_the_teacher_each_learn_what_two_with_whole_ones_learn(
    run, two: tuple[Path, Outcome], arithmetic: Path, tmp_path: Path
) -> None:
    shares = ["teacher.shard=true", "evaluation.teacher=false"]
    outcome = run("train", arithmetic, f"run_dir={tmp_path / 'run'}", "engine.zero_stage=2", *SAME, *shares, launcher=torchrun())
    assert outcome.status == 0, outcome.err
    ours, theirs = (rows_of(folder / "metrics.jsonl") for folder in (tmp_path / "run", two[0]))
    for mine, its in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(its, rel=1e-3, abs=1e-5)
    assert "eval_divergence" in ours[1]


@pytest.mark.slow
def test_a_mistake_ends_both_processes(run, arithmetic: Path, tmp_path: Path) -> None:
    outcome = run("train", arithmetic, f"run_dir={tmp_path / 'run'}", "student.path=embedded:nobody", launcher=torchrun())
    assert outcome.status != 0
    assert "gkd-rl: student.path: there is no embedded model 'nobody'" in outcome.err
    assert not (tmp_path / "run").exists()
