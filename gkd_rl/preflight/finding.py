"""What a check finds, and how checks are run: one that raises has failed, with its sentence, and the others go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gkd_rl.errors import UserError
from reward_models.errors import InputError, RewardError

Status = Literal["pass", "warn", "fail", "skip"]


class Unavailable(Exception):
    """A check needs something that another one could not get, and said why."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    status: Status
    """``skip``: the run has nothing that it is about, or what it needs could not be had"""
    detail: str
    fix: str = ""
    """what to do about it; empty where nothing has to be done"""


@dataclass(frozen=True)
class Checked:
    """One line of the report."""

    name: str
    status: Status
    detail: str
    fix: str
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """A name and what finds out."""

    name: str
    look: Callable[[], Finding]


def run_check(check: Check) -> Checked:
    """The check's finding; what it raises is a failure: of a sentence for users the last part, after a semicolon, says what to do."""
    started = time.perf_counter()
    try:
        found = check.look()
    except Unavailable as missing:
        found = Finding("skip", f"needs {missing}, which could not be had: see above")
    except (UserError, InputError, RewardError) as error:
        what, _, fix = str(error).rpartition("; ")
        found = Finding("fail", what, fix) if what else Finding("fail", fix, "mend what this names")
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        found = Finding("fail", f"{type(error).__name__}: {said}", "gkd-rl train stops here too, and says where in the code")
    return Checked(check.name, found.status, found.detail, found.fix, round(time.perf_counter() - started, 3))


def failed(checked: Sequence[Checked]) -> bool:
    """Whether any check failed."""
    return any(line.status == "fail" for line in checked)


def worst(findings: Sequence[Finding]) -> Finding:
    """One finding of several about one thing: the worst status, and what those with that status say."""
    order: tuple[Status, ...] = ("fail", "warn", "pass", "skip")
    status: Status = next(one for one in order if any(finding.status == one for finding in findings))
    said = [finding for finding in findings if finding.status == status]
    return Finding(status, "; ".join(one.detail for one in said), "; ".join(dict.fromkeys(one.fix for one in said if one.fix)))
