"""What grading a file found: counts, accuracy with its interval, failures, and pass@k where prompts have several completions."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from reward_models.quantity import spelled
from reward_models.statistics import pass_at_k, wilson_interval

if TYPE_CHECKING:
    from rich.table import Table

    from reward_models.arithmetic import Verdict

_EXAMPLES = 3
_TAIL = 200
_SHORT = 30


@dataclass(frozen=True)
class Example:
    """A failure: where it stands, what was expected, what was read, and the end of the completion."""

    where: str
    reference: str
    read: str
    completion_end: str

    def __str__(self) -> str:
        found = f"read {self.read!r}" if self.read else f"ends in {self.completion_end[-_SHORT:]!r}"
        return f"{self.where}: {found}, reference {self.reference[-_SHORT:]!r}"


@dataclass
class Failures:
    """Failures of one kind: how many, and the first few."""

    count: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass
class PromptTally:
    """The completions of one prompt: how many, how many of them right, and the votes for each answer with its verdict."""

    samples: int = 0
    right: int = 0
    votes: Counter[str] = field(default_factory=Counter)
    right_votes: set[str] = field(default_factory=set)

    def add(self, verdict: "Verdict") -> None:
        """Count one completion; one without an answer has no vote."""
        right = verdict.status == "correct"
        self.samples += 1
        self.right += right
        answer = str(verdict.value) if verdict.value is not None else verdict.read
        if verdict.status != "no_answer":
            self.votes[answer] += 1
            self.right_votes |= {answer} if right else set()

    def majority_right(self) -> bool:
        """Whether the answer with the most votes is right; of equal ones the first given wins."""
        return bool(self.votes) and self.votes.most_common(1)[0][0] in self.right_votes


@dataclass(frozen=True)
class GradeReport:
    """The outcome of grading a file. `n` counts completions; accuracy is over those whose reference can be read."""

    file: str
    n: int
    correct: int
    wrong: int
    no_answer: int
    bad_reference: int
    accuracy: float | None
    """correct / (n − bad_reference); None where no reference can be read."""
    interval: tuple[float, float] | None
    """95% Wilson interval of the accuracy."""
    failures: dict[str, Failures]
    """By kind, the commonest first."""
    steps: int | None = None
    """Calculations in the completions, where steps are checked; else None, like the next."""
    right_steps: int | None = None
    prompts: int | None = None
    """Prompts with a readable reference, where completions are grouped by prompt; else None, like the next two."""
    pass_at_k: dict[int, float] | None = None
    majority_vote: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)

    def table(self) -> "Table":
        """Return the report as a rich table."""
        from rich.table import Table
        from rich.text import Text

        table = Table("", "", title=f"Graded {self.file}", show_header=False, title_justify="left")
        for name, value in self._lines():
            table.add_row(name, Text(value))
        for kind, failures in self.failures.items():
            table.add_row(f"  {kind}", Text("\n".join([str(failures.count), *map(str, failures.examples)])))
        return table

    def _lines(self) -> Iterator[tuple[str, str]]:
        if self.accuracy is None or self.interval is None:
            yield "accuracy", "– (no reference can be read)"
        else:
            low, high = self.interval
            yield "accuracy", f"{self.accuracy:.1%} (95% interval {low:.1%} to {high:.1%})"
        yield "completions", str(self.n)
        for status in ("correct", "wrong", "no_answer", "bad_reference"):
            yield status.replace("_", " "), str(getattr(self, status))
        if self.steps is not None:
            yield "right steps", f"{self.right_steps} of {self.steps}"
        if self.pass_at_k:
            yield "prompts", str(self.prompts)
            for k, share in self.pass_at_k.items():
                yield f"pass@{k}", f"{share:.1%}"
            yield "majority vote", f"{self.majority_vote:.1%}"


class ReportBuilder:
    """Collects verdicts one by one; memory grows with the number of prompts, not with the size of the file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, Failures] = {}
        self.tallies: dict[str, PromptTally] = {}
        self.steps: Counter[str] = Counter()

    def add(self, verdict: "Verdict", where: str, reference: str, completion: str, prompt: str | None) -> None:
        """Count one verdict; `prompt` is a key of its group, None where completions are not grouped."""
        self.counts[verdict.status] += 1
        if verdict.steps is not None:
            self.steps.update(all=verdict.steps, right=verdict.right_steps)
        if prompt is not None and verdict.status != "bad_reference":
            self.tallies.setdefault(prompt, PromptTally()).add(verdict)
        if verdict.status != "correct":
            failures = self.failures.setdefault(failure_kind(verdict), Failures())
            failures.count += 1
            if len(failures.examples) < _EXAMPLES:
                expected = reference if verdict.reference_value is None else spelled(verdict.reference_value)
                failures.examples.append(Example(where, expected[-_TAIL:], verdict.read[:_TAIL], completion[-_TAIL:]))

    def build(self) -> GradeReport:
        """Return the report of all that was added."""
        counts = self.counts
        readable = counts.total() - counts["bad_reference"]
        ordered = sorted(self.failures.items(), key=lambda item: -item[1].count)
        return GradeReport(
            file=self.file,
            n=counts.total(),
            correct=counts["correct"],
            wrong=counts["wrong"],
            no_answer=counts["no_answer"],
            bad_reference=counts["bad_reference"],
            accuracy=counts["correct"] / readable if readable else None,
            interval=wilson_interval(counts["correct"], readable) if readable else None,
            failures=dict(ordered),
            steps=self.steps["all"] if self.steps else None,
            right_steps=self.steps["right"] if self.steps else None,
            **_by_prompt(list(self.tallies.values())),
        )


def _by_prompt(tallies: list[PromptTally]) -> dict[str, Any]:
    """pass@1, @2, @4, ... up to the number of completions that every prompt has, and the share of right majority votes."""
    fewest = min((tally.samples for tally in tallies), default=0)
    if fewest == 0:
        return {}
    ks = sorted({2**power for power in range(fewest.bit_length())} | {fewest})
    return {
        "prompts": len(tallies),
        "pass_at_k": {k: sum(pass_at_k(t.samples, t.right, k) for t in tallies) / len(tallies) for k in ks},
        "majority_vote": sum(tally.majority_right() for tally in tallies) / len(tallies),
    }


def failure_kind(verdict: "Verdict") -> str:
    """Return a name for the way in which a verdict failed, so that the commonest mistakes can be counted."""
    if verdict.status == "bad_reference":
        return "reference cannot be read"
    if verdict.status == "no_answer":
        return "stated answer is no number" if verdict.read else "no answer in the text"
    if verdict.value is None or verdict.reference_value is None:
        return verdict.note or "other expression"
    return _numeric_kind(verdict.value, verdict.reference_value)


def _numeric_kind(value: Fraction, reference: Fraction) -> str:
    if value == -reference:
        return "sign reversed"
    if reference and _is_power_of_ten(abs(value / reference)):
        return "off by a power of ten"
    if abs(value - reference) == 1:
        return "off by one"
    if abs(value - reference) * 100 <= abs(reference):
        return "within 1% of the reference"
    return "another number"


def _is_power_of_ten(ratio: Fraction) -> bool:
    larger = max(ratio.numerator, ratio.denominator)
    return min(ratio.numerator, ratio.denominator) == 1 and str(larger).rstrip("0") == "1"
