"""Whole runs with every kind of teacher."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from teacher_server import TeacherServer, serving
from workbench import Models, Outcome, check_folder, rows_of

from gkd_rl.models.language_model import load_language_model
from gkd_rl.teacher.cache import TeacherCache

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


def test_a_teacher_in_eight_bits_that_waits_elsewhere_or_is_cut_up_trains(train) -> None:
    whole, packed = (train(name, f"teacher.quantize={name}")[0] for name in ("none", "8bit"))
    assert packed[0]["divergence"] == pytest.approx(whole[0]["divergence"], rel=0.2) and packed[0]["divergence"] != whole[0]["divergence"]
    away = train("away", "teacher.offload=true", "engine.offload_while_scoring=true")[0]
    assert_same(away, whole, "loss", "divergence", "grad_norm")
    share = train("share", "teacher.shard=true", "evaluation.teacher=false")[0]  # of one rank: all of it
    assert_same(share, whole, "loss", "divergence", "grad_norm")


def test_a_teacher_in_the_process_may_keep_its_top_k_only(train) -> None:
    kept, whole = train("kept", *TOP_8, "teacher.top_k=8")[0], train("whole", *TOP_8)[0]
    assert_same(kept, whole, "loss", "divergence", "grad_norm")
    assert "reverse_kl" in whole[0] and "reverse_kl" not in kept[0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["teacher.top_k=8"], "estimator 'full' needs the whole distribution"),
        (["teacher.top_k=-1"], "teacher.top_k is -1"),
        (["engine.zero_stage=3", "engine.offload_while_scoring=true"], "engine.offload_while_scoring works with ZeRO 0 to 2"),
        (["teacher.quantize=4bit", "teacher.kind=ema"], "teacher.quantize is for a model of teacher.path"),
        (["teacher.quantize=4bit", "teacher.offload=true"], "teacher.quantize rules out"),
        (["teacher.shard=true"], "teacher.shard leaves no rank a whole teacher to be evaluated; set evaluation.teacher=false"),
        (["teacher.shard=true", "teacher.quantize=8bit"], "which teacher.quantize rules out"),
        (["teacher.shard=true", "teacher.offload=true"], "which teacher.offload rules out"),
        (["teacher.shard=true", "teacher.privileged='{prompt} {reference}'"], "which teacher.privileged rules out"),
        (["teacher.shard=true", "teacher.kind=ema", "teacher.path=null"], "teacher.shard is for a frozen model in the process"),
        (
            ["teacher.shard=true", "evaluation.teacher=false", "rollout.completions=teacher", "rollout.on_policy_share=0.5"],
            "teacher.shard leaves no rank a whole teacher to sample from",
        ),
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


# several teachers

DOMAINS = """
from gkd_rl.config.run import RewardConfig
from gkd_rl.types import Example


class Sums:
    train_size = 8

    def __init__(self, data_dir=None, prompt_format="plain", names=("small", "large")):
        self.names = names

    def train_example(self, index):
        columns = {"reference": str(index + 2), "domain": self.names[index % 2]}
        return Example(f"What is {index} + 2? ", f"It is {index + 2}", columns, index)

    def held_out(self, count):
        return [self.train_example(index) for index in range(min(count, 4))]

    def default_rewards(self):
        return [RewardConfig()]
