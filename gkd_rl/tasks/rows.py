"""What the tasks over rows of data have in common: training and held-out rows, each made into an example when it is asked for."""

from __future__ import annotations

import string
from collections.abc import Sequence

from gkd_rl.config.run import RewardConfig
from gkd_rl.errors import UserError
from gkd_rl.tasks.sources import Row
from gkd_rl.types import Example


class RowTask:
    """A task over rows. Each task says in ``example`` what a row asks, and in ``default_rewards`` how answers are judged."""

    metrics: tuple[str, ...] = ()
    """Names of corpus metrics (``gkd_rl.evaluation.metrics``) by which it is evaluated beside its rewards."""
    notes: tuple[str, ...] = ()
    """Sentences about the data that a run says at its start."""
    cut: str | None = None
    """Column whose text stands in the prompt and may be cut at its end where ``task.long_prompts=truncate``."""

    def __init__(self, train: Sequence[Row], test: Sequence[Row]) -> None:
        self.train, self.test = train, test

    @property
    def train_size(self) -> int | None:
        return len(self.train)

    def train_example(self, index: int) -> Example:
        return self.example(self.train[index], index)

    def held_out(self, count: int) -> list[Example]:
        return [self.example(row, key) for key, row in enumerate(self.test[:count])]

    def default_rewards(self) -> list[RewardConfig]:
        return [RewardConfig(path="reward_models.TextMetric", name="rouge2", options={"metric": "rouge2"})]

    def example(self, row: Row, key: int) -> Example:
        """What ``row`` asks and answers. Raises ``UserError`` for a row that lacks something."""
        raise NotImplementedError


def template_names(template: str, option: str = "template") -> list[str]:
    """The ``{names}`` in a template. Raises ``UserError`` for what is none."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"task.options.{option} is {template!r}, no template ({error}); write braces that are text as {{{{ and }}}}"
        ) from None


def check_template(template: str, names: Sequence[str], option: str = "template") -> str:
    """``template``. Raises ``UserError`` for one that is no template, names something else than ``names``, or lacks the first of them."""
    used = template_names(template, option)
    for name in used:
        if name not in names:
            raise UserError(f"task.options.{option} names {{{name}}}, and there is {', '.join(f'{{{known}}}' for known in names)}")
    if names[0] not in used:
        raise UserError(f"task.options.{option} does not name {{{names[0]}}}, so that the prompt would not hold it; put it in")
    return template
