"""Summarization: a document and its summaries (XSum's form; SciTLDR's files, which are the default, have several references)."""

from __future__ import annotations

from typing import Any

from gkd_rl.tasks.base import as_prompt
from gkd_rl.tasks.rows import RowTask, check_template
from gkd_rl.tasks.sources import Row, open_rows
from gkd_rl.types import Example


class SummarizationTask(RowTask):
    """Rows with a document and one summary or several.

    Args:
        train, test: files below ``data_dir``, or data sets of the hub such as ``hub:EdinburghNLP/xsum:train``.
        document, summary: fields of a row; a document may be a list of sentences, a summary a list of references, of which the first
            is the completion that is learned from.
        template: the plain prompt, with ``{text}``.
        instruction: the system's message of a chat.

    Columns: ``reference`` (a text, or several), ``document``.
    """

    metrics = ("rouge", "self_bleu", "distinct")
    cut = "document"

    def __init__(
        self,
        data_dir: str | None = None,
        prompt_format: str = "plain",
        train: Any = "scitldr/train.jsonl.gz",
        test: Any = "scitldr/test.jsonl.gz",
        document: str = "source",
        summary: str = "target",
        template: str = "summarize: {text}\n",
        instruction: str = "Summarize the text in one sentence.",
    ) -> None:
        self.template = check_template(template, ("text",))
        super().__init__(open_rows(train, "train", data_dir), open_rows(test, "test", data_dir))
        self.document, self.summary, self.instruction, self.prompt_format = document, summary, instruction, prompt_format

    def example(self, row: Row, key: int) -> Example:
        document, references = row.text(self.document), row.texts(self.summary)
        return Example(
            prompt=as_prompt(document, self.prompt_format, self.template, self.instruction),
            completion=references[0],
            columns={"reference": references if len(references) > 1 else references[0], "document": document},
            key=key,
        )
