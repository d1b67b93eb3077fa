"""Completions shown in the terminal: what was asked, what the student answered, what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from gkd_rl.console import Terminal
from gkd_rl.rollout.rows import take
from gkd_rl.run import Run
from gkd_rl.scoring import score_rollouts
from gkd_rl.types import Experience, Rollouts

LONGEST = 2000
"""Characters of a text that are shown."""


def show_completions(run: Run, step: int, experience: Experience) -> None:
    """Show ``log_completions`` of the main process's rows of ``step`` (from 0), evenly spaced, where the step is one of those.

    Every rank calls it: the task's own verifier judges the rows, and where it fails all end together.
    """
    config = run.config
    if not config.log_completions or step % config.log_completions_every:
        return
    count, shown = len(experience.rewards) if run.processes.is_main else 0, config.log_completions
    places = sorted({i * count // shown for i in range(shown)}) if count else []
    rows = torch.tensor(places, dtype=torch.long, device=experience.rewards.device)
    few = take(experience.rollouts, rows) if places else None
    verdicts = run.processes.together(lambda: [] if few is None else _verdicts(run, few))
    for place, verdict in zip(places, verdicts, strict=True):
        example = experience.rollouts.examples[place]
        parts = {name: values[place].item() for name, values in experience.components.items()}
        words = (f"step {step + 1}", f"example {example.key}", _reward(experience.rewards[place].item(), parts), verdict)
        texts = {"prompt": as_text(example.prompt), "completion": experience.rollouts.texts[place]}
        show(run.terminal, " · ".join(word for word in words if word), texts)


def _verdicts(run: Run, few: Rollouts) -> list[str]:
    """``right`` or ``wrong``, by the task's own first reward; nothing where it does not apply."""
    _, components = score_rollouts(run.parts.evaluator.verifier, few)
    values = next(iter(components.values())).tolist()
    return ["" if math.isnan(value) else "right" if value >= 1 else "wrong" for value in values]


def _reward(total: float, parts: Mapping[str, float]) -> str:
    if math.isnan(total):
        return "not rewarded"
    named = ", ".join(f"{name} {value:.3g}" for name, value in parts.items())
    return f"reward {total:.3g}" + (f" ({named})" if len(parts) > 1 else "")


def as_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt, or the messages of a chat, as one text."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def show(terminal: Terminal, head: str, texts: Mapping[str, str]) -> None:
    """A head and named texts: laid out where there is a terminal, else a line for each with its line breaks written out.

    Nothing in a text does anything: markup is shown as it is, and what would steer the terminal is written out.
    """
    if not terminal.is_live:
        for line in (head, *(f"  {name:<12}{harmless(text)}".replace("\n", "\\n") for name, text in texts.items())):
            terminal.say(line)
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, text in texts.items():
        grid.add_row(f"  {name}", Text(harmless(text)))
    terminal.console.print(Text(head, style="bold"), grid, sep="\n")


def harmless(text: str) -> str:
    """``text`` cut to ``LONGEST`` characters, what is neither printable nor a line break written as its escape."""
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text) - LONGEST:,} more characters)"
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in cut)
