"""``--help`` of every command says what it is for and shows examples; each of them is understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gkd_rl.arguments import build_parser
from gkd_rl.cli import _RUN, _parse
from gkd_rl.config.load import all_keys, load_as, load_config
from gkd_rl.config.reward_model import RewardModelConfig
from gkd_rl.config.run import Config
from gkd_rl.config.validate import validate
from gkd_rl.help_texts import COMMANDS, WHOLE, Help

ROOT = Path(__file__).resolve().parents[2]
WITH_STAND_INS = ("DATA", "CHECKPOINT", "student.path=A", "MODEL")
"""Examples with these name what only a user has."""


def _examples(text: Help) -> list[list[str]]:
    lines = text.examples.strip("\n").splitlines()
    assert all(line.startswith("  ") and len(line) <= 130 for line in lines), lines
    return [shlex.split(line, comments=True) for line in lines]


def _every_example() -> list[tuple[str, list[str]]]:
    return [(name, words) for name, text in {"": WHOLE, **COMMANDS}.items() for words in _examples(text)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_is_for_and_shows_two_examples_or_three(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parse([name, "--help"])
    said = capsys.readouterr().out
    text = COMMANDS[name]
    assert " ".join(text.purpose.split()) in " ".join(said.split()) and len(text.purpose) > 80 and text.purpose.endswith(".")
    assert 2 <= len(_examples(text)) <= 4
    assert all(line in said for line in text.examples.strip("\n").splitlines())
    if name not in ("sft", "reward-model", "completion"):  # these have no options
        assert "options:\n" in said
    assert sum(words[:2] == ["gkd-rl", name] for words in _examples(text)) >= 2 or name == "sft"


@pytest.mark.parametrize(("name", "words"), _every_example(), ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_examples_are_understood(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = words[: words.index(">")] if ">" in words else words
    start = words.index("gkd-rl") if "gkd-rl" in words else words.index("gkd_rl")
    parsed = _parse(words[start + 1 :])
    if not hasattr(parsed, "config") or parsed.config == "mine.yaml":
        return
    assert (ROOT / parsed.config).is_file()
    if "reward-model" in words:
        load_as(RewardModelConfig, parsed.config, parsed.overrides)
        return
    config = load_config(parsed.config, parsed.overrides)
    if not any(stand_in in word for word in words for stand_in in WITH_STAND_INS) and name != "cache-teacher":
        validate(config)


def test_every_command_has_help_and_every_help_a_command() -> None:
    assert list(COMMANDS) == list(_RUN)
    build_parser(_RUN)


@pytest.mark.parametrize("name", [name for name, text in COMMANDS.items() if text.keys])
def test_keys_that_the_help_names_exist_and_so_do_their_defaults(name: str) -> None:
    cls = RewardModelConfig if name == "reward-model" else Config
    named = re.findall(r"\b[a-z_]+(?:\.[a-z_]+)+\b", COMMANDS[name].keys)
    known = set(all_keys(cls))
    assert [key for key in named if key not in known and not key.endswith(".md")] == []
    assert named or name == "check"
    if name == "sft":
        settings = Config().sft
        assert (settings.examples, settings.epochs, settings.batch_size, settings.lr) == (2000, 10, 64, 2e-3)
