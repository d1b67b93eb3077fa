"""The references of a row, whichever form its column has."""

from collections.abc import Mapping, Sequence
from typing import Any

from reward_models.errors import InputError, nearest_hint
from reward_models.text import completion_text


def reference_column(columns: Mapping[str, Any], field: str, rows: int) -> list[list[str]]:
    """Return the references of each row, none where the row has none.

    A row's value is a text, a chat (its last answer counts), a list of several of these, or None.

    Raises:
        InputError: there is no such column (the nearest one is named), it has another length, or a value is something else.
    """
    if field not in columns:
        raise InputError(f"there is no column '{field}' with the references{nearest_hint(field, columns)}")
    values = columns[field]
    if len(values) != rows:
        raise InputError(f"{rows} completions came with {len(values)} references")
    return [_row_references(value, field, row) for row, value in enumerate(values)]


def _row_references(value: Any, field: str, row: int) -> list[str]:
    if value is None:
        return []
    if isinstance(value, (str, Mapping)) or _is_chat(value):
        return [completion_text(value)]
    if isinstance(value, Sequence) and all(isinstance(one, str) or _is_chat(one) for one in value):
        return [completion_text(one) for one in value]
    raise InputError(f"column '{field}', row {row}: a reference is a text or a list of texts, not {type(value).__name__}")


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(message, Mapping) for message in value)
