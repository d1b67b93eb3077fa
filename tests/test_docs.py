"""What README and documentation tell a reader to type is understood, and the reference names every key."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gkd_rl.cli import _parse
from gkd_rl.config.load import all_keys, load_config
from gkd_rl.config.run import Config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = {key.split(".")[0] for key in all_keys()}


def _blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def _commands() -> list[tuple[str, str]]:
    """Every line that calls the command line, by the module too, with continuation lines joined."""
    found = []
    for page in PAGES:
        for block in _blocks(page, "bash", "sh", "console", ""):
            for line in block.replace("\\\n", " ").splitlines():
                match = re.search(r"(?:^|\s)(?:gkd-rl|-m gkd_rl|--module gkd_rl) (.+)", line.split("#")[0].lstrip("$ "))
                if match and not line.startswith(("│", " ")):
                    found.append((page.name, match.group(1).strip()))
    return found


@pytest.mark.parametrize(("page", "command"), _commands())
def test_commands_are_understood(page: str, command: str):
    words = shlex.split(command.split(" && ")[0])
    parsed = _parse([word for word in words if word != "..."])
    config = getattr(parsed, "config", None)
    if config is not None and Path(config).suffix == ".yaml" and config.startswith("configs/"):
        assert (ROOT / config).is_file(), f"{page} names {config}"


def _settings() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in _blocks(page, "yaml"):
            content = yaml.safe_load(block)
            if isinstance(content, dict) and set(content) <= SECTIONS:
                found.append((page.name, block))
    return found


@pytest.mark.parametrize(("page", "block"), _settings())
def test_settings_have_keys_and_types_that_exist(page: str, block: str, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(block)
    assert isinstance(load_config(path), Config), page


def test_there_is_something_to_look_at():
    assert len(_commands()) > 15 and len(_settings()) > 15


def test_the_reference_names_every_key_with_its_default():
    printed = subprocess.run([sys.executable, ROOT / "scripts" / "docs_pages.py"], capture_output=True, text=True, check=True).stdout
    for key in all_keys():
        name = key.rpartition(".")[-1]
        assert f"| `{name}` |" in printed or f"## {key}\n" in printed, key
    assert "| `seed` | `int` | `0` | Seed of data order" in printed and "| `resume` | `str` | `never` |" in printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://")) and target not in ("configuration.md",):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
