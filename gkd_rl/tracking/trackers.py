"""The trackers of a run: rows of ``metrics.jsonl``, evaluations, settings. Each step once, whatever befalls the run.

What each tracker was given is in ``RUN_DIR/trackers.json``, written before it is given: a process that is killed in between leaves
a gap of one step rather than the step twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gkd_rl.config.load import all_keys
from gkd_rl.config.run import Config
from gkd_rl.errors import UserError
from gkd_rl.run_folder import RunFolder
from gkd_rl.tracking.kinds import CONTINUES, REWINDS, identity, known_steps, started

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

STATE = "trackers.json"


class Trackers:
    """The configured trackers on the main process, which alone has the run's ``folder``; none on the others."""

    def __init__(self, config: Config, folder: RunFolder | None, say: Callable[[str], None]) -> None:
        self.config = config
        self.folder = folder
        self.say = say
        self._live: dict[str, GeneralTracker] = {}
        self._given: dict[str, dict[str, Any]] = {}
        """Of each tracker its ``run``, and the last steps whose ``figures`` and ``evaluation`` it was given."""

    def start(self, step: int, continued: bool) -> None:
        """Start all of them, ``step`` steps being done; those that lack rows of ``metrics.jsonl`` are given them.

        Raises ``UserError`` where one cannot be started; but a run that goes on (``continued``) does without it, and says so.
        """
        if self.folder is None or not self.config.trackers:
            return
        path = self.folder.path / STATE
        self._given = json.loads(path.read_text()) if path.exists() else {}
        for kind in self.config.trackers:
            self._begin(kind, step, continued)
        self._keep()
        for row in self.folder.rows("metrics.jsonl"):
            self.log_figures(row)

    def _begin(self, kind: str, step: int, continued: bool) -> None:
        before = self._given.get(kind) if kind in CONTINUES else None
        given = {"run": None, "figures": 0, "evaluation": -1} if before is None else dict(before)
        forget = None
        if kind in REWINDS and before is not None:
            forget = step + 1 if step else 0
            given |= {name: min(given[name], forget - 1) for name in ("figures", "evaluation")}
        try:
            tracker = started(kind, self.config, given["run"], forget)
            if before is None:
                tracker.store_init_configuration(hyper_parameters(self.config))
        except Exception as error:
            if not continued:
                assert self.folder is not None
                self.folder.abandon()
                raise UserError(
                    f"trackers: {kind} cannot be started ({_reason(error)}); see tracking.options.{kind}, or leave it out of trackers"
                ) from error
            self._lose(kind, error)
            return
        if (known := known_steps(kind, tracker)) is not None:
            given |= {"figures": known, "evaluation": known}
        self._live[kind] = tracker
        self._given[kind] = {**given, "run": identity(kind, tracker)}

    def log_figures(self, row: Mapping[str, Any]) -> None:
        """A row of ``metrics.jsonl``: ``eval_NAME`` becomes ``eval/NAME``, anything else ``train/NAME``."""
        named = {f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}": row[name] for name in row if name != "step"}
        self._give("figures", row["step"], named)

    def log_evaluation(self, step: int, figures: Mapping[str, Any]) -> None:
        """An evaluation that has no row of its own: before the first step, or after the last."""
        self._give("evaluation", step, {f"eval/{name}": value for name, value in figures.items()})

    def _give(self, what: str, step: int, values: Mapping[str, Any]) -> None:
        due = [kind for kind in self._live if self._given[kind][what] < step]
        if not due:
            return
        for kind in due:
            self._given[kind][what] = step
        self._keep()
        finite = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        for kind in due:
            self._attempt(kind, lambda tracker: tracker.log(finite, step=step))

    def _keep(self) -> None:
        assert self.folder is not None, "the other processes have no trackers"
        self.folder.write(STATE, json.dumps(self._given, indent=2))

    def finish(self) -> None:
        """Have them write what they hold back, and let go of them."""
        for kind in list(self._live):
            self._attempt(kind, lambda tracker: tracker.finish())
        self._live = {}

    def _attempt(self, kind: str, work: Callable[[GeneralTracker], None]) -> None:
        try:
            work(self._live[kind])
        except Exception as error:
            del self._live[kind]
            self._lose(kind, error)

    def _lose(self, kind: str, error: Exception) -> None:
        self.say(f"tracker {kind} failed ({_reason(error)}): the run goes on without it; metrics.jsonl has everything")


def hyper_parameters(config: Config) -> dict[str, bool | int | float | str]:
    """Dotted key → value of the whole configuration but for the trackers' own; what is no single value is JSON."""
    from omegaconf import OmegaConf

    whole: Any = OmegaConf.to_container(OmegaConf.structured(config))
    sections = {key.rpartition(".")[0] for key in all_keys()}
    leaves = [key for key in all_keys() if key not in sections and key.split(".")[0] not in ("trackers", "tracking")]
    return {key: _plain(_at(whole, key)) for key in leaves}


def _at(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings[part]
    return settings


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value, ensure_ascii=False)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
