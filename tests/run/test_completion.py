"""Completion in a real bash: its function is called, and an interactive shell is typed into."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gkd_rl.completion import keys_and_choices
from gkd_rl.config.load import all_keys, load_config
from gkd_rl.config.run import Config

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="there is no bash")
CONFIG = "configs/arithmetic.yaml"


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The printed scripts, by shell."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run([sys.executable, "-m", "gkd_rl", "completion", shell], capture_output=True, text=True, check=True)
        (folder / shell).write_text(done.stdout)
    return {shell: folder / shell for shell in ("bash", "zsh", "fish")}


@pytest.fixture(scope="module")
def completed(scripts: dict[str, Path]) -> Callable[..., list[str]]:
    """``completed(*words)``: what bash offers for the last of the words, as readline has parted them."""

    def completed(*words: str) -> list[str]:
        calling = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _gkd_rl gkd-rl; printf "%s\\n" "${COMPREPLY[@]}"'
        command = [str(BASH), "--norc", "-c", calling, "bash", str(scripts["bash"]), "gkd-rl", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    return completed


def test_commands_options_and_their_choices(completed: Callable[..., list[str]]) -> None:
    assert completed("tr") == ["train"] and completed("re") == ["reward-model", "report"]
    assert {"init", "train", "grade", "completion"} <= set(completed(""))
    assert completed("train", "--f") == ["--flops-per-second"]
    assert completed("train", CONFIG, "--dr") == ["--dry-run"]
    assert completed("init", "--task", "g") == ["gsm8k"]
    assert completed("completion", "") == ["bash", "zsh", "fish"]


def test_yaml_files_and_folders(completed: Callable[..., list[str]]) -> None:
    assert completed("train", "configs/arith") == [CONFIG]
    assert completed("train", "pyp") == []  # pyproject.toml is no configuration
    assert completed("export", "run", "--out", "doc") == ["docs"]


def test_keys_stand_for_overrides_of_their_own_command(completed: Callable[..., list[str]]) -> None:
    assert completed("train", CONFIG, "objective.alpha") == [f"{key}=" for key, _ in keys_and_choices(Config) if "objective.alpha" in key]
    assert completed("sft", CONFIG, "seed", "=", "3", "--x", "sft.l") == ["sft.lr="]
    assert completed("reward-model", "x.yaml", "preferences.tr") == ["preferences.train="]
    assert completed("train", CONFIG, "preferences.tr") == []


def test_values_that_a_key_can_have(completed: Callable[..., list[str]]) -> None:
    assert completed("train", CONFIG, "objective.divergence.kind", "=", "rev") == ["reverse_kl"]
    assert completed("train", CONFIG, "rollout.overlap", "=") == ["true", "false"]
    assert completed("train", CONFIG, "resume", "=", "") == ["never", "auto", "new"]
    assert completed("train", CONFIG, "student.path", "=", "READ") == ["README.md"]


def test_every_key_and_every_choice_is_one_that_a_configuration_takes(tmp_path: Path) -> None:
    found = dict(keys_and_choices(Config))
    keys = set(all_keys())
    assert set(found) == {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    (tmp_path / "empty.yaml").write_text("{}\n")
    values = [f"{key}={value}" for key, choices in found.items() for value in choices]
    assert len(values) > 40
    for number in range(max(len(choices) for choices in found.values())):
        load_config(tmp_path / "empty.yaml", [f"{key}={choices[number % len(choices)]}" for key, choices in found.items() if choices])


@pytest.fixture
def typed(scripts: dict[str, Path]) -> Iterator[Callable[[str], str]]:
    """``typed(keys)``: the line that an interactive bash hands to ``gkd-rl`` once these keys and a return were pressed."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execve(str(BASH), ["bash", "--norc", "--noprofile", "-i"], {**os.environ, "PS1": "", "TERM": "dumb", "INPUTRC": "/dev/null"})

    def until(mark: str) -> str:
        said, deadline = "", time.monotonic() + 60
        while mark not in said:
            assert time.monotonic() < deadline, said
            if select.select([terminal], [], [], 0.2)[0]:
                said += os.read(terminal, 65536).decode()
        return said

    def typed(keys: str) -> str:
        os.write(terminal, f"{keys}\n".encode())
        return until("]end\r\n").rpartition("begin[")[2].partition("]end")[0]

    setup = f"source {scripts['bash']}; gkd-rl() {{ printf 'beg''in[%s]e''nd\\n' \"$*\"; }}; echo rea''dy\n"
    os.write(terminal, setup.encode())
    until("ready")
    yield typed
    os.close(terminal)
    os.waitpid(child, 0)


def test_an_interactive_shell_completes_a_whole_line(typed: Callable[[str], str]) -> None:
    line = typed("gkd-rl tra\tconfigs/arith\tobjective.divergence.ki\trev\t--dry\t")
    assert line == f"train {CONFIG} objective.divergence.kind=reverse_kl --dry-run"


def test_scripts_of_other_shells_hold_commands_and_keys(scripts: dict[str, Path]) -> None:
    for shell in ("zsh", "fish"):
        text = scripts[shell].read_text()
        assert "objective.alpha=" in text and "'objective.divergence.kind=reverse_kl'" in text and "cache-teacher" in text