"""


@pytest.fixture
def domains(tmp_path: Path) -> str:
    """A task whose rows name their teacher in the column ``domain``."""
    (tmp_path / "sums.py").write_text(DOMAINS)
    return f"task.path={tmp_path / 'sums.py'}:Sums"


def test_rows_are_routed_and_mixed(train, models: Models, domains: str) -> None:
    several = (
        domains,
        "teacher.path=null",
        f"teachers.small.path={models.student}",
        f"teachers.large.path={models.teacher}",
        "objective.alpha=1",
    )
    routed, rollouts, summary = train("routed", *several, "teacher_routing.column=domain")
    first = [row for row in rollouts if row["step"] == 1]
    nothing_to_learn = {row["columns"]["domain"]: max(row["divergence"]) < 1e-4 for row in first}
    assert nothing_to_learn == {"small": True, "large": False}, "the small teacher is the student itself"
    assert routed[0]["reverse_kl"] > 0 and summary["accuracy_teacher"] is None
    mixed = train("mixed", *several, "teacher_routing.weights={large: 3, small: 1}")[0]
    alone = train("alone", domains, f"teacher.path={models.teacher}", "objective.alpha=1")[0]
    assert 0 < mixed[0]["divergence"] < alone[0]["divergence"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["teacher_routing.column=domain", "task.options={names: [small, other]}"], "is 'other', for which there is no teacher"),
        (["teacher_routing.column=subject"], "has no such column; it has domain, reference"),
        (["teacher_routing.weights={medium: 1}"], "names 'medium', which is not among teachers (small, large)"),
        (["teacher_routing.weights={small: 0}"], "are all 0"),
        (["teacher_routing.weights={small: -1, large: 2}"], "teacher_routing.weights.small is -1"),
        (["teacher_routing.column=domain", "teacher_routing.weights={small: 1}"], "remove either"),
        (["teachers.small.top_k=8", *TOP_8], "teachers give scores of different forms"),
        (["teachers.small.top_k=8", "teachers.large.top_k=8", *TOP_8], "a mixture of teachers needs their whole distributions"),
        (["teachers.other.path=null"], "teachers.other has neither path nor url"),
        (["teachers.other.pth=a"], "there is no key 'teachers.other.pth'"),
        (["teacher.top_k=8", *TOP_8], "teacher and teachers are both set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_several_teachers_cannot_do_is_refused(refused_run, models: Models, domains: str, overrides: list[str], said: str) -> None:
    small = [domains, "teacher.path=null", f"teachers.small.path={models.student}", f"teachers.large.path={models.teacher}"]
    assert said in refused_run(*small, *overrides)


def test_the_teacher_with_another_tokenizer_is_named(refused_run, models: Models) -> None:
    said = refused_run("teacher.path=null", f"teachers.a.path={models.teacher}", f"teachers.b.path={models.foreign}")
    assert said.startswith("teachers.b: student and teacher have different tokenizers")


# cached teachers

CACHED = (
    "rollout.on_policy_share=0",
    "objective.alpha=1",
    "rollout.max_new_tokens=200",
    "task.max_prompt_tokens=800",
    "rollout.per_prompt=1",
    *TOP_8,
)


def test_a_cache_is_made_completed_and_trained_on(cli, train, small: Path, models: Models, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "cache"
    arguments = ("cache-teacher", small, "--out", out, "teacher.top_k=8", *CACHED)
    assert cli(*arguments, "task.train_examples=10").status == 0
    begun = {file: file.read_bytes() for file in out.glob("shard-*")}
    outcome = cli(*arguments)
    assert outcome.status == 0 and "holds 24 rows" in outcome.out, outcome
    assert begun and all(file.read_bytes() == data for file, data in begun.items()), "what was there is not scored again"
    files = set(out.iterdir())
    assert cli(*arguments).status == 0 and set(out.iterdir()) == files
    live = train("live", "teacher.top_k=8", *CACHED)[0]
    cached, _, summary = train("cached", "teacher.top_k=8", f"teacher.cache={out}", *CACHED)
    assert_same(cached, live, "loss", "divergence")
    assert summary["after"]["divergence"] is None, "no teacher is loaded"
    both = train("both", "teacher.top_k=8", f"teacher.cache={out}", *CACHED, "rollout.on_policy_share=0.5")
    assert_same(both[0], train("live half", "teacher.top_k=8", *CACHED, "rollout.on_policy_share=0.5")[0], "loss", "divergence")
    assert both[2]["after"]["divergence"] > 0


def test_a_cache_of_other_scores_is_not_continued(cli, small: Path, models: Models, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    arguments = ("cache-teacher", small, "--out", out, *CACHED, "task.train_examples=2")
    assert cli(*arguments, "teacher.top_k=8").status == 0
    outcome = cli(*arguments, "teacher.top_k=9")
    assert outcome.status == 2 and "not of" in outcome.err and "top_k=9" in outcome.err


def test_a_teacher_that_changes_is_not_cached(cli, small: Path, tmp_path: Path) -> None:
    outcome = cli("cache-teacher", small, "--out", tmp_path, "teacher.kind=ema", "teacher.path=null", "teacher.top_k=8", *CACHED)
    assert outcome.status == 2 and "teacher.kind 'ema' changes at every step" in outcome.err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["teacher.cache=a", *TOP_8, "rollout.on_policy_share=0.5"], "teacher.cache needs teacher.top_k"),
        (["teacher.cache=a", "teacher.top_k=8", *TOP_8], "rollout.on_policy_share=1 leaves none"),
        (["teacher.cache=a", "teacher.top_k=8", "teacher.path=null", *TOP_8, "rollout.on_policy_share=0.5"], "some rows are sampled"),
        (["teacher.cache=/nowhere", "teacher.top_k=8", *CACHED], "/nowhere holds no cache"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_cache_cannot_do_is_refused(refused_run, overrides: list[str], said: str) -> None:
    assert said in refused_run(*overrides)


# teachers made of the student

MOVED = (
    *("teacher.path=null", "rollout.on_policy_share=0.5", "rollout.max_new_tokens=200", "task.max_prompt_tokens=800"),
    *("rollout.per_prompt=1", "objective.advantage.kind=batch", "objective.cross_entropy_weight=0.5", "optimizer.lr=3e-3"),
)
"""The student learns the dataset's completions, so that its average is another model."""


