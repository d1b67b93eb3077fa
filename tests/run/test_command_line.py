"""Help and configuration errors: at once, in one line, and before anything heavy is imported."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WATCHED = """
import sys
from gkd_rl.cli import main
try:
    main(sys.argv[1:])
finally:
    print("\\nheavy:", *[name for name in ("torch", "transformers", "deepspeed") if name in sys.modules])
"""


@pytest.fixture
def quick(environment: dict[str, str]) -> Callable[..., tuple[int, str, str]]:
    """``quick(*arguments)``: status, output and error output of a command that must need neither torch nor two seconds of CPU."""

    def quick(*arguments: object) -> tuple[int, str, str]:
        before = _cpu_seconds()
        command = [sys.executable, "-c", WATCHED, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert _cpu_seconds() - before < 2
        said, _, heavy = done.stdout.rpartition("\nheavy:")
        assert heavy.strip() == ""
        return done.returncode, said, done.stderr

    return quick


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("command", [(), ("train",), ("evaluate",), ("sft",), ("ablate",), ("grade",), ("report",)])
def test_help_answers_at_once(quick, command: tuple[str, ...]) -> None:
    status, out, err = quick(*command, "--help")
    assert status == 0 and err == ""
    assert out.startswith("usage: gkd-rl")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "COMMAND"),
        (("trian", "x.yaml"), "'trian'"),
        (("train",), "CONFIG"),
        (("train", "absent.yaml"), "configuration file absent.yaml does not exist"),
        (("train", "SMALL", "--fast"), "--fast"),
        (("train", "SMALL", "objective.alpha=1.5"), "objective.alpha"),
        (("evaluate", "SMALL", "evaluation.sample=4"), "'evaluation.samples'"),
        (("sft", "SMALL", "sft.examples=0"), "sft.examples"),
        (("ablate", "SMALL"), "ablation.grid"),
        (("ablate", "SMALL", "ablation.grid={objective.alpha: [0, 2]}"), "objective.alpha"),
        (("ablate", "SMALL", "ablation.grid={objective.alfa: [0]}"), "'objective.alpha'"),
        (("grade", "absent.jsonl"), "absent.jsonl"),
    ],
)
def test_a_mistake_is_answered_at_once_in_one_line(quick, small: Path, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    given = [str(small) if word == "SMALL" else word for word in arguments]
    where = [f"run_dir={tmp_path / 'run'}"] if "SMALL" in arguments else []
    status, out, err = quick(*given, *where)
    assert status == 2
    assert out == ""
    assert err.startswith("gkd-rl: ") and err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "run").exists()
