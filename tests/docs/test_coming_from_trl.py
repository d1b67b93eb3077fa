"""The page for those who come from TRL names settings that exist on both sides, with TRL's defaults."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from trl import DistillationConfig, GRPOConfig
from trl.experimental.gkd import GKDConfig

from gkd_rl.config.load import all_keys
from gkd_rl.config.objective import CorrectionConfig
from gkd_rl.config.run import RewardConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "coming-from-trl.md").read_text()
CONFIGS = {"DistillationConfig": DistillationConfig, "GKDConfig": GKDConfig, "GRPOConfig": GRPOConfig}
OURS = {*all_keys(), *(f"rewards[i].{item.name}" for item in dataclasses.fields(RewardConfig))}


def _rows(name: str) -> list[list[str]]:
    """Cells of the table whose first column is that class."""
    table = PAGE.split(f"| `{name}` | here | differs |\n|---|---|---|\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_of_trl_have_these_names_and_defaults(name: str):
    fields = {item.name: item for item in dataclasses.fields(CONFIGS[name])}
    named = [pair for row in _rows(name) for pair in re.findall(r"`(\w+)` \((.*?)\)", row[0])]
    assert len(named) > 6
    for key, default in named:
        assert key in fields, f"{name} has no {key}"
        assert fields[key].default == eval(default, {}), f"{name}.{key} is {fields[key].default!r} by default"


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_of_ours_exist(name: str):
    correction = {f"objective.surrogate.correction.{item.name}" for item in dataclasses.fields(CorrectionConfig)}
    for row in _rows(name):
        for key in re.findall(r"`([\w.\[\]]+)`", row[1]):
            assert key in OURS | correction, key
