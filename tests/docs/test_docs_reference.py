"""The reference, made from the data classes, names every key with its default."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gkd_rl.config.load import all_keys

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_names_every_key_with_its_default():
    printed = subprocess.run([sys.executable, ROOT / "scripts" / "docs_pages.py"], capture_output=True, text=True, check=True).stdout
    for key in all_keys():
        name = key.rpartition(".")[-1]
        assert f"| `{name}` |" in printed or f"## {key}\n" in printed, key
    assert "| `seed` | `int` | `0` | Seed of data order" in printed and "| `resume` | `str` | `never` |" in printed
