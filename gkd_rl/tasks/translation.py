"""Translation: pairs of sentences, from two text files or from rows in WMT's form."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gkd_rl.config.run import RewardConfig
from gkd_rl.errors import UserError
from gkd_rl.tasks.base import as_prompt
from gkd_rl.tasks.rows import RowTask, check_template
from gkd_rl.tasks.sources import Row, located, open_rows, read_lines
from gkd_rl.types import Example

_TRAIN = {"source": "opennmt_ende10k/src-train.txt.gz", "target": "opennmt_ende10k/tgt-train.txt.gz"}
_TEST = {"source": "ntrex_ende/newstest2019-src.eng.txt", "target": "ntrex_ende/newstest2019-ref.deu.txt"}


class TranslationTask(RowTask):
    """Sentences and their translations.

    Args:
        train, test: ``{source: FILE, target: FILE}``, two text files with a sentence on each line; or a file of rows, or a data set of the
            hub such as ``hub:wmt/wmt14:de-en:train``.
        source, target: fields of such rows, or of the mapping in their field ``translation``.
        source_language, target_language: their names in the prompt.
        detokenise_train: undo Moses' tokenisation of the training pairs (``&apos;``, spaces before punctuation), which OpenNMT's files have
            and the references of the test files do not; null: of those files alone.
        template: the plain prompt, with ``{text}`` and, if wanted, ``{source_language}`` and ``{target_language}``.

    Columns: ``reference`` (a text, or several), ``source``.
    """

    metrics = ("bleu", "chrf", "self_bleu", "distinct")
    cut = "source"

    def __init__(
        self,
        data_dir: str | None = None,
        prompt_format: str = "plain",
        train: Any = None,
        test: Any = None,
        source: str = "en",
        target: str = "de",
        source_language: str = "English",
        target_language: str = "German",
        detokenise_train: bool | None = None,
        template: str = "translate {source_language} to {target_language}: {text}\n",
    ) -> None:
        names = ("text", "source_language", "target_language")
        languages = {"source_language": source_language, "target_language": target_language}
        self.template = check_template(template, names)
        self.plain = self.template.format(text="{text}", **languages)
        self.system = f"Translate the text from {source_language} to {target_language}."
        self.source, self.target, self.prompt_format = source, target, prompt_format
        sides = [_pairs(given, name, data_dir, (source, target)) for given, name in ((train or _TRAIN, "train"), (test or _TEST, "test"))]
        super().__init__(*(rows for rows, _ in sides))
        self.notes = tuple(note for _, note in sides if note)
        self.detokenise_train = train is None if detokenise_train is None else detokenise_train

    def default_rewards(self) -> list[RewardConfig]:
        return [RewardConfig(path="reward_models.TextMetric", name="chrf", options={"metric": "chrf"})]

    def train_example(self, index: int) -> Example:
        return self._example(self.train[index], index, detokenised if self.detokenise_train else str)

    def example(self, row: Row, key: int) -> Example:
        return self._example(row, key, str)

    def _example(self, row: Row, key: int, form) -> Example:
        if isinstance(pair := row.fields.get("translation"), Mapping):
            row = Row(pair, row.where)
        text, references = form(row.text(self.source)), [form(reference) for reference in row.texts(self.target)]
        return Example(
            prompt=as_prompt(text, self.prompt_format, self.plain, self.system),
            completion=references[0],
            columns={"reference": references if len(references) > 1 else references[0], "source": text},
            key=key,
        )


def detokenised(text: str) -> str:
    """``text`` without Moses' tokenisation: entities are characters, and punctuation stands at its word."""
    text = html.unescape(text).replace(" @-@ ", "-")
    text = re.sub(r" ([,.;:!?%)\]}…]|n't\b|'(?:s|t|m|d|re|ve|ll)\b)", r"\1", text)
    text = re.sub(r"([(\[{¿¡]) ", r"\1", text)
    return re.sub(r'(^|[ (])" ([^"]*?) "', r'\1"\2"', text)


def _pairs(given: Any, option: str, data_dir: str | None, fields: tuple[str, str]) -> tuple[Sequence[Row], str]:
    """Rows of two text files, or of one source of rows, and what is to be said of those that were left out."""
    if not isinstance(given, Mapping):
        return open_rows(given, option, data_dir), ""
    if set(given) != {"source", "target"}:
        raise UserError(
            f"task.options.{option} is a mapping of {', '.join(map(str, given)) or 'nothing'}; give it the files source and target"
        )
    files = {side: located(str(path), f"{option}.{side}", data_dir) for side, path in given.items()}
    source, target = (read_lines(files[side]) for side in ("source", "target"))
    if len(source) != len(target):
        raise UserError(
            f"task.options.{option}: {files['source']} has {len(source)} lines and {files['target']} {len(target)}; line by line, they "
            "have to be translations of each other"
        )
    pairs = enumerate(zip(source, target, strict=True), 1)
    rows = [Row(dict(zip(fields, pair, strict=True)), f"{files['source']}, line {n}") for n, pair in pairs if all(map(str.strip, pair))]
    if not rows:
        raise UserError(f"task.options.{option}: {files['source']} and {files['target']} hold no pair of which both sides are text")
    empty = len(source) - len(rows)
    return rows, f"task.options.{option}: {empty} of {len(source)} pairs have an empty side and are left out" if empty else ""
