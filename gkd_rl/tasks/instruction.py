"""Instructions: prompts of many kinds with answers to learn from (FLAN's and T0's form), judged on others that were not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkd_rl.config.run import RewardConfig
from gkd_rl.errors import UserError
from gkd_rl.tasks.base import as_prompt
from gkd_rl.tasks.rows import RowTask, check_template
from gkd_rl.tasks.sources import Row, open_rows
from gkd_rl.types import Example


class InstructionTask(RowTask):
    """Instructions and answers. The form of a row is known by its fields:

    * ``instruction_id_list`` and ``kwargs`` beside ``prompt``: IFEval, whose instructions a program checks. The two are columns.
    * ``instances`` beside ``instruction``: Self-Instruct's user-oriented instructions, asked with their first instance. Column
      ``reference``.
    * otherwise ``prompt`` and ``completion``, or the fields that the options name (FLAN's ``inputs`` and ``targets``). Columns
      ``reference`` and, where it is there, ``template``.

    Args:
        train, test: files below ``data_dir``, or data sets of the hub. ``test: ifeval/input_data.jsonl`` evaluates on IFEval.
        prompt, completion: fields of rows of the first form.
        end: text that closes completions in the files and is no part of them, as in those of T0's mix.
        language: whether the default reward of IFEval's rows checks languages too, which needs ``langdetect``.
        template: the plain prompt, with ``{text}``.
    """

    metrics = ("rouge", "self_bleu", "distinct")

    def __init__(
        self,
        data_dir: str | None = None,
        prompt_format: str = "plain",
        train: Any = "self_instruct/t0_mix_25_per_template.jsonl.gz",
        test: Any = "self_instruct/user_oriented_instructions.jsonl",
        prompt: str = "prompt",
        completion: str = "completion",
        end: str = "<|endoftext|>",
        language: bool = True,
        template: str = "{text}\n",
    ) -> None:
        self.template = check_template(template, ("text",))
        super().__init__(open_rows(train, "train", data_dir), open_rows(test, "test", data_dir))
        self.prompt, self.completion, self.prompt_format, self.end = prompt, completion, prompt_format, end
        self.language = language
        self.checked = "instruction_id_list" in self.test[0].fields
        if self.checked:
            self.metrics = ("self_bleu", "distinct")

    def default_rewards(self) -> list[RewardConfig]:
        """ROUGE-L to the reference; where held-out rows are IFEval's, first of all whether its instructions are followed."""
        overlap = RewardConfig(path="reward_models.TextMetric", name="rougeL", options={"metric": "rougeL"})
        followed = RewardConfig(path="reward_models.InstructionChecks", name="followed", options={"language": self.language})
        return [followed, overlap] if self.checked else [overlap]

    def example(self, row: Row, key: int) -> Example:
        if "instruction_id_list" in row.fields:
            return self._example(row.text("prompt"), None, {name: row.value(name) for name in ("instruction_id_list", "kwargs")}, key)
        if "instances" in row.fields:
            return self._example(*_asked(row), {}, key)
        columns = {"template": row.fields["template"]} if "template" in row.fields else {}
        return self._example(row.text(self.prompt), row.text(self.completion).removesuffix(self.end), columns, key)

    def _example(self, text: str, answer: str | None, columns: dict[str, Any], key: int) -> Example:
        absent = dict.fromkeys(("instruction_id_list", "kwargs")) if self.checked else {}
        columns = {**absent, "reference": answer, **columns}
        return Example(
            prompt=as_prompt(text, self.prompt_format, self.template),
            completion=answer,
            columns=columns,
            key=key,
        )


def _asked(row: Row) -> tuple[str, str]:
    """Instruction with the first instance's input, and its output."""
    instances = row.value("instances")
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], Mapping):
        raise UserError(f"{row.where}: field 'instances' is not a list of objects with input and output")
    first = Row(instances[0], f"{row.where}, field 'instances'")
    given = str(first.fields.get("input") or "").strip()
    return row.text("instruction") + (f"\n\n{given}" if given else ""), first.text("output")