def test_an_average_of_the_student_follows_it_and_is_resumed_to_the_last_digit(cli, small: Path, tmp_path: Path) -> None:
    settings = (*MOVED, "teacher.kind=ema", "teacher.decay=0.7", "checkpoint.every=2", "evaluation.teacher=true")
    assert cli("train", small, f"run_dir={tmp_path / 'whole'}", "max_steps=4", *settings).status == 0
    assert cli("train", small, f"run_dir={tmp_path / 'cut'}", "max_steps=2", *settings).status == 0
    outcome = cli("train", small, f"run_dir={tmp_path / 'cut'}", "max_steps=4", "resume=auto", *settings)
    assert outcome.status == 0 and "resumed from" in outcome.out, outcome
    whole, cut = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut"))
    assert whole == cut
    steps = rows_of(tmp_path / "whole" / "metrics.jsonl")
    assert steps[0]["divergence"] < 1e-6 < 1e-4 < steps[2]["divergence"], "at first the average is the student"
    frozen = (*MOVED, "teacher.kind=student", "max_steps=4")
    assert cli("train", small, f"run_dir={tmp_path / 'frozen'}", *frozen).status == 0
    assert rows_of(tmp_path / "frozen" / "metrics.jsonl")[3]["divergence"] > 2 * steps[3]["divergence"], "an average comes after"


