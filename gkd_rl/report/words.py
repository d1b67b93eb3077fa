"""The texts of tokens one by one, and what the verifier read in an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gkd_rl.config.run import Config
from gkd_rl.errors import UserError
from gkd_rl.models.source import resolve
from gkd_rl.models.tokenizers import load_tokenizer
from gkd_rl.tasks.base import make_task
from reward_models.arithmetic import ArithmeticVerifier, reference_text
from reward_models.errors import InputError, RewardError
from reward_models.loading import load_object


class TokenTexts:
    """Token ids → texts by the run's tokenizer: of its final model if there is one, else of the student that it began with."""

    def __init__(self, folder: Path, config: Config) -> None:
        """Raises ``UserError`` where neither has a tokenizer that loads."""
        final = folder / "model"
        source = str(final) if final.is_dir() else resolve(config.student.path, "student.path")
        self.tokenizer = load_tokenizer(source, "student.path", config.student.trust_remote_code)
        self.size = len(self.tokenizer)

    def of(self, ids: Iterable[int]) -> dict[int, str]:
        """The text that each token adds; the vocabulary's own spelling where it is part of a character only."""
        return {number: self._text(number) for number in ids}

    def _text(self, number: int) -> str:
        spelling = str(self.tokenizer.convert_ids_to_tokens(number)) if number < self.size else f"⟨{number}⟩"
        text = str(self.tokenizer.decode([number], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if not text or "\ufffd" in text:
            return spelling
        return f" {text}" if spelling.startswith("▁") and not text.startswith(" ") else text


def token_ids(rows: Iterable[Mapping[str, Any]]) -> set[int]:
    """Every token that rows of ``rollouts.jsonl`` name."""
    found: set[int] = set()
    for row in rows:
        found.update(row["tokens"])
        for name in ("student_top", "teacher_top"):
            found.update(number for choices in row.get(name) or () for number, _ in choices)
    return found


def verifier_of(config: Config) -> ArithmeticVerifier | None:
    """The first arithmetic verifier among the run's rewards; None if there is none.

    Raises ``UserError``, ``InputError`` or ``RewardError`` where rewards or task cannot be made any more.
    """
    rewards = make_task(config).default_rewards() if config.rewards is None else config.rewards
    for reward in rewards:
        if reward.path.rpartition(".")[2] == ArithmeticVerifier.__name__:
            made = load_object(reward.path, reward.options, kind="reward")
            if isinstance(made, ArithmeticVerifier):
                return made
    return None


def reading_of(verifier: ArithmeticVerifier | None, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the verifier finds in a row's completion; None without a verifier or a reference."""
    if verifier is None or verifier.reference_field not in row["columns"]:
        return None
    verdict = verifier.verify(row["completion"], reference_text(row["columns"][verifier.reference_field]))
    plain = {"value": verdict.value, "reference": verdict.reference_value}
    return {
        "status": verdict.status,
        "read": verdict.read,
        "form": verdict.form,
        **{name: None if value is None else str(value) for name, value in plain.items()},
        "first_wrong_step": verdict.first_wrong_step,
        "note": verdict.note,
    }


UNMADE = (UserError, InputError, RewardError)
"""What is raised where a part of a run cannot be made here: a data folder or a model that is elsewhere."""
