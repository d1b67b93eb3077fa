"""A run's folder as a page shows it: everything at first, then what was added since."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from gkd_rl.config.load import load_config
from gkd_rl.config.run import Config
from gkd_rl.errors import UserError
from gkd_rl.report.chunks import chunks, packed
from gkd_rl.report.logs import columns, new_rows
from gkd_rl.report.words import UNMADE, TokenTexts, reading_of, token_ids, verifier_of
from gkd_rl.run_folder import LOGS

ANSWERS = ("evaluation-before.jsonl", "evaluation-after.jsonl")
"""Greedy answers to the held-out examples, each file written at once."""
_LOADS = ("padding_share", "buffer_mib")
"""Columns of ``timings.jsonl`` that are no seconds."""


class RunReader:
    """Reads one run. What cannot be had any more (tokenizer, task) is left out and said in ``notes``.

    Raises ``UserError`` if the folder holds no run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = _settings(folder)
        self.notes: list[str] = []
        self.asked: dict[int, Any] = {}
        """Prompts of the held-out examples that have been read with the first of ``ANSWERS``."""
        config = self._config()
        self.texts = None if config is None else self._or_note("tokens are shown by their numbers", lambda: TokenTexts(folder, config))
        self.verifier = None if config is None else self._or_note("the verifier's reading is left out", lambda: verifier_of(config))

    def _config(self) -> Config | None:
        return self._or_note("configuration of another version", lambda: load_config(self.folder / "config.yaml"))

    def _or_note(self, what: str, make: Any) -> Any:
        try:
            return make()
        except UNMADE as error:
            self.notes.append(f"{what}: {error}")
            return None

    def read(self, positions: Mapping[str, int]) -> dict[str, Any]:
        """What the run's files hold beyond ``positions`` (byte offsets by log; empty: everything), with the ``positions`` after it."""
        after = {name: positions.get(name, 0) for name in (*LOGS, *ANSWERS)}
        metrics = list(self._rows("metrics.jsonl", after))
        timings = list(self._rows("timings.jsonl", after))
        loads = {row["step"]: {name: row[name] for name in _LOADS if name in row} for row in timings}
        summary = self._small("summary.json")
        return {
            "name": self.folder.name or str(self.folder.resolve().name),
            "folder": str(self.folder),
            "max_steps": self.settings.get("max_steps"),
            "alpha": (self.settings.get("objective") or {}).get("alpha"),
            "evaluated": (self.settings.get("evaluation") or {}).get("during_examples"),
            "metrics": columns([{**row, **loads.get(row["step"], {})} for row in metrics]),
            "flops": {name: sum(row.get(name) or 0.0 for row in metrics) for name in _FLOPS},
            "phases": {name: value for name, value in timings[-1].items() if name not in (*_LOADS, "step")} if timings else None,
            "watch": list(self._rows("watch.jsonl", after)),
            "summary": summary,
            "environment": self._small("environment.json"),
            "notes": self.notes,
            "answers": self._answers(after),
            **self._rollouts(after),
            "positions": after,
        }

    def restarted(self, positions: Mapping[str, int]) -> bool:
        """Whether a log is shorter than it was: the run was resumed from an earlier step, or begun anew."""
        return any((path := self.folder / name).is_file() and path.stat().st_size < size for name, size in positions.items())

    def _rollouts(self, after: dict[str, int]) -> dict[str, Any]:
        found, ids, sample = [], set(), []
        for chunk, rows in chunks(self._rows("rollouts.jsonl", after), lambda row: reading_of(self.verifier, row)):
            found.append(chunk)
            ids |= token_ids(rows)
            sample += [value for row in rows[::7] for value in row["divergence"] if value is not None and value > 1e-3]
        sample.sort()
        tokens = {} if self.texts is None else self.texts.of(sorted(ids))
        return {"chunks": found, "tokens": tokens, "scale": sample[int(0.95 * len(sample))] if sample else None}

    def _answers(self, after: dict[str, int]) -> dict[str, str]:
        """``before`` and ``after``, those that are new, packed; a prompt that came with the first is not repeated."""
        found = {}
        for when, name in zip(("before", "after"), ANSWERS, strict=True):
            rows = list(self._rows(name, after))
            if when == "before":
                self.asked |= {row["example"]: row.get("prompt") for row in rows}
            elif rows:
                rows = [_without_prompt(row) if self.asked.get(row["example"]) == row.get("prompt") else row for row in rows]
            if rows:
                found[when] = packed(rows)
        return found

    def _rows(self, name: str, after: dict[str, int]) -> Iterator[dict[str, Any]]:
        for row, position in new_rows(self.folder / name, after[name]):
            after[name] = position
            yield row

    def _small(self, name: str) -> Any:
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{path} is not readable as JSON; restore it, or remove it") from None


def _without_prompt(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("prompt", "reference")}


_FLOPS = ("flops_generation", "flops_teacher", "flops_student")


def _settings(folder: Path) -> dict[str, Any]:
    """The run's configuration as it was written, of whatever version."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} holds no run (there is no config.yaml in it); give the run_dir of a training")
    try:
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, UnicodeDecodeError):
        raise UserError(f"{path} is not readable as YAML; restore it") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no mapping of keys to values; restore it")
    return {str(key): value for key, value in settings.items()}
