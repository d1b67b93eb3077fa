"""``gkd-rl export``: a model folder in Hugging Face form from a checkpoint of a run, whatever its ZeRO stage and number of ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from gkd_rl.checkpoint import Checkpoints
from gkd_rl.config.load import load_config
from gkd_rl.config.run import Config
from gkd_rl.config.student import StudentConfig
from gkd_rl.console import Terminal
from gkd_rl.errors import UserError
from gkd_rl.intact import closed
from gkd_rl.models.language_model import LanguageModel, load_language_model
from gkd_rl.models.lora import require_peft
from gkd_rl.models.trained import mark_trained
from gkd_rl.processes import quiet_libraries
from gkd_rl.run import save_model
from gkd_rl.run_folder import remove_tree

PREFIX = "model."
"""What the engine's module calls the student, before the names of its weights."""


def export(source: str | Path, out: str | Path, student_path: str | None = None) -> Path:
    """Write the student of a checkpoint to the folder ``out`` and return the checkpoint's folder.

    ``source`` is a run's folder (its newest closed checkpoint) or ``RUN_DIR/checkpoints/step-N``. ``out`` then holds what the run
    itself would have left in ``RUN_DIR/model`` at that step (configuration, weights, generation settings, tokenizer), and in
    ``out/adapter`` what it would have left in ``RUN_DIR/adapter``. ``out`` exists once it is whole.

    Configuration, tokenizer and frozen weights come from the run's ``student.path``, or from ``student_path`` in its place.
    Raises ``UserError`` where there is no checkpoint, where it cannot be read or does not fit the student, and where ``out`` is
    taken; all but the second before a model is loaded.
    """
    quiet_libraries()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("export works in one process; start it without a launcher")
    run, place = find_checkpoint(Path(source))
    config = load_config(run / "config.yaml")
    if student_path is not None:
        config = replace(config, student=replace(config.student, path=student_path))
    if config.student.lora.rank:
        require_peft()
    out = Path(out)
    _require_free(out)
    weights = trained_weights(place)
    student = _student(config, "student.path" if student_path is None else "--student")
    _put_in(student.module, weights, place, config.student)
    _write(student, out)
    Terminal(True).say(f"{out} holds the student of {place}")
    return place


def find_checkpoint(source: Path) -> tuple[Path, Path]:
    """The run's folder and the checkpoint's, of either of them. Raises ``UserError`` where there is no closed checkpoint."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give a run's folder or one of its checkpoints, RUN_DIR/checkpoints/step-N")
    whole = source.resolve()
    run = whole.parent.parent if whole.parent.name == "checkpoints" else whole
    if not (run / "config.yaml").is_file():
        raise UserError(f"{source} is no run's folder and no checkpoint of one: there is no {run / 'config.yaml'}")
    if run is not whole:
        if not (whole / "state.json").is_file():
            raise UserError(f"{source} is no finished checkpoint: it has no state.json; give another, or the run's folder")
        _, problem = closed(source)
        if problem:
            raise UserError(f"the checkpoint {source} cannot be read ({problem}); give another of the run's checkpoints")
        return run, source
    found, passed = Checkpoints(source, 1).look()
    if found is None:
        why = f" ({passed[0]})" if passed else ""
        raise UserError(f"{source} holds no intact checkpoint{why}; checkpoint.every says how often a run writes one")
    return run, found[0]


def trained_weights(place: Path) -> dict[str, Tensor]:
    """What was trained, by the student's own names, in the precision in which the checkpoint has it.

    Up to ZeRO stage 2 every rank holds all weights, and one file has them. At stage 3 each rank wrote its part of the fp32 weights, which
    are put together here; the student's own precision rounds them as the engine does.
    """
    whole = place / "state" / "mp_rank_00_model_states.pt"
    try:
        if whole.is_file():
            state = torch.load(whole, map_location="cpu", mmap=True, weights_only=True)["module"]
        else:
            state = _gathered(place)
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, UnpicklingError) as error:
        reason = str(error).split(". ")[0].splitlines()[0]
        raise UserError(f"the checkpoint {place} cannot be read ({reason}); give another of the run's checkpoints") from error
    return {name.removeprefix(PREFIX): value for name, value in state.items()}


def _gathered(place: Path) -> Mapping[str, Tensor]:
    """The whole fp32 weights of a checkpoint of stage 3, in CPU memory."""
    with _hushed():
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        weights = get_fp32_state_dict_from_zero_checkpoint(str(place), tag="state", exclude_frozen_parameters=True)
    assert weights is not None
    return weights


@contextmanager
def _hushed() -> Iterator[None]:
    """DeepSpeed narrates its work and draws bars."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


def _student(config: Config, where: str) -> LanguageModel:
    """The student as it was before its first step."""
    student = load_language_model(config.student.path, where, config.student.dtype, config.student.trust_remote_code)
    mark_trained(student.module, config.student, config.seed)
    return student


def _put_in(module: nn.Module, weights: Mapping[str, Tensor], place: Path, student: StudentConfig) -> None:
    """Load ``weights``. Raises ``UserError`` unless they are all that is trained of ``module`` (a tied one by any of its names)."""
    named = list(module.named_parameters(remove_duplicate=False))
    given = {id(parameter) for name, parameter in named if name in weights}
    lacking = [name for name, parameter in named if parameter.requires_grad and id(parameter) not in given]
    try:
        unknown = module.load_state_dict(weights, strict=False).unexpected_keys
        misfit = f"{[*lacking, *unknown][0]} is {'missing' if lacking else 'unknown'}" if lacking or unknown else None
    except RuntimeError as error:  # shapes
        misfit = str(error).splitlines()[1].strip().split(". ")[0]
    if misfit is not None:
        raise UserError(f"the checkpoint {place} does not fit the student {student.path} ({misfit}); give the model that it began with")


def _require_free(out: Path) -> None:
    """Raise ``UserError`` unless ``out`` is an empty folder, or one that can be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is {'not empty' if out.is_dir() else 'a file'}; give a folder that is new or empty")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written to ({error.strerror}); give another folder") from None


def _write(student: LanguageModel, out: Path) -> None:
    """Write aside and rename, so that a folder that is there is whole."""
    aside = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}")
    try:
        save_model(student, aside, aside / "adapter")
        aside.rename(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written to ({error.strerror or error}); give another folder") from None
    finally:
        remove_tree(aside)
