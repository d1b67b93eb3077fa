"""Reward of following instructions that a program can check, for rows such as those of IFEval."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from reward_models.errors import InputError, nearest_hint
from reward_models.instructions import counts, forms
from reward_models.instructions.language import is_in, require_detector
from reward_models.text import completion_text

CHECKS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": counts.capital_word_frequency,
    "change_case:english_capital": forms.english_capital,
    "change_case:english_lowercase": forms.english_lowercase,
    "combination:repeat_prompt": forms.repeat_prompt,
    "combination:two_responses": forms.two_responses,
    "detectable_content:number_placeholders": counts.number_placeholders,
    "detectable_content:postscript": forms.postscript,
    "detectable_format:constrained_response": forms.constrained_response,
    "detectable_format:json_format": forms.json_format,
    "detectable_format:multiple_sections": forms.multiple_sections,
    "detectable_format:number_bullet_lists": forms.number_bullet_lists,
    "detectable_format:number_highlighted_sections": forms.number_highlighted_sections,
    "detectable_format:title": forms.title,
    "keywords:existence": counts.existence,
    "keywords:forbidden_words": counts.forbidden_words,
    "keywords:frequency": counts.frequency,
    "keywords:letter_frequency": counts.letter_frequency,
    "language:response_language": is_in,
    "length_constraints:nth_paragraph_first_word": counts.nth_paragraph_first_word,
    "length_constraints:number_paragraphs": counts.number_paragraphs,
    "length_constraints:number_sentences": counts.number_sentences,
    "length_constraints:number_words": counts.number_words,
    "punctuation:no_comma": forms.no_comma,
    "startend:end_checker": forms.end_checker,
    "startend:quotation": forms.quotation,
}
"""The instructions of IFEval by their ids."""

_ENGLISH = ("change_case:english_capital", "change_case:english_lowercase")
_LANGUAGE = "language:response_language"


class InstructionChecks:
    """Share of a row's instructions that the completion follows, or 1 only where it follows all.

    An instruction is followed strictly where its check holds of the completion, loosely where it holds of the completion, of it without its
    first line, its last line or both, or of any of these without asterisks (Zhou et al. 2023, section 2.2). An empty completion follows
    none. Rows without instructions get None.

    Args:
        score: `share` of the followed instructions, or `all`: 1 where all are followed, else 0.
        mode: `strict` or `loose`.
        language: check languages, by `langdetect`; without it instructions about the language are left out, and those about English
            capitals and small letters look at the letters alone.
        ids_field, kwargs_field: the columns of each row's list of instructions, and of their arguments.

    Raises:
        InputError: an option is out of range, or `language` without `langdetect`.
    """

    def __init__(
        self,
        *,
        score: Literal["share", "all"] = "share",
        mode: Literal["strict", "loose"] = "strict",
        language: bool = True,
        ids_field: str = "instruction_id_list",
        kwargs_field: str = "kwargs",
    ) -> None:
        if score not in ("share", "all"):
            raise InputError(f"score is '{score}'; choose share or all")
        if mode not in ("strict", "loose"):
            raise InputError(f"mode is '{mode}'; choose strict or loose")
        if language:
            require_detector()
        self.__name__ = "instructions"  # trainers log a reward under this name
        self.score, self.mode, self.language = score, mode, language
        self.ids_field, self.kwargs_field = ids_field, kwargs_field

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one reward for each completion.

        Raises:
            InputError: a column is not there, or a row has an unknown instruction or other arguments than it takes.
        """
        for field in (self.ids_field, self.kwargs_field):
            if field not in columns:
                raise InputError(f"there is no column '{field}' with the instructions{nearest_hint(field, columns)}")
        rows = zip(completions, columns[self.ids_field], columns[self.kwargs_field], strict=True)
        return [self._reward(row, completion_text(one), ids, arguments) for row, (one, ids, arguments) in enumerate(rows)]

    def followed(self, response: str, ids: Sequence[str], arguments: Sequence[Mapping[str, Any] | None]) -> list[bool]:
        """Return for each instruction whether `response` follows it. Instructions that are left out are not in the list.

        Raises:
            InputError: an unknown instruction, or other arguments than it takes.
        """
        if len(ids) != len(arguments):
            raise InputError(f"{len(ids)} instructions came with arguments for {len(arguments)}")
        checks = [_bound(one, given or {}) for one, given in zip(ids, arguments, strict=True)]
        return [self._follows(name, check, response) for name, check in zip(ids, checks, strict=True) if self.language or name != _LANGUAGE]

    def _reward(self, row: int, response: str, ids: Sequence[str] | None, arguments: Sequence[Any] | None) -> float | None:
        try:
            found = self.followed(response, ids or [], arguments or [])
        except InputError as error:
            raise InputError(f"row {row}: {error}") from error
        if not found:
            return None
        return float(all(found)) if self.score == "all" else sum(found) / len(found)

    def _follows(self, name: str, check: Callable[[str], bool], response: str) -> bool:
        readings = _loose_readings(response) if self.mode == "loose" else iter([response])
        return any(self._holds(name, check, reading) for reading in readings if reading.strip())

    def _holds(self, name: str, check: Callable[[str], bool], response: str) -> bool:
        return check(response) and (name not in _ENGLISH or not self.language or is_in(response, "en"))


def _loose_readings(response: str) -> Iterator[str]:
    lines = response.split("\n")
    for kept in (lines, lines[1:], lines[:-1], lines[1:-1]):
        text = "\n".join(kept).strip()
        yield text
        yield text.replace("*", "")


def _bound(name: str, arguments: Mapping[str, Any]) -> Callable[[str], bool]:
    """The check with its arguments; those that are null are absent (tables have a column for each that any row takes)."""
    if name not in CHECKS:
        raise InputError(f"there is no instruction '{name}'{nearest_hint(name, CHECKS)}")
    check = CHECKS[name]
    given = {key: value for key, value in arguments.items() if value is not None}
    takes = [parameter for parameter in inspect.signature(check).parameters if parameter != "response"]
    if sorted(given) != sorted(takes):
        raise InputError(f"instruction '{name}' takes {', '.join(takes) or 'no arguments'}, not {', '.join(given) or 'none'}")

    def bound(response: str) -> bool:
        try:
            return check(response, **given)
        except (TypeError, AttributeError, ValueError) as error:
            raise InputError(f"instruction '{name}' cannot be checked with {given} ({error})") from error

    return bound
