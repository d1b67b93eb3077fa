"""Data of your own: any JSONL, CSV, Parquet or hub data set with a column of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gkd_rl.config.run import RewardConfig
from gkd_rl.errors import UserError
from gkd_rl.tasks.base import as_prompt
from gkd_rl.tasks.rows import RowTask, template_names
from gkd_rl.tasks.sources import Row, open_rows
from gkd_rl.types import Example, Message
from reward_models.text import completion_text

_CHAT = ("role", "content")


class CustomTask(RowTask):
    """Rows with prompts, and whatever else the rewards want to see: every column reaches them by its name (dates and the like as text).

    Args:
        train, test: files (absolute, or below ``data_dir``) or data sets of the hub; lists of them are read one after the other.
        held_out_rows: without ``test``, so many rows at the end of ``train`` are held out of it.
        prompt: the column of prompts, text or chat messages; chats go through the tokenizer's own template whatever ``task.prompt_format``.
        completion: the column of answers to learn from; null: there is none.
        reference: the column that is also given to rewards as ``reference``; null: there is none.
        template: the prompt made of columns, such as ``"{question}\\n"``, in the place of ``prompt``.
        system: the system's message, where ``task.prompt_format`` makes chats of texts.
        cut: the column whose text may be cut where ``task.long_prompts=truncate``; by default that of ``prompt``, if it is text.
        metrics: corpus metrics of the evaluation, such as ``[rouge, distinct]``.
    """

    def __init__(
        self,
        train: Any,
        test: Any = None,
        held_out_rows: int = 0,
        data_dir: str | None = None,
        prompt_format: str = "plain",
        prompt: str = "prompt",
        completion: str | None = None,
        reference: str | None = None,
        template: str | None = None,
        system: str | None = None,
        cut: str | None = None,
        metrics: Sequence[str] = (),
    ) -> None:
        rows = open_rows(train, "train", data_dir)
        if (test is None) == (held_out_rows < 1):
            raise UserError("the custom task needs task.options.test, or task.options.held_out_rows=N to hold out the last rows of train")
        if held_out_rows >= len(rows):
            raise UserError(f"task.options.held_out_rows is {held_out_rows}, and train has {len(rows)} rows; lower it")
        super().__init__(*((rows, open_rows(test, "test", data_dir)) if test else (rows[:-held_out_rows], rows[-held_out_rows:])))
        self.prompt, self.completion, self.reference, self.template = prompt, completion, reference, template
        self.named = template_names(template) if template is not None else []
        self.system, self.prompt_format = system, prompt_format
        self.cut, self.metrics = cut or (None if template else prompt), tuple(metrics)

    def default_rewards(self) -> list[RewardConfig]:
        """Exact match with the reference; without one, whether there is an answer at all, so that a pure distillation can be evaluated."""
        if self.reference is None:
            return [RewardConfig(path="gkd_rl.tasks.custom.not_empty", name="not_empty")]
        return [RewardConfig(path="reward_models.TextMetric", name="exact", options={"metric": "exact_match"})]

    def example(self, row: Row, key: int) -> Example:
        columns = {name: _plain(value) for name, value in row.fields.items() if name not in ("prompts", "completions", "completion")}
        if self.reference is not None:
            columns["reference"] = row.value(self.reference)
        completion = None
        if self.completion is not None:
            answer = row.value(self.completion)
            completion = row.text(self.completion) if isinstance(answer, str) else _said(row, self.completion, answer)
        return Example(prompt=self._prompt(row), completion=completion, columns=columns, key=key)

    def _prompt(self, row: Row) -> str | Sequence[Message]:
        if self.template is not None:
            text = self.template.format_map({name: row.text(name) if name == self.cut else str(row.value(name)) for name in self.named})
            return as_prompt(text, self.prompt_format, "{text}", self.system)
        value = row.value(self.prompt)
        if isinstance(value, str):
            return as_prompt(row.text(self.prompt), self.prompt_format, "{text}", self.system)
        return _chat(row, self.prompt, value)


def not_empty(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 for an answer with any text, 0 for none."""
    return [float(bool(completion_text(completion).strip())) for completion in completions]


def _plain(value: Any) -> Any:
    """``value`` as JSON has it, since columns are written to the run's folder; what JSON has no form for, as text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)


def _chat(row: Row, name: str, value: Any) -> list[Message]:
    messages = list(value) if isinstance(value, (list, tuple)) else []
    if not messages or not all(isinstance(m, Mapping) and all(isinstance(m.get(part), str) for part in _CHAT) for m in messages):
        raise UserError(f"{row.where}: field '{name}' is neither text nor a list of chat messages with role and content")
    return [{part: message[part] for part in _CHAT} for message in messages]


def _said(row: Row, name: str, value: Any) -> str:
    """The text of a completion in chat form: its one message."""
    messages = _chat(row, name, value)
    if len(messages) != 1 or not messages[0]["content"].strip():
        raise UserError(f"{row.where}: field '{name}' holds {len(messages)} messages; a completion is one, with text")
    return messages[0]["content"]
