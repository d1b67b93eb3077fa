"""Grade a file of outputs against its references."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from reward_models.arithmetic import ArithmeticVerifier, Verdict, reference_text
from reward_models.errors import InputError
from reward_models.loading import load_reward
from reward_models.quantity import spelled
from reward_models.records import Record, RecordFile, field, open_records
from reward_models.report import GradeReport, ReportBuilder
from reward_models.text import completion_text


class Verifier(Protocol):
    """What grading asks of a verifier."""

    def verify(self, completion: str, reference: str) -> Verdict: ...


def grade(
    path: str | Path,
    *,
    reference_field: str,
    completion_field: str,
    verifier: Verifier | None = None,
    out: str | Path | None = None,
    prompt_field: str | None = None,
    progress: bool = True,
) -> GradeReport:
    """Grade every row of a JSONL, CSV or Parquet file and return the report.

    Args:
        reference_field: the field of the references: numbers, or solutions that state one.
        completion_field: the field of the outputs: a text, chat messages, or a list of several texts or chats.
        verifier: an `ArithmeticVerifier` unless another is given.
        out: JSONL file for the rows with `verdict`, `read`, `form` and `value`, and with `steps`, `right_steps` and
            `first_wrong_step` if steps are checked. It appears when grading has finished, or not at all. Fields of these
            names in the input are replaced.
        prompt_field: rows with the same value are completions of one prompt, for pass@k and majority vote.
        progress: show a progress bar on standard error.

    Raises:
        InputError: the file, a field or `out` is not usable; the text says where.
    """
    records = open_records(path)
    report = ReportBuilder(str(path))
    grader = _Grader(records.path, verifier or ArithmeticVerifier(), reference_field, completion_field, prompt_field, report)
    with _output(out, records.path) as write:
        for record in _shown(records, progress):
            write({**record.fields, **grader.graded(record)})
    return report.build()


class _Grader:
    """Grades rows, and hands every verdict to the report."""

    def __init__(
        self,
        path: Path,
        verifier: Verifier,
        reference_field: str,
        completion_field: str,
        prompt_field: str | None,
        report: ReportBuilder,
    ) -> None:
        self.path, self.verifier, self.report = path, verifier, report
        self.reference_field, self.completion_field, self.prompt_field = reference_field, completion_field, prompt_field

    def graded(self, record: Record) -> dict[str, Any]:
        """The fields that grading adds to a row: values, or lists of them where it has several completions."""
        reference = reference_text(field(record, self.reference_field, self.path))
        completions = field(record, self.completion_field, self.path)
        several = isinstance(completions, list) and not (completions and isinstance(completions[0], Mapping))
        added = [self._one(record, one, reference, several) for one in (completions or [None] if several else [completions])]
        return {name: [one[name] for one in added] for name in added[0]} if several else added[0]

    def _one(self, record: Record, completion: Any, reference: str, several: bool) -> dict[str, Any]:
        text = self._text(record, completion)
        verdict = self.verifier.verify(text, reference)
        self.report.add(verdict, record.where, reference, text, self._prompt(record, several))
        added = {
            "verdict": verdict.status,
            "read": verdict.read,
            "form": verdict.form,
            "value": None if verdict.value is None else spelled(verdict.value),
        }
        if verdict.steps is None:
            return added
        steps = {"steps": verdict.steps, "right_steps": verdict.right_steps, "first_wrong_step": verdict.first_wrong_step}
        return {**added, **steps}

    def _text(self, record: Record, completion: Any) -> str:
        if isinstance(completion, (int, float)) and not isinstance(completion, bool):
            return str(completion)
        try:
            return completion_text(completion)
        except InputError as error:
            raise InputError(f"{self.path}, {record.where}, field '{self.completion_field}': {error}") from error

    def _prompt(self, record: Record, several: bool) -> str | None:
        if self.prompt_field is not None:
            return json.dumps(field(record, self.prompt_field, self.path), sort_keys=True, default=str)
        return record.where if several else None


def _shown(records: RecordFile, progress: bool) -> Iterator[Record]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("grading"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress) as bar:
        task = bar.add_task("grading", total=records.total)
        for record in records:
            yield record
            bar.update(task, completed=record.done)


@contextmanager
def _output(out: str | Path | None, source: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that writes a row; the file gets its name only when all rows are written."""
    if out is None:
        yield lambda row: None
        return
    path = _checked_output(Path(out), source)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        file = aside.open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with file:
            yield lambda row: print(json.dumps(row, default=str), file=file)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _checked_output(path: Path, source: Path) -> Path:
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        raise InputError(f"{path}: graded rows are written as JSONL; give the file the extension .jsonl")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: {'it is a folder' if path.is_dir() else f'there is no folder {path.parent}'}")
    if path.exists() and path.samefile(source):
        raise InputError(f"{path} is the input itself; write the graded rows to another file")
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `command` to a parser."""
    parser.add_argument("file", help="rows to grade: .jsonl, .csv or .parquet")
    parser.add_argument("--reference-field", default="reference", help="field of the references (default: %(default)s)")
    parser.add_argument("--completion-field", default="completion", help="field of the outputs (default: %(default)s)")
    parser.add_argument("--prompt-field", help="rows with the same value here are completions of one prompt: gives pass@k")
    parser.add_argument("--verifier", default="reward_models.ArithmeticVerifier", help="dotted path (default: %(default)s)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of the verifier, e.g. tolerance=0.01; repeatable"
    )
    parser.add_argument("--out", help="write the rows with their verdicts to this .jsonl file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def command(args: argparse.Namespace) -> int:
    """Grade as the parsed arguments say, print a table or a JSON object to standard output, and return 0.

    Raises:
        InputError: as `grade`; also for a verifier or an option that does not exist.
    """
    verifier = load_reward(args.verifier, dict(map(_option, args.option)))
    if not callable(getattr(verifier, "verify", None)):
        raise InputError(f"'{args.verifier}' cannot grade: it has no method verify(completion, reference) -> Verdict")
    report = grade(
        args.file,
        reference_field=args.reference_field,
        completion_field=args.completion_field,
        verifier=verifier,  # pyright: ignore[reportArgumentType]
        out=args.out,
        prompt_field=args.prompt_field,
        progress=sys.stderr.isatty(),
    )
    if args.json:
        print(json.dumps(report.to_json()))
    else:
        from rich.console import Console

        Console().print(report.table())
    return 0


def _option(text: str) -> tuple[str, Any]:
    """`tolerance=0.01` as a name and a JSON value; what is no JSON is text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--option {text}: write it as KEY=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
