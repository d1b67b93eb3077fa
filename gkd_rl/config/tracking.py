"""Trackers beside ``metrics.jsonl``: which ones, under what names. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from gkd_rl.errors import UserError

PACKAGES = {
    "tensorboard": ("tensorboard", "'gkd-rl[tensorboard]'"),
    "wandb": ("wandb", "'gkd-rl[wandb]'"),
    "mlflow": ("mlflow", "'gkd-rl[mlflow]'"),
    "trackio": ("trackio", "'gkd-rl[trackio]'"),
    "aim": ("aim", "aim"),
    "clearml": ("clearml", "clearml"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dvclive": ("dvclive", "dvclive"),
    "swanlab": ("swanlab", "swanlab"),
}
"""Tracker → the module that it is, and what pip installs it by."""


@dataclass
class TrackingConfig:
    """What the run is called in the trackers named in ``trackers``, and how they are started."""

    project: str = "gkd-rl"
    """Project or experiment that the run belongs to (TensorBoard has none)."""
    name: str | None = None
    """Name of the run; by default the last part of ``run_dir``."""
    options: dict[str, Any] = field(default_factory=dict)
    """Tracker → keyword arguments with which Accelerate's class for it is made, as in ``{wandb: {entity: TEAM, mode: offline}}``."""


def tracking_complaints(trackers: Sequence[str], tracking: TrackingConfig) -> Iterator[str]:
    """A sentence for each tracker that there is none of, and for options that nothing would come of."""
    for name in trackers:
        if name not in PACKAGES:
            near = difflib.get_close_matches(name, PACKAGES, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(PACKAGES)}"
            yield f"trackers names '{name}', which is none that Accelerate has; {hint}"
    if len(set(trackers)) < len(trackers):
        yield f"trackers names one twice ({', '.join(trackers)}); leave one out"
    if not tracking.project:
        yield "tracking.project is empty; give it a name"
    for name, options in tracking.options.items():
        if name not in trackers:
            yield f"tracking.options.{name} is set and trackers does not name {name}; add it there, or drop the options"
        elif not isinstance(options, dict):
            yield f"tracking.options.{name} is {options!r}; it must be a mapping of keyword arguments"


def require_trackers(trackers: Sequence[str]) -> None:
    """Raise ``UserError`` for the first tracker that is not installed."""
    for name in trackers:
        module, package = PACKAGES[name]
        if find_spec(module) is None:
            raise UserError(f"trackers names {name}, which is not installed; pip install {package}, or leave it out of trackers")
