"""The arithmetic verifier: is the final answer of a completion the number that the reference states?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Number
from typing import Any, Literal

from reward_models.answers import Answer, find_answer, find_statement, read_reference
from reward_models.errors import InputError, nearest_hint
from reward_models.quantity import Quantity
from reward_models.steps import find_steps
from reward_models.symbolic import SymbolicJudge
from reward_models.text import completion_text

Status = Literal["correct", "wrong", "no_answer", "bad_reference"]


@dataclass(frozen=True)
class Verdict:
    """What the verifier found in one completion."""

    status: Status
    """`no_answer`: nothing that can be read as an answer; `bad_reference`: the reference cannot be read, which is never right."""
    read: str = ""
    """The answer's text as it was read; empty where there is none."""
    form: str = ""
    """Where it stood: `hash`, `boxed`, `stated`, `last number` or `symbolic`."""
    value: Fraction | None = None
    """The answer, None where it is no rational number."""
    reference_value: Fraction | None = None
    steps: int | None = None
    """Calculations such as `48+24=72` in the completion; None where steps are not checked."""
    right_steps: int = 0
    first_wrong_step: str | None = None
    note: str = ""
    """Why a verdict was given, where that is not plain from the rest."""


class ArithmeticVerifier:
    """Reward of a right final answer: a number compared exactly, or a symbolic expression.

    `reward = (1 − w)·outcome + w·(right steps / steps)`, where `outcome` is `correct`, `wrong` or `no_answer` and w is
    `process_weight`. Rows whose reference cannot be read get None: the reward does not apply to them.

    Args:
        reference_field: the column that holds the references: numbers, or solutions that end in `#### 72`.
        tolerance: largest absolute difference that still counts as equal; 0 compares exact rationals.
        correct, wrong, no_answer: rewards of the three verdicts.
        process_weight: share of the reward that the steps of the solution decide; without any step they give 0.
        check_steps: fill in the steps of each verdict even where they carry no weight.
        fallback: whether the last number counts as the answer where none is stated.
        stop: the completion is cut before the first of these: base models go on to ask themselves the next question.
        symbolic: compare answers that are no rational numbers by `math-verify`, in a process of its own.
        symbolic_seconds: time limit of one symbolic comparison.

    Raises:
        InputError: a value is out of range, or `symbolic` without `math-verify`.
    """

    def __init__(
        self,
        *,
        reference_field: str = "reference",
        tolerance: float | str = 0,
        correct: float = 1.0,
        wrong: float = 0.0,
        no_answer: float = 0.0,
        process_weight: float = 0.0,
        check_steps: bool = False,
        fallback: bool = True,
        stop: Sequence[str] = ("\nQ:", "\nQuestion:"),
        symbolic: bool = False,
        symbolic_seconds: float = 5.0,
    ) -> None:
        if not 0 <= process_weight <= 1:
            raise InputError(f"process_weight is {process_weight}; it is a share from 0 to 1")
        self.__name__ = "arithmetic"  # trainers log a reward under this name
        self.reference_field = reference_field
        self.tolerance = _tolerance(tolerance)
        self.outcomes = {"correct": correct, "wrong": wrong, "no_answer": no_answer}
        self.process_weight = process_weight
        self.check_steps = check_steps or process_weight > 0
        self.fallback = fallback
        self.stop = tuple(stop)
        self.judge = SymbolicJudge(symbolic_seconds) if symbolic else None

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one reward for each completion; `columns` holds the references.

        Raises:
            InputError: there is no column of references, or it has another length.
        """
        if self.reference_field not in columns:
            hint = nearest_hint(self.reference_field, columns)
            raise InputError(f"there is no column '{self.reference_field}' with the references{hint}")
        references = columns[self.reference_field]
        if len(references) != len(completions):
            raise InputError(f"{len(completions)} completions came with {len(references)} references")
        return [
            self.reward(self.verify(completion_text(completion), reference_text(reference)))
            for completion, reference in zip(completions, references, strict=True)
        ]

    def reward(self, verdict: Verdict) -> float | None:
        """Return the reward of a verdict, None where the reference cannot be read."""
        if verdict.status == "bad_reference":
            return None
        outcome = self.outcomes[verdict.status]
        process = verdict.right_steps / verdict.steps if verdict.steps else 0.0
        return (1 - self.process_weight) * outcome + self.process_weight * process

    def verify(self, completion: str, reference: str) -> Verdict:
        """Return what `completion` answers and whether `reference` says the same."""
        for stop in self.stop:
            completion = completion.partition(stop)[0]
        verdict = self._outcome(completion, reference)
        if not self.check_steps:
            return verdict
        steps = find_steps(completion)
        wrong = [step.text for step in steps if not step.right]
        first = wrong[0] if wrong else None
        return replace(verdict, steps=len(steps), right_steps=len(steps) - len(wrong), first_wrong_step=first)

    def _outcome(self, completion: str, reference: str) -> Verdict:
        target, answer = read_reference(reference), find_answer(completion, self.fallback)
        target_quantity = target.quantity if target else None
        quantity = answer.quantity if answer else None
        if self.judge and target and (target_quantity is None or quantity is None):
            return self._symbolic(self.judge, completion, reference, answer)
        status: Status = "wrong"
        if target_quantity is None:
            status = "bad_reference"
        elif quantity is None:
            status = "no_answer"
        elif equal(quantity, target_quantity, self.tolerance):
            status = "correct"
        return Verdict(
            status,
            read=answer.text if answer else "",
            form=answer.form if answer else "",
            value=quantity.value if quantity else None,
            reference_value=target_quantity.value if target_quantity else None,
        )

    def _symbolic(self, judge: SymbolicJudge, completion: str, reference: str, answer: Answer | None) -> Verdict:
        target, statement = find_statement(reference), find_statement(completion)
        if statement is None and answer:
            statement = answer.text
        outcome = judge.compare(target or "", statement or "")
        note = f"not finished within {judge.seconds:g} s or the memory limit" if outcome.unfinished else ""
        return Verdict(outcome.status, statement or "", "symbolic" if statement else "", note=note)


def equal(answer: Quantity, reference: Quantity, tolerance: Fraction = Fraction(0)) -> bool:
    """Whether two quantities agree within `tolerance`.

    Where just one of them has a percent sign or scale word, its other reading counts too: `50%` equals 50 and 0.5.
    """
    if abs(answer.value - reference.value) <= tolerance:
        return True
    if answer.alternative is not None and reference.alternative is None:
        return abs(answer.alternative - reference.value) <= tolerance
    if reference.alternative is not None and answer.alternative is None:
        return abs(answer.value - reference.alternative) <= tolerance
    return False


def reference_text(reference: Any) -> str:
    """Return a reference as text: numbers as they print, chat messages by their last answer, anything else as unreadable."""
    if isinstance(reference, str):
        return reference
    if isinstance(reference, Number) and not isinstance(reference, bool):
        return str(reference)
    return completion_text(reference) if isinstance(reference, list) else ""


def _tolerance(tolerance: float | str) -> Fraction:
    try:
        exact = Fraction(str(tolerance))
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"tolerance is {tolerance!r}; it must be a number such as 0.01") from error
    if exact < 0:
        raise InputError(f"tolerance is {tolerance}; it must not be negative")
    return exact
