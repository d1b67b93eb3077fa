"""Runs of a grid that share their first batch: all with the same seed begin with the same sampled answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gkd_rl.ablation.grid import Point
from gkd_rl.config.first_batch import first_batch_settings
from gkd_rl.config.load import with_overrides
from gkd_rl.config.run import Config
from gkd_rl.config.validate import validate
from gkd_rl.errors import UserError


def sharing(config: Config, points: Sequence[Point]) -> list[Point]:
    """The points, those with one seed with one file of the first step's answers, in a folder beside theirs.

    Raises ``UserError`` where points differ in a setting on which these answers depend, or have none sampled.
    """
    configs = [with_overrides(config, point.overrides) for point in points]
    settings = [{**first_batch_settings(one), "seed": None} for one in configs]
    for other in settings[1:]:
        for key, value in settings[0].items():
            if other[key] != value:
                raise UserError(
                    f"--share-rollouts: runs of the grid differ in {key} ({value} and {other[key]}), on which their first batch depends; "
                    "take it out of ablation.grid, or leave the option out"
                )
    shared = [replace(point, first_batch=f"../first-batches/seed-{point.seed}.pt") for point in points]
    validate(with_overrides(config, shared[0].overrides))
    return shared
