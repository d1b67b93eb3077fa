"""What a run shows: bars of phases that last, a live line, completions with what came of them; lines where there is no terminal."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from workbench import Outcome, rows_of

from gkd_rl import console
from gkd_rl.console import Terminal, remaining, shown
from gkd_rl.progress import Advance, progress, watched_by, within
from gkd_rl.samples import LONGEST, as_text, harmless, show

ESCAPE = "\x1b"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that goes when a test says so: ``clock.now`` seconds."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def terminal_of(live: bool, width: int = 100) -> tuple[Terminal, io.StringIO]:
    """A terminal that writes into a buffer; ``live`` says whether it takes that for a screen."""
    terminal, written = Terminal(), io.StringIO()
    terminal.console = Console(file=written, force_terminal=live, width=width, highlight=False, color_system=None)
    return terminal, written


def test_a_bar_tells_rate_and_remaining_time_by_the_steps_of_this_process(clock: SimpleNamespace) -> None:
    terminal, _ = terminal_of(live=True)
    with terminal.bar("training", 100, done=90) as bar:
        (task,) = bar.progress.tasks
        assert task.completed == 90
        clock.now += 10
        bar.advance(5, {"reward": 0.25}, {"accuracy": 0.5, "tokens/s": 12345.6})
        assert (task.completed, task.fields["rate"], task.fields["left"]) == (95, "0.50/s", "0:00:10 left")
        assert task.fields["figures"] == "reward 0.25  accuracy 0.5  tokens/s 12,346"


def test_remaining_time_does_not_forget_slow_steps() -> None:
    assert remaining(90, 0.01) == "2:30:00 left"
    assert remaining(3, 0.0) == ""
    assert shown({"a": 0.12345, "b": 1000.4, "c": -2000}) == "a 0.123  b 1,000  c -2,000"


def test_a_phase_gets_a_bar_below_the_runs_own_once_it_has_lasted_and_loses_it(clock: SimpleNamespace) -> None:
    terminal, _ = terminal_of(live=True)
    with terminal.bar("training", 10) as bar, watched_by(terminal):
        with within("evaluation"), progress("sampling", 1000, "tokens") as advance:
            phase = bar.progress.tasks[1]
            assert phase.description == "evaluation: sampling" and phase.total == 1000
            clock.now += 1.9
            advance(100)
            assert not phase.visible
            clock.now += 2.1
            advance(300, 50)  # rows that ended early are done without the work
            assert phase.visible and phase.completed == 400
            assert (phase.fields["rate"], phase.fields["left"]) == ("38 tokens/s", "0:00:06 left")
            clock.now += 0.01
            advance(100)
            assert phase.completed == 400  # not drawn anew at each token
        assert [task.description for task in bar.progress.tasks] == ["training"]


def test_without_a_terminal_phases_are_silent_and_steps_are_lines_now_and_then(clock: SimpleNamespace) -> None:
    terminal, written = terminal_of(live=False)
    with terminal.bar("training", 3) as bar, watched_by(terminal):
        with progress("teacher", 5, "rows") as advance:
            clock.now += 30
            advance(5)
        bar.advance(1, {"reward": 0.5}, {"tokens/s": 9.0})
        bar.advance(1, {"reward": 0.5})
        clock.now += 1
        bar.advance(1, {"reward": 0.25})
    assert written.getvalue() == "training 1/3  30 s  reward 0.5\ntraining 3/3  31 s  reward 0.25\n"


def test_a_silent_process_shows_nothing_even_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Terminal().is_live and not Terminal(speaks=False).is_live


def test_every_phase_of_a_step_says_how_far_it_is(cli, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, str, list[int]]] = []

    @contextmanager
    def phase(self: Terminal, what: str, total: int, unit: str) -> Iterator[Advance]:
        seen.append((what, total, unit, []))
        yield lambda done, counted=None: seen[-1][3].append(done)

    monkeypatch.setattr(Terminal, "phase", phase)
    monkeypatch.setenv("FORCE_COLOR", "1")
    outcome: Outcome = cli("train", small, f"run_dir={tmp_path / 'run'}", "max_steps=1")
    assert outcome.status == 0, outcome.err
    assert {what for what, *_ in seen} == {
        *("sampling", "teacher", "student"),
        *("evaluation: sampling", "evaluation: teacher", "evaluation: divergence"),
    }
    assert all(sum(done) == total > 0 for _, total, _, done in seen), seen
    assert ("sampling", 6 * 10, "tokens") in {(what, total, unit) for what, total, unit, _ in seen}  # 3 prompts, 2 rows, 10 tokens
    (metrics,) = rows_of(tmp_path / "run" / "metrics.jsonl")
    for said in ("training", f"reward {metrics['reward']:.3g}", f"divergence {metrics['divergence']:.3g}", "accuracy 0", "tokens/s "):
        assert said in outcome.out, said


def _shown_in(out: str) -> list[tuple[str, str, str]]:
    lines = out.splitlines()
    heads = [number for number, line in enumerate(lines) if line.startswith("step ") and " · " in line]
    return [(lines[n], lines[n + 1].removeprefix("  prompt      "), lines[n + 2].removeprefix("  completion  ")) for n in heads]


def test_completions_are_shown_with_reward_and_the_tasks_own_verdict(cli, arithmetic: Path, tmp_path: Path) -> None:
    (tmp_path / "length.py").write_text(
        "def length(prompts, completions, **columns):\n    return [float(len(text)) for text in completions]\n"
    )
    rewards = f"rewards=[{{path: reward_models.ArithmeticVerifier, weight: 3}}, {{path: '{tmp_path / 'length.py'}:length'}}]"
    settings = ["rollout.on_policy_share=1", "max_steps=3", "log_completions=12", "log_completions_every=2", "evaluation.teacher=false"]
    outcome: Outcome = cli("train", arithmetic, f"run_dir={tmp_path / 'run'}", rewards, *settings)
    assert outcome.status == 0, outcome.err
    expected = set()
    for row in rows_of(tmp_path / "run" / "rollouts.jsonl"):
        if row["step"] != 2:
            right, long = row["rewards"]["ArithmeticVerifier"], row["rewards"]["length"]
            said = f"reward {row['reward']:.3g} (ArithmeticVerifier {right:.3g}, length {long:.3g})"
            head = f"step {row['step']} · example {row['example']} · {said} · {'right' if right == 1 else 'wrong'}"
            expected.add((head, *(row[name].replace("\n", "\\n") for name in ("prompt", "completion"))))
    found = _shown_in(outcome.out)
    assert len(found) == 24 and set(found) == expected
    assert {head.rpartition(" · ")[2] for head, _, _ in found} == {"right", "wrong"}


def test_fewer_completions_are_evenly_spaced_and_rows_of_the_dataset_are_not_rewarded(cli, small: Path, tmp_path: Path) -> None:
    settings = ["rollout.on_policy_share=0", "objective.alpha=1", "rollout.max_new_tokens=100", "max_steps=1", "log_completions=2"]
    outcome: Outcome = cli("train", small, f"run_dir={tmp_path / 'run'}", *settings)
    assert outcome.status == 0, outcome.err
    keys = sorted({row["example"] for row in rows_of(tmp_path / "run" / "rollouts.jsonl")})
    heads = [head for head, _, _ in _shown_in(outcome.out)]
    assert len(heads) == 2 and len(keys) == 3
    assert all(head.startswith("step 1 · example ") and head.endswith(" · not rewarded") for head in heads)
    assert len(set(heads)) == 2


HOSTILE = f"[bold red]not markup[/] [/nothing]{ESCAPE}[2J{ESCAPE}]0;title\x07\r\x9b31m :smile: 数\nsecond line"


@pytest.mark.parametrize("live", [True, False])
def test_texts_of_models_neither_steer_the_terminal_nor_count_as_markup(live: bool) -> None:
    terminal, written = terminal_of(live)
    show(terminal, "step 1", {"prompt": "p", "completion": HOSTILE})
    said = written.getvalue()
    assert "[bold red]not markup[/] [/nothing]\\x1b[2J\\x1b]0;title\\x07\\r\\x9b31m :smile: 数" in said
    assert not {character for character in said if not character.isprintable() and character != "\n"} - ({ESCAPE} if live else set())
    assert f"{ESCAPE}[2J" not in said and f"{ESCAPE}]" not in said
    assert said.count("\n") == (4 if live else 3)  # the second line is one of the terminal's own, or written as \n


def test_long_texts_are_cut_and_chats_are_named() -> None:
    assert harmless("a" * (LONGEST + 1500)) == "a" * LONGEST + "... (1,500 more characters)"
    assert harmless("a" * LONGEST) == "a" * LONGEST
    assert as_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]) == "system: Be brief.\nuser: Why?"


@pytest.mark.parametrize(
    ("override", "said"),
    [("log_completions=-1", "log_completions is -1; it must be at least 0"), ("log_completions_every=0", "log_completions_every is 0")],
)
def test_numbers_that_cannot_be_are_refused(refused_run: Callable[..., str], override: str, said: str) -> None:
    assert said in refused_run(override)
