"""GSM8K: grade-school arithmetic with chain of thought (Cobbe et al. 2021), from its own JSONL files."""

from __future__ import annotations

import re
from pathlib import Path

from gkd_rl.config.run import RewardConfig
from gkd_rl.errors import UserError
from gkd_rl.tasks.base import as_prompt
from gkd_rl.tasks.files import read_jsonl
from gkd_rl.types import Example

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_SYSTEM = "Solve the problem step by step and end with a line '#### ' followed by the final number."


class Gsm8kTask:
    """``train.jsonl`` and ``test.jsonl`` of GSM8K in ``data_dir`` or its subfolder ``gsm8k``.

    ``calculator_marks`` keeps ``<<48+24=72>>`` in the completions.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        prompt_format: str = "plain",
        calculator_marks: bool = False,
    ) -> None:
        if not data_dir:
            raise UserError("the gsm8k task needs data_dir (or GKD_RL_DATA): the folder that holds gsm8k/train.jsonl")
        folder = Path(data_dir).expanduser()
        folder = folder / "gsm8k" if not (folder / "train.jsonl").exists() and (folder / "gsm8k").is_dir() else folder
        self.train = read_jsonl(folder / "train.jsonl", ("question", "answer"))
        self.test = read_jsonl(folder / "test.jsonl", ("question", "answer"))
        self.prompt_format = prompt_format
        self.calculator_marks = calculator_marks

    @property
    def train_size(self) -> int | None:
        return len(self.train)

    def train_example(self, index: int) -> Example:
        return self._example(self.train[index], index)

    def held_out(self, count: int) -> list[Example]:
        return [self._example(row, key) for key, row in enumerate(self.test[:count])]

    def default_rewards(self) -> list[RewardConfig]:
        return [RewardConfig(path="reward_models.ArithmeticVerifier", name="correct")]

    def _example(self, row: dict, key: int) -> Example:
        answer = row["answer"] if self.calculator_marks else _CALCULATOR.sub("", row["answer"])
        return Example(
            prompt=as_prompt(row["question"], self.prompt_format, "Question: {text}\nAnswer:", _SYSTEM),
            completion=answer if self.prompt_format == "chat" else f" {answer}",
            columns={"reference": row["answer"], "question": row["question"]},
            key=key,
        )
