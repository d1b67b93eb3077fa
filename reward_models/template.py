"""The text of a row, made from a template of `{prompt}`, `{completion}` and any other column."""

import string
from collections.abc import Mapping
from typing import Any

from reward_models.errors import InputError, nearest_hint
from reward_models.text import completion_text, plain_prompt


class RowTemplate:
    """A template such as `"{document} {completion}"`; messages become text, a double brace stands for a brace.

    Args:
        template: the text with its fields in braces.

    Raises:
        InputError: the template cannot be read.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        try:
            self.fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        except ValueError as error:
            raise InputError(f"template {template!r} cannot be read ({error}); double a brace that stands for itself") from error

    def text(self, row: int, prompt: Any, completion: Any, columns: Mapping[str, Any]) -> str:
        """Return the text of row number `row`, of whose `columns` all rows are given.

        Raises:
            InputError: a column is not there; the nearest one is named.
        """
        fields: dict[str, Any] = {"prompt": plain_prompt(prompt), "completion": completion_text(completion)}
        for name in self.fields - fields.keys():
            if name not in columns:
                raise InputError(f"the template needs a column '{name}'{nearest_hint(name, columns)}")
            fields[name] = columns[name][row]
        return self.template.format(**fields)
