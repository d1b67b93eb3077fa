"""Whole runs with a teacher that has another tokenizer than the student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import build, save
from tokenizer_zoo import tokenizer
from workbench import Models, Outcome, check_folder, rows_of

SWITCH = "teacher.other_tokenizer=true"
DISTIL = ("objective.alpha=1", "objective.divergence.kind=forward_kl", "rollout.prompts_per_step=8", "rollout.per_prompt=1")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``stranger(kind)``: a random model of a tokenizer of another family, with a chat template of its own or none."""

    def stranger(kind: str = "llama", chat: bool = True) -> Path:
        one = tokenizer("sentencepiece", chat)
        model = build(kind, one, 3, vocab_size=380, **({} if kind == "t5" else {"max_position_embeddings": 2048}))
        return save(model, one, tmp_path_factory.mktemp("stranger"))

    return stranger


def settings_of(small: Path, folder: Path, *overrides: str) -> list[str]:
    return [str(small), f"run_dir={folder}", SWITCH, *overrides]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_distillation_from_a_stranger_lowers_the_divergence_and_resumes_to_the_last_digit(
    cli: Callable[..., Outcome], small: Path, stranger, tmp_path: Path, kind: str
) -> None:
    teacher = (f"teacher.path={stranger(kind)}", *DISTIL, "optimizer.lr=3e-3", "rollout.max_staleness=1")
    steps = 12 if kind == "llama" else 4
    outcome = cli("train", *settings_of(small, tmp_path / "whole", *teacher, f"max_steps={steps}"))
    assert outcome.status == 0, outcome
    metrics, rollouts, summary = check_folder(tmp_path / "whole", steps)
    divergences = [row["divergence"] for row in metrics]
    assert sum(divergences[-2:]) < 0.8 * sum(divergences[:2]) or kind == "t5", divergences
    assert summary["after"]["divergence"] < summary["before"]["divergence"], "evaluations compare with this teacher too"
    assert summary["after"]["reverse_kl"] is None and summary["accuracy_teacher"] is not None
    for row in metrics:
        assert 0 < row["one_to_one_tokens"] < row["aligned_tokens"] <= 1
        assert 0 < row["teacher_matched_mass"] < 1 and 0 < row["student_matched_mass"] < 1
    assert any(0.0 in row["divergence"] and max(row["divergence"]) > 0 for row in rollouts), "some spans have several tokens"
    if kind == "llama":
        settings = settings_of(small, tmp_path / "cut", *teacher)
        assert cli("train", *settings, "max_steps=2").status == 0
        outcome = cli("train", *settings, f"max_steps={steps}", "resume=auto")
        assert outcome.status == 0 and "resumed from" in outcome.out, outcome
        assert rows_of(tmp_path / "cut" / "metrics.jsonl") == metrics


def test_with_the_same_tokenizer_the_switch_changes_nothing(cli: Callable[..., Outcome], arithmetic: Path, tmp_path: Path) -> None:
    runs = {
        "plain": [],
        "switched": [SWITCH],
        "kept": [SWITCH, "teacher.top_k=212", "objective.divergence.estimator=top_k", "objective.divergence.top_k=212"],
    }
    for name, overrides in runs.items():
        outcome = cli("train", arithmetic, f"run_dir={tmp_path / name}", "max_steps=3", "evaluation.every=0", *overrides)
        assert outcome.status == 0, outcome
    plain, *others = (rows_of(tmp_path / name / "metrics.jsonl") for name in runs)
    for other in others:
        for mine, its in zip(plain, other, strict=True):
            for figure in ("loss", "divergence", "reward_loss", "grad_norm"):
                assert its[figure] == pytest.approx(mine[figure], rel=2e-4, abs=1e-6), figure
            assert its["one_to_one_tokens"] == its["aligned_tokens"] == 1
            assert its["teacher_matched_mass"] == pytest.approx(1)


