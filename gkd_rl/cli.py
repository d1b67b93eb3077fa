"""The command line. Heavy imports wait until a command needs them, so that help and configuration errors answer at once."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gkd_rl.arguments import Command, build_parser, parse
from gkd_rl.errors import Stopped, UserError
from reward_models.errors import InputError, RewardError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake prints one sentence and exits with status 2."""
    parsed = _parse(arguments)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        status = parsed.run(parsed)
    except (UserError, InputError, RewardError) as error:
        print(f"gkd-rl{_rank()}: {error}", file=sys.stderr)
        _leave(2)
    except Stopped as stopped:
        print(f"gkd-rl{_rank()}: {stopped}", file=sys.stderr)
        _leave(128 + stopped.number)
    except KeyboardInterrupt:
        print("gkd-rl: interrupted; resume=auto continues from the newest checkpoint", file=sys.stderr)
        _leave(130)
    else:
        _leave(status or 0)


def _terminated(number: int, frame: object) -> NoReturn:
    """Leave through every ``finally``, so that no process is left behind."""
    print("gkd-rl: terminated; resume=auto continues from the newest checkpoint", file=sys.stderr)
    sys.exit(128 + number)


def _rank() -> str:
    """Says which process speaks, where it is not the first: the same mistake is then not taken for several."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f" (rank {rank})"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    return parse(_RUN, arguments)


def _leave(status: int) -> None:
    """Exit; one of several ranks without taking itself apart, which would wait for other ranks, or be aborted by libraries' threads."""
    sys.stderr.flush()
    sys.stdout.flush()
    if "torch" in sys.modules and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(status)
    sys.exit(status)


def _load(parsed: argparse.Namespace):
    from gkd_rl.config.load import load_config
    from gkd_rl.config.validate import validate

    config = load_config(parsed.config, parsed.overrides)
    validate(config)
    return config


def _train(parsed: argparse.Namespace) -> int:
    config = _load(parsed)
    if parsed.dry_run:
        from gkd_rl.plan.command import dry_run

        dry_run(config, parsed.json, parsed.ranks, parsed.flops_per_second)
        return 0
    if parsed.json or parsed.ranks is not None or parsed.flops_per_second is not None:
        raise UserError("--json, --ranks and --flops-per-second belong to --dry-run; add it, or leave them out")
    from gkd_rl.training import train

    if os.environ.get("RANK", "0") == "0":
        from gkd_rl.preflight.command import before_training

        before_training(config, int(os.environ.get("WORLD_SIZE", "1")))
    return _close(config.run_dir, train(config))


def _check(parsed: argparse.Namespace) -> int:
    from gkd_rl.preflight.command import check

    return check(parsed.config, parsed.overrides, parsed.quick, parsed.json, parsed.ranks)


def _evaluate(parsed: argparse.Namespace) -> int:
    config = _load(parsed)
    from gkd_rl.evaluation.command import evaluate

    evaluate(config, parsed.json)
    return 0


def _sft(parsed: argparse.Namespace) -> int:
    config = _load(parsed)
    from gkd_rl.sft import sft

    return _close(config.run_dir, sft(config))


def _cache_teacher(parsed: argparse.Namespace) -> int:
    from gkd_rl.config.load import load_config

    config = load_config(parsed.config, parsed.overrides)
    from gkd_rl.cache_teacher import cache_teacher

    cache_teacher(config, parsed.out)
    return 0


def _init(parsed: argparse.Namespace) -> int:
    from gkd_rl.starting import write_start

    write_start(Path(parsed.file), parsed.task, parsed.student, parsed.teacher)
    print(f"{parsed.file}\nnext       gkd-rl check {parsed.file}\n           gkd-rl train {parsed.file}")
    return 0


def _export(parsed: argparse.Namespace) -> int:
    from gkd_rl.export import export

    export(parsed.source, parsed.out, parsed.student)
    return 0


def _report(parsed: argparse.Namespace) -> int:
    from gkd_rl.report.command import report

    report(parsed.runs, parsed.out, parsed.serve, parsed.port)
    return 0


def _reward_model(parsed: argparse.Namespace) -> int:
    from gkd_rl.config.load import load_as
    from gkd_rl.config.reward_model import RewardModelConfig

    config = load_as(RewardModelConfig, parsed.config, parsed.overrides)
    from gkd_rl.reward_model.train import train_reward_model

    train_reward_model(config)
    return 0


def _close(run_dir: str, summary: dict) -> int:
    """The run's tables and picture, by one of its processes."""
    if os.environ.get("RANK", "0") == "0":
        from gkd_rl.report.closing import close_run

        close_run(Path(run_dir), summary)
    return 0


def _ablate(parsed: argparse.Namespace) -> int:
    config = _load(parsed)
    from gkd_rl.ablation.command import ablate

    return int(ablate(config, parsed.config, parsed.overrides, parsed.share_rollouts, parsed.slurm)[1] > 0)


def _grade(parsed: argparse.Namespace) -> int:
    from reward_models.grading import command

    return command(parsed)


def _completion(parsed: argparse.Namespace) -> int:
    from gkd_rl.completion import script

    print(script(parsed.shell, build_parser(_RUN)))
    return 0


_RUN: dict[str, Command] = {
    "init": _init,
    "train": _train,
    "evaluate": _evaluate,
    "check": _check,
    "sft": _sft,
    "ablate": _ablate,
    "cache-teacher": _cache_teacher,
    "reward-model": _reward_model,
    "export": _export,
    "report": _report,
    "grade": _grade,
    "completion": _completion,
}
