"""GSM8K: grade-school arithmetic with chain of thought (Cobbe et al. 2021), from its own JSONL files or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gkd_rl.config.run import RewardConfig
from gkd_rl.errors import UserError
from gkd_rl.tasks.base import as_prompt
from gkd_rl.tasks.calculator import without_marks
from gkd_rl.tasks.rows import RowTask
from gkd_rl.tasks.sources import HUB, Row, open_rows
from gkd_rl.types import Example, Message

_SYSTEM = "Solve the problem step by step and end with a line '#### ' followed by the final number."
_PLAIN = "Question: {text}\nAnswer:"


class Gsm8kTask(RowTask):
    """``train.jsonl`` and ``test.jsonl`` of GSM8K in ``data_dir`` or its subfolder ``gsm8k``, or other files in its form.

    Args:
        train, test: paths below that folder, or ``hub:openai/gsm8k:main:train`` and ``...:test``.
        shots: so many solved problems stand before each question (the paper's chain-of-thought prompts have 4). They are the first rows
            of ``shots_from``, or of the training rows, which are then not trained on.
        calculator_marks: keep ``<<48+24=72>>`` in the completions.
        calculator: before an answer is judged, the results in its marks are recomputed, and what follows from them
            (``gkd_rl.tasks.calculator``); needs ``calculator_marks``.
    """

    metrics = ("majority_vote",)

    def __init__(
        self,
        data_dir: str | None = None,
        prompt_format: str = "plain",
        train: Any = "train.jsonl",
        test: Any = "test.jsonl",
        shots: int = 0,
        shots_from: Any = None,
        calculator_marks: bool = False,
        calculator: bool = False,
    ) -> None:
        local = [source for source in (train, test) if not str(source).startswith(HUB)]
        if local and not data_dir and not all(Path(str(source)).is_absolute() for source in local):
            raise UserError("the gsm8k task needs data_dir (or GKD_RL_DATA): the folder that holds gsm8k/train.jsonl")
        if calculator and not calculator_marks:
            raise UserError("task.options.calculator recomputes <<...>> marks, which calculator_marks=false leaves out; set both to true")
        if not isinstance(shots, int) or shots < 0:
            raise UserError(f"task.options.shots is {shots!r}; it is a number of solved problems, 0 for none")
        folder = _folder(data_dir)
        super().__init__(*(_read(source, name, folder) for source, name in ((train, "train"), (test, "test"))))
        given = self.train if shots_from is None else _read(shots_from, "shots_from", folder)
        if len(given) < shots + (shots_from is None):
            raise UserError(f"task.options.shots is {shots}, and there are {len(given)} rows to take them from; lower it")
        self.shots = [(row.text("question"), row.text("answer")) for row in given[:shots]]
        if shots_from is None:
            self.train = self.train[shots:]
        self.prompt_format = prompt_format
        self.calculator_marks = calculator_marks
        self.calculator = calculator

    def default_rewards(self) -> list[RewardConfig]:
        path = "gkd_rl.tasks.calculator.CalculatedVerifier" if self.calculator else "reward_models.ArithmeticVerifier"
        return [RewardConfig(path=path, name="correct")]

    def example(self, row: Row, key: int) -> Example:
        question, answer = row.text("question"), row.text("answer")
        return Example(
            prompt=self._prompt(question),
            completion=self._answer(answer) if self.prompt_format == "chat" else f" {self._answer(answer)}",
            columns={"reference": answer, "question": question},
            key=key,
        )

    def _answer(self, text: str) -> str:
        return text if self.calculator_marks else without_marks(text)

    def _prompt(self, question: str) -> str | Sequence[Message]:
        asked = as_prompt(question, self.prompt_format, _PLAIN, _SYSTEM)
        if isinstance(asked, str):
            return "".join(f"{_PLAIN.format(text=q)} {self._answer(a)}\n\n" for q, a in self.shots) + asked
        solved: list[Message] = []
        for q, a in self.shots:
            solved += [{"role": "user", "content": q}, {"role": "assistant", "content": self._answer(a)}]
        return [*asked[:-1], *solved, asked[-1]]


def _folder(data_dir: str | None) -> str | None:
    if not data_dir:
        return None
    folder = Path(data_dir).expanduser()
    return str(folder / "gsm8k" if not (folder / "train.jsonl").exists() and (folder / "gsm8k").is_dir() else folder)


def _read(source: Any, option: str, folder: str | None) -> Sequence[Row]:
    """Rows, all of which are checked at once where they are in memory."""
    rows = open_rows(source, option, folder)
    if isinstance(rows, list):
        for row in rows:
            for field in ("question", "answer"):
                row.text(field)
    return rows
