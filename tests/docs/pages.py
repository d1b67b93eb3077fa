"""What the pages of the documentation tell a reader to type, and how a test does it.

A block is executed unless the line before it says ``<!-- not run: REASON -->``. A page's blocks run in their order in one folder:

* ``python``: executed; one whose first line is ``# NAME.py`` is first written to that file;
* ``bash``, ``sh``, ``console``: line by line; of a ``console`` block the output is compared too
  (``CANNOT`` says which commands never are);
* ``yaml`` whose first line is ``# NAME.yaml``, and any block after ``<!-- file: NAME -->``: written to that file.

Runs are cut to one small step. ``<!-- slow: REASON -->`` puts a page among the slow tests.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = ("bash", "sh", "console")
STARTS = ("gkd-rl", "torchrun", "deepspeed", "accelerate", "srun", "vllm", "make", "pip", "python", "git", "export")
"""First words by which a line is known to be a command."""

CANNOT = {
    r"pip install ": "changes the environment",
    r"make ": "takes hours, or an environment of its own",
    r"tensorboard --logdir": "serves until it is stopped",
    r".* --slurm ": "submits to a cluster",
    r".* --serve": "serves until it is stopped",
    r".*> ~/": "writes into the reader's home",
}
"""Commands that are not run wherever they stand, and why."""

_FENCED = re.compile(r"^(?:<!-- (?P<note>[^\n]*?) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
_FEW = ("rollout.prompts_per_step=4", "evaluation.examples=4", "evaluation.during_examples=4")
_SMALL = ("max_steps=1", "checkpoint.every=1", *_FEW)


@dataclass(frozen=True)
class Block:
    """A fenced block, with what the comment before it says."""

    language: str
    text: str
    note: str

    def said(self, word: str) -> str | None:
        """What stands behind ``word:`` in the comment; None without it."""
        return self.note.removeprefix(f"{word}:").strip() if self.note.startswith(f"{word}:") else None

    @property
    def runs(self) -> bool:
        return self.language in ("python", *SHELL) and self.said("not run") is None

    @property
    def file(self) -> str | None:
        """The file that the block is."""
        named = re.match(r"# (\S+\.(?:py|yaml))\n", self.text) if self.language in ("python", "yaml") else None
        return self.said("file") or (named.group(1) if named else None)


def blocks(page: Path) -> list[Block]:
    return [Block(found["language"], found["text"], found["note"] or "") for found in _FENCED.finditer(page.read_text())]


def lines(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Each command of a shell block, continued lines joined and without its comment, with the lines of output below it."""
    command, output = "", []
    for line in block.text.replace("\\\n", " ").splitlines():
        if block.language == "console" and not line.startswith("$ "):
            output.append(line)
            continue
        if command:
            yield command, output
        command, output = re.sub(r"(^|\s+)#.*", "", line.removeprefix("$ ")).strip(), []
    if command:
        yield command, output


def steps(page: Path) -> list[dict[str, Any]]:
    """What a reader of the page does, in order."""
    return [step for block in blocks(page) for step in _steps(block)]


def _steps(block: Block) -> Iterator[dict[str, Any]]:
    if block.file is not None:
        yield {"kind": "file", "name": block.file, "text": block.text}
    if block.runs and block.language == "python":
        yield {"kind": "python", "text": block.text}
    elif block.runs:
        for command, output in lines(block):
            if any(re.match(pattern, command) for pattern in CANNOT):
                continue
            if re.match(r"gkd-rl [^|>&;$*]*$", command):
                yield {"kind": "gkd-rl", "words": [*shlex.split(command)[1:], *smaller(command)], "output": output}
            else:
                yield {"kind": "shell", "text": command, "output": output}


def smaller(command: str) -> tuple[str, ...]:
    """The settings by which a run of hours becomes one of seconds."""
    name = command.split()[1]
    if "--dry-run" in command or "--quick" in command:
        return ()
    if name == "ablate":
        return (*_SMALL, "ablation.seeds=[0]", "ablation.parallel=1", "ablation.grid={objective.alpha: [0.5, 1]}")
    return {"train": _SMALL, "sft": ("sft.examples=4", *_SMALL), "evaluate": _FEW[1:], "check": _FEW}.get(name, ())


def is_slow(page: Path) -> bool:
    return any(block.said("slow") is not None for block in blocks(page))
