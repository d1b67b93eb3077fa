"""What ``gkd-rl check`` says, by the names of its lines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench import Outcome

Lines = dict[str, dict[str, Any]]


def lines_of(outcome: Outcome) -> Lines:
    """Name → line of a report in JSON, whose exit status has to fit it."""
    made = json.loads(outcome.out)
    lines = {line["name"]: line for line in made["checks"]}
    assert len(lines) == len(made["checks"])
    assert outcome.status == int(any(line["status"] == "fail" for line in made["checks"])), outcome
    return lines


def not_passed(lines: Lines) -> dict[str, str]:
    """Name → status of what neither passed nor had nothing to check."""
    return {name: line["status"] for name, line in lines.items() if line["status"] in ("warn", "fail")}


def with_words(folder: Path, made: Path, change: Callable[[dict[str, Any]], None], name: str = "tokenizer_config.json") -> Path:
    """A copy of a model's folder at ``made`` with one of its JSON files changed."""
    shutil.copytree(folder, made)
    settings = json.loads((made / name).read_text())
    change(settings)
    (made / name).write_text(json.dumps(settings))
    return made


def with_rows(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Overrides that put ``rows`` in the place of the task's."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = f"{{train: {path}, held_out_rows: 4, prompt: question, completion: answer, reference: answer}}"
    return ["task.path=gkd_rl.tasks.custom.CustomTask", f"task.options={options}", "rewards=[{path: reward_models.ArithmeticVerifier}]"]