def test_a_student_teaches_itself_what_it_is_shown(train, models: Models) -> None:
    shown = ("teacher.kind=student", "teacher.path=null", "objective.alpha=1", "teacher.privileged=The answer is {reference}. {prompt}")
    metrics, _, summary = train("shown", *shown)
    assert metrics[0]["divergence"] > 1e-3 and metrics[0]["grad_norm"] > 0
    assert summary["accuracy_teacher"] is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["teacher.kind=ema", "teacher.path=null", "objective.alpha=1"], "the student itself and nothing else moves the student"),
        (["teacher.kind=student", "teacher.path=null", "objective.alpha=1"], "the student itself and nothing else moves the student"),
        (["teacher.kind=ema", "teacher.decay=1"], "teacher.decay is 1.0"),
        (["teacher.kind=ema", "teacher.path=a"], "made of the student, but teacher.path is set"),
        (["teacher.kind=ema", "teacher.path=null", "rollout.max_staleness=1"], "set rollout.max_staleness=0, or teacher.top_k"),
        (["teacher.privileged=The answer is {reference}."], "does not name {prompt}"),
        (['teacher.privileged="{prompt} {solution}"'], "names {solution}, which example 0 does not have; it has "),
        (["teacher.kind=ema", "teacher.path=null", "teacher.cache=a", "teacher.top_k=8", *CACHED, "objective.alpha=0.5"], "at every step"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_teachers_made_of_the_student_cannot_do_is_refused(refused_run, overrides: list[str], said: str) -> None:
    assert said in refused_run(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["teacher.kind=ema", "teacher.path=null"],
        ["teacher.url=http://localhost:1", "teacher.served_model=a", "teacher.top_k=8", *TOP_8],
        ["teacher.path=null", "teachers.a.path=x", "teachers.b.path=y"],
    ],
    ids=" ".join,
)
def test_completions_of_a_teacher_need_one_in_the_process(refused_run, overrides: list[str]) -> None:
    said = refused_run(*overrides, "rollout.completions=teacher", "rollout.on_policy_share=0.5")
    assert "rollout.completions is 'teacher' but no teacher in the process" in said


def test_a_cache_does_not_know_the_teachers_completions(refused_run) -> None:
    said = refused_run("teacher.cache=a", "teacher.top_k=8", *TOP_8, "rollout.completions=teacher", "rollout.on_policy_share=0.5")
    assert "teacher.cache holds scores of the dataset's completions" in said


# several processes


def _torchrun() -> tuple[str, ...]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port", str(port))


@pytest.mark.slow
def test_an_average_over_two_processes_with_sharded_weights_is_that_of_one(run, cli, small: Path, tmp_path: Path) -> None:
    settings = (*MOVED, "teacher.kind=ema", "teacher.decay=0.7", "max_steps=3", "rollout.prompts_per_step=4")
    two = run("train", small, f"run_dir={tmp_path / 'two'}", *settings, "engine.zero_stage=3", launcher=_torchrun())
    assert two.status == 0, two.err
    assert cli("train", small, f"run_dir={tmp_path / 'one'}", *settings).status == 0
    ours, theirs = (rows_of(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert_same(ours, theirs, "divergence", "loss", "cross_entropy_loss")
    assert theirs[2]["divergence"] > 1e-4


def test_two_processes_make_the_cache_that_one_makes(run, cli, small: Path, tmp_path: Path) -> None:
    arguments = ("cache-teacher", small, "teacher.top_k=8", *CACHED)
    two = run(*arguments, "--out", tmp_path / "two", launcher=_torchrun())
    assert two.status == 0 and two.out.count("holds 24 rows") == 1, two
    assert cli(*arguments, "--out", tmp_path / "one").status == 0
    assert len(list((tmp_path / "two").glob("shard-*"))) == 2
    ours, theirs = (TeacherCache(tmp_path / name) for name in ("two", "one"))
    assert ours._rows.keys() == theirs._rows.keys() and ours.header == theirs.header


DRAWN = ("objective.divergence.estimator=draws", "objective.divergence.kind=forward_kl", "teacher.top_k=8", "teacher.draws=true")


def test_draws_are_cached_and_trained_on(cli, train, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    outcome = cli("cache-teacher", small, "--out", out, *CACHED, *DRAWN)
    assert outcome.status == 0, outcome
    cached = train("cached", *CACHED, *DRAWN, f"teacher.cache={out}")[0]
    assert_same(cached, train("live", *CACHED, *DRAWN)[0], "loss", "divergence")
    wrong = cli("train", small, f"run_dir={tmp_path / 'wrong'}", *CACHED, "teacher.top_k=8", f"teacher.cache={out}")
    assert wrong.status == 2 and "holds draws, 8 per token; set teacher.draws=true" in wrong.err
