"""What README and documentation show is understood, also where it cannot run here: commands, settings, Python, links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from pages import PAGES, ROOT, SHELL, blocks, lines

from gkd_rl.cli import _parse
from gkd_rl.config.load import all_keys, load_config
from gkd_rl.config.validate import validate

ALL = [*PAGES, ROOT / "CONTRIBUTING.md"]
SECTIONS = {key.split(".")[0] for key in all_keys()}
MADE = ("configuration.md",)
"""Pages that are made with the site."""


def _prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def _commands() -> list[tuple[str, str]]:
    """Every line that calls the command line, by the module too; those of printed output as well."""
    found = []
    for page in ALL:
        typed = [command for block in blocks(page) if block.language in SHELL for command, _ in lines(block)]
        shown = [
            line for block in blocks(page) if block.language == "" for line in block.text.splitlines() if not line.startswith((" ", "│"))
        ]
        for line in (*typed, *shown):
            match = re.search(r"(?:^|\s)(?:gkd-rl|-m gkd_rl|--module gkd_rl) (.+)", line)
            if match:
                found.append((page.name, re.split(r" (?:&&|\||>) ", re.split(r"\s#|\s{2,}", match.group(1))[0])[0]))
    return found


@pytest.mark.parametrize(("page", "command"), _commands())
def test_commands_are_understood(page: str, command: str):
    parsed = _parse([word for word in shlex.split(command) if word != "..."])
    config = getattr(parsed, "config", None)
    if config is not None and Path(config).suffix == ".yaml" and config.startswith("configs/"):
        assert (ROOT / config).is_file(), f"{page} names {config}"


def _in_prose() -> list[tuple[str, str]]:
    return [(page.name, command) for page in ALL for command in re.findall(r"`gkd-rl ([^`]+)`", _prose(page))]


@pytest.mark.parametrize(("page", "command"), _in_prose())
def test_commands_in_prose_are_understood(page: str, command: str, capsys: pytest.CaptureFixture[str]):
    words = [word for word in shlex.split(command) if word != "..."]
    if len(words) > 1 and "--help" not in words:
        _parse(words)
    else:  # only mentioned
        with pytest.raises(SystemExit) as leaving:
            _parse([*words, "--help"])
        assert leaving.value.code == 0, capsys.readouterr().err


def _settings() -> list[tuple[str, str]]:
    """Blocks of settings, by themselves or over a configuration of this repository."""
    found = []
    for page in ALL:
        for block in blocks(page):
            content = yaml.safe_load(block.text) if block.language == "yaml" else None
            if isinstance(content, dict) and set(content) <= {"base", *SECTIONS} and content.get("base", "configs/").startswith("configs/"):
                found.append((page.name, block.text))
    return found


@pytest.mark.parametrize(("page", "block"), _settings())
def test_settings_are_not_refused(page: str, block: str, tmp_path: Path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "config.yaml").write_text(block)
    validate(load_config(tmp_path / "config.yaml"))


def test_there_is_something_to_look_at():
    assert len(_commands()) > 15 and len(_settings()) > 15


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_compiles(page: Path):
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, str(page), "exec")


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith(("http://", "https://")) and Path(target).name not in MADE:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    prose = _prose(page)
    named = set(re.findall(r"^\[([\w-]+)\]: ", prose, flags=re.MULTILINE))
    used = set(re.findall(r"\]\[([\w-]+)\]", prose))
    assert used == named, f"{page.name}: sources without a name or a use: {used ^ named}"
