"""The command line. Heavy imports wait until a command needs them, so that help and configuration errors answer at once."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from gkd_rl.errors import Stopped, UserError
from reward_models.errors import InputError, RewardError

_EPILOG = """
examples:
  gkd-rl init mine.yaml                                         a commented configuration to begin with
  gkd-rl train configs/arithmetic.yaml                          align and compress the embedded student
  gkd-rl train configs/gsm8k.yaml data_dir=DATA student.path=A teacher.path=B
  gkd-rl check configs/arithmetic.yaml                          what is wrong with a run, before it is started
  gkd-rl train configs/paper/t5_xsum.yaml --dry-run             what a run would take
  gkd-rl ablate configs/ablate_alpha.yaml                       reward against distillation
  gkd-rl report RUN_DIR [RUN_DIR ...]                           a page of runs and their rollouts
  gkd-rl export RUN_DIR --out MODEL                             a model folder from the newest checkpoint
  gkd-rl grade answers.jsonl --reference-field answer --completion-field completion
  torchrun --nproc_per_node 2 -m gkd_rl train configs/arithmetic.yaml engine.zero_stage=2
"""


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


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gkd-rl: {message}; see {self.prog} --help\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options may stand between the overrides, which argparse alone does not allow."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") or not hasattr(parsed, "overrides") for word in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _leave(status: int) -> None:
    """Exit; one of several ranks without taking itself apart, which would wait for other ranks, or be aborted by libraries' threads."""
    sys.stderr.flush()
    sys.stdout.flush()
    if "torch" in sys.modules and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(status)
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gkd-rl",
        description="Align and compress a language model in one run: (1-α)·reward - α·divergence(teacher ‖ student).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher puts it first; LOCAL_RANK says the same
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    starting = commands.add_parser(
        "init",
        help="write a commented configuration to begin with",
        description="Write a configuration with a word on each setting that matters; for arithmetic it runs as it is.",
    )
    starting.add_argument("file", metavar="FILE", help="the new YAML file; the run goes to runs/NAME")
    starting.add_argument("--task", choices=["arithmetic", "gsm8k", "custom"], default="arithmetic", help="default: arithmetic")
    starting.add_argument("--student", metavar="PATH", help="folder or hub name of the student (default: the embedded one)")
    starting.add_argument("--teacher", metavar="PATH", help="folder or hub name of the teacher (default: the embedded one)")
    starting.set_defaults(run=_init)
    train = _configured(commands, "train", _train, "train a student on reward and teacher at once", _TRAIN)
    train.add_argument("--dry-run", action="store_true", help="print work, memory and time of the run instead, without loading a model")
    train.add_argument("--json", action="store_true", help="with --dry-run: one JSON object instead of tables")
    train.add_argument("--ranks", type=int, metavar="N", help="with --dry-run: processes to plan for (default: those launched)")
    train.add_argument(
        "--flops-per-second", type=float, metavar="X", help="with --dry-run: what one rank reaches, such as 4e14 (default: measured here)"
    )
    evaluate = _configured(commands, "evaluate", _evaluate, "evaluate a model on held-out examples", _EVALUATE)
    evaluate.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    checking = _configured(commands, "check", _check, "look for what is wrong with a run before it is started", _CHECK)
    checking.add_argument("--quick", action="store_true", help="only what loads neither student nor teacher")
    checking.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    checking.add_argument("--ranks", type=int, metavar="N", help="processes that the run will have, for its memory (default: 1)")
    _configured(commands, "sft", _sft, "fine-tune the student on the task's own solutions first", _SFT)
    ablating = _configured(commands, "ablate", _ablate, "run a grid of settings with several seeds", _ABLATE)
    ablating.add_argument("--share-rollouts", action="store_true", help="runs with the same seed start from one first batch, sampled once")
    ablating.add_argument(
        "--slurm", metavar="KEY=VALUE,...", help="submit each run as a job: partition=gpu,gpus_per_node=1,timeout_min=120 (docs/ablate.md)"
    )
    caching = _configured(
        commands, "cache-teacher", _cache_teacher, "keep the teacher's scores of the dataset's completions on disk", _CACHE
    )
    caching.add_argument("--out", required=True, metavar="DIR", help="folder of the cache; one that was begun is completed")
    _configured(commands, "reward-model", _reward_model, "train a reward model on preference pairs", _REWARD_MODEL)
    exporting = commands.add_parser(
        "export",
        help="make a model folder from a checkpoint of a run",
        description="Write the student of a checkpoint as a folder that from_pretrained loads, at any ZeRO stage; an adapter is merged.",
    )
    exporting.add_argument("source", metavar="CHECKPOINT_OR_RUN", help="RUN_DIR/checkpoints/step-N, or RUN_DIR for its newest")
    exporting.add_argument("--out", required=True, metavar="FOLDER", help="new folder of the model; an adapter goes to FOLDER/adapter")
    exporting.add_argument("--student", metavar="PATH", help="where the model that the run began with is now (default: student.path)")
    exporting.set_defaults(run=_export)
    reporting = commands.add_parser(
        "report",
        help="one page of one or several runs: settings, curves, evaluation, every rollout",
        description="Write one HTML file that needs no network: what was run, curves, evaluation, costs, and the rollouts token by token. "
        "Several runs are compared.",
    )
    reporting.add_argument("runs", metavar="RUN_DIR", nargs="+", help="folder of a run, finished or not")
    reporting.add_argument("--out", metavar="FILE", help="where the page goes (default: report.html in the first RUN_DIR)")
    reporting.add_argument("--serve", action="store_true", help="serve the page to this machine instead, and follow the runs")
    reporting.add_argument("--port", type=int, metavar="N", help="port of --serve (default: a free one)")
    reporting.set_defaults(run=_report)
    grade = commands.add_parser(
        "grade",
        help="grade answers in a file against references",
        description="Grade the answers in FILE (JSONL, CSV or Parquet) by their final number.",
    )
    from reward_models.grading import add_arguments, command

    add_arguments(grade)
    grade.set_defaults(run=command)
    return parser


