"""In which language a response is, by `langdetect`."""

import importlib.util

from reward_models.errors import InputError

LONGEST = 20_000
"""Characters that are looked at: more do not make it surer."""


def require_detector() -> None:
    """Raise `InputError` where `langdetect` is not installed."""
    if importlib.util.find_spec("langdetect") is None:
        raise InputError("checks of the language need langdetect; install it with: pip install 'gkd-rl[language]', or set language=false")


def is_in(response: str, language: str) -> bool:
    """Whether `response` is in `language`, a code such as `de`; text without anything to tell a language by is in none.

    (The paper's program takes such text for right.) The detector's draws have a fixed seed, so that the answer is always the same.
    """
    from langdetect import DetectorFactory, LangDetectException, detect  # pyright: ignore[reportMissingImports]

    DetectorFactory.seed = 0
    try:
        return detect(response[:LONGEST]) == language
    except LangDetectException:
        return False
