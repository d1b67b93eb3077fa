"""How the configurations of runs differ, from the defaults and from each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gkd_rl.config.run import Config

_APART = ("run_dir", "resume", "data_dir")
"""Keys that say where things are, not what was done."""


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → value; lists and empty mappings are values."""
    leaves: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def differences(configurations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows ``{key, default, values, between}`` for the keys that are not at their default in some run, or not the same in all.

    ``between`` says that runs differ on the key; such rows come first. Values are texts; None: the run has no such key. A key that a run
    of an earlier version does not have counts as at its default.
    """
    defaults = flat(asdict(Config()))
    given = [flat(configuration) for configuration in configurations]
    keys = [key for key in dict.fromkeys([*defaults, *(key for run in given for key in run)]) if key not in _APART]
    rows = []
    for key in keys:
        default = defaults.get(key)
        values = [run.get(key, default) for run in given]
        between = any(value != values[0] for value in values)
        if between or any(value != default for value in values):
            rows.append({"key": key, "default": _text(default), "values": [_text(value) for value in values], "between": between})
    return sorted(rows, key=lambda row: not row["between"])


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