_TRAIN = """
  run_dir, max_steps, seed, resume=never|auto|new      the run and its folder
  objective.alpha=0.5                                   weight of the teacher against the reward
  objective.divergence.kind=gjsd|forward_kl|reverse_kl  with objective.divergence.beta
  rollout.prompts_per_step, rollout.per_prompt          answers sampled per step
  engine.zero_stage=0..3                                DeepSpeed ZeRO
  task.path, task.options, task.prompt_format           where prompts come from (docs/tasks.md)
"""
_EVALUATE = """
  model=PATH                  the model (default: the run's final model if there is one, else the student)
  evaluation.examples=500     held-out examples
  evaluation.samples=8        samples per example, for pass@k
"""
_CHECK = """
  those of train; the exit status is 1 where a check failed
"""
_SFT = """
  sft.examples, sft.epochs, sft.batch_size, sft.lr      on the task's own completions; the model goes to RUN_DIR/model
"""
_ABLATE = """
  ablation.grid={objective.alpha: [0, 0.5, 1]}          key → values; every combination is run
  ablation.seeds=[0,1,2]                                with each seed
  ablation.parallel=4                                   runs at once; the exit status is 1 where one failed
"""


_CACHE = """
  teacher.path, or teacher.url and teacher.served_model  whose scores
  teacher.top_k=64                                       log-probabilities kept per token
  task.train_examples                                    of how many examples (default: all)
"""


_REWARD_MODEL = """
  preferences.train=FILE, preferences.held_out=FILE      rows with prompt, chosen, rejected (JSONL, CSV, TSV, Parquet)
  preferences.kind=scored, preferences.min_gap           pairs are made of answers with scores
  model.path=CHECKPOINT                                  default: from scratch, of model.type and model.config
  training.epochs, training.batch_size, training.lr
"""


def _configured(commands, name: str, run: Callable[[argparse.Namespace], int], text: str, keys: str):
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"keys used most:{keys}\nAny key of the configuration can be set: key.sub=value.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="settings laid over the file")
    parser.set_defaults(run=run)
    return parser


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