def test_chats_rewards_and_kept_tokens_go_together(cli: Callable[..., Outcome], small: Path, stranger, tmp_path: Path) -> None:
    """Both terms, dataset rows beside sampled ones, the teacher's own chat template and what it alone is shown."""
    overrides = (
        f"teacher.path={stranger()}",
        "task.prompt_format=chat",
        "teacher.top_k=16",
        'teacher.privileged="{prompt} ({reference})"',
        "objective.divergence.estimator=top_k",
        "objective.divergence.top_k=8",
        "objective.gate.kind=wrong",
        "rollout.on_policy_share=0.5",
        "rollout.max_new_tokens=150",
        "task.max_prompt_tokens=800",
    )
    outcome = cli("train", *settings_of(small, tmp_path / "run", *overrides))
    assert outcome.status == 0, outcome
    metrics, rollouts, _ = check_folder(tmp_path / "run", 2)
    assert metrics[0]["divergence"] > 0 and metrics[0]["grad_norm"] > 0
    dataset = [row for row in rollouts if not row["on_policy"]]
    assert dataset and all(row["divergence"][-1] > 0 for row in dataset), "the end is compared with the teacher's end"


def test_without_the_switch_it_is_refused_and_the_switch_named(refused_run: Callable[..., str], stranger) -> None:
    said = refused_run(f"teacher.path={stranger()}")
    assert "teacher: student and teacher have different tokenizers: token 0 is '<pad>' for the student and '<unk>' for the teacher" in said
    assert said.endswith(
        "choose a teacher of the student's family, or set teacher.other_tokenizer=true to compare the two on the texts of their tokens"
    )


TOP_8 = ("objective.divergence.estimator=top_k", "objective.divergence.top_k=8")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["objective.divergence.estimator=k2", "objective.divergence.kind=reverse_kl"],
            "estimator 'k2' needs the teacher's probability of",
        ),
        ([*TOP_8, "objective.divergence.tail=renormalise"], "tail 'renormalise' leaves out what teacher.other_tokenizer cannot compare"),
        (["objective.divergence.extrapolation=1.25"], "extrapolation needs one tokenizer of teacher and reference"),
        (["objective.gate.kind=sign_agreement"], "gate.kind 'sign_agreement' works on tokens"),
        (["objective.surrogate.teacher_in_ratio=0.5"], "teacher_in_ratio works on tokens"),
        (["teacher.kind=student", "teacher.path=null"], "teacher.kind 'student' is made of the student and has its tokenizer"),
        (["teacher.url=http://a", "teacher.served_model=b", "teacher.top_k=8", *TOP_8], "teacher.url gives scores by the student's tokens"),
        (
            ["teacher.cache=a", "teacher.top_k=8", "rollout.on_policy_share=0.5", *TOP_8],
            "teacher.cache gives scores by the student's tokens",
        ),
        (["teacher.draws=true", "teacher.top_k=8"], "teacher.draws draws the student's tokens"),
        (["teacher.path=null", "objective.alpha=0"], "teacher.path is null"),
        (["rollout.completions=teacher", "rollout.on_policy_share=0.5"], "set it to dataset, with the teacher's answers as the dataset's"),
        (["teacher.top_k=8"], "estimator 'full' needs the whole distribution"),
        (["teacher.top_k=8", *TOP_8, "objective.divergence.teacher_temperature=0.5"], "teacher_temperature=1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_works_on_the_teachers_tokens_is_refused(refused_run: Callable[..., str], overrides: list[str], said: str) -> None:
    assert said in refused_run(SWITCH, *overrides)


def test_several_teachers_and_the_cache_are_refused(refused_run: Callable[..., str], models: Models, tmp_path: Path) -> None:
    several = ("teacher.path=null", f"teachers.a.path={models.teacher}", f"teachers.b.path={models.teacher}")
    assert "teachers names several" in refused_run(*several, "teachers.a.other_tokenizer=true", "teacher_routing.column=domain")


def test_a_cache_is_not_made_of_it(refused: Callable[..., str], small: Path, tmp_path: Path) -> None:
    said = refused("cache-teacher", small, "--out", tmp_path / "cache", SWITCH, "teacher.top_k=8", *TOP_8, "rollout.on_policy_share=0")
    assert said.startswith("cache-teacher keeps scores by the student's tokens") and not (tmp_path / "cache").exists()


def test_a_stranger_that_reads_no_chats_is_refused_before_a_model_is_loaded(
    refused_run: Callable[..., str], stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gkd_rl.build.load_language_model", None)
    said = refused_run(SWITCH, f"teacher.path={stranger(chat=False)}", "task.prompt_format=chat")
    assert said == "task.prompt_format is 'chat' but the tokenizer of teacher.path has no chat template; use 'plain'"
