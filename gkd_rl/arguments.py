"""The parser of the command line: commands, their options, their help. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from gkd_rl.help_texts import COMMANDS, WHOLE, Help

Command = Callable[[argparse.Namespace], int]
SHELLS = ("bash", "zsh", "fish")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gkd-rl: {message}; see {self.prog} --help\n")


def parse(commands: Mapping[str, Command], arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options may stand between the overrides, which argparse alone does not allow."""
    parser = build_parser(commands)
    parsed, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") or not hasattr(parsed, "overrides") for word in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def build_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The whole parser; ``commands`` names what each command runs."""
    parser = _Parser(prog="gkd-rl", **_texts(WHOLE))
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher puts it first; LOCAL_RANK says the same
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = subparsers.add_parser(name, help=text.line, **_texts(text))
        if text.keys:
            command.add_argument("config", metavar="CONFIG", help="YAML file")
            command.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="settings laid over the file")
        _OPTIONS.get(name, lambda command: None)(command)
        command.set_defaults(run=commands[name])
    return parser


def _texts(text: Help) -> dict[str, Any]:
    return {"description": text.description, "epilog": text.epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}


def _init(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", metavar="FILE", help="the new YAML file; the run goes to runs/NAME")
    command.add_argument("--task", choices=["arithmetic", "gsm8k", "custom"], default="arithmetic", help="default: arithmetic")
    command.add_argument("--student", metavar="PATH", help="folder or hub name of the student (default: the embedded one)")
    command.add_argument("--teacher", metavar="PATH", help="folder or hub name of the teacher (default: the embedded one)")


def _train(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="print work, memory and time of the run instead, without loading a model")
    command.add_argument("--json", action="store_true", help="with --dry-run: one JSON object instead of tables")
    command.add_argument("--ranks", type=int, metavar="N", help="with --dry-run: processes to plan for (default: those launched)")
    command.add_argument(
        "--flops-per-second", type=float, metavar="X", help="with --dry-run: what one rank reaches, such as 4e14 (default: measured here)"
    )


def _evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def _check(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quick", action="store_true", help="only what loads neither student nor teacher")
    command.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    command.add_argument("--ranks", type=int, metavar="N", help="processes that the run will have, for its memory (default: 1)")


def _ablate(command: argparse.ArgumentParser) -> None:
    command.add_argument("--share-rollouts", action="store_true", help="runs with the same seed start from one first batch, sampled once")
    command.add_argument(
        "--slurm", metavar="KEY=VALUE,...", help="submit each run as a job: partition=gpu,gpus_per_node=1,timeout_min=120 (docs/ablate.md)"
    )


def _cache_teacher(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", required=True, metavar="DIR", help="folder of the cache; one that was begun is completed")


def _export(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="CHECKPOINT_OR_RUN", help="RUN_DIR/checkpoints/step-N, or RUN_DIR for its newest")
    command.add_argument("--out", required=True, metavar="FOLDER", help="new folder of the model; an adapter goes to FOLDER/adapter")
    command.add_argument("--student", metavar="PATH", help="where the model that the run began with is now (default: student.path)")


def _report(command: argparse.ArgumentParser) -> None:
    command.add_argument("runs", metavar="RUN_DIR", nargs="+", help="folder of a run, finished or not")
    command.add_argument("--out", metavar="FILE", help="where the page goes (default: report.html in the first RUN_DIR)")
    command.add_argument("--serve", action="store_true", help="serve the page to this machine instead, and follow the runs")
    command.add_argument("--port", type=int, metavar="N", help="port of --serve (default: a free one)")


def _grade(command: argparse.ArgumentParser) -> None:
    from reward_models.grading import add_arguments

    add_arguments(command)


def _completion(command: argparse.ArgumentParser) -> None:
    command.add_argument("shell", choices=SHELLS, help="for which shell")


_OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "init": _init,
    "train": _train,
    "evaluate": _evaluate,
    "check": _check,
    "ablate": _ablate,
    "cache-teacher": _cache_teacher,
    "export": _export,
    "report": _report,
    "grade": _grade,
    "completion": _completion,
}
