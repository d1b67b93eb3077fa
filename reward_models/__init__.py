"""Rewards for language models, and grading of finished outputs.

Every reward is a callable `(prompts, completions, **columns) -> list[float | None]`, the form that TRL's trainers call: one value
for each completion, None where the reward does not apply. Names are imported on first use, so that `import reward_models` loads
neither torch nor transformers nor sympy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward_models.arithmetic import ArithmeticVerifier, Verdict
    from reward_models.cached import Cached
    from reward_models.combine import LinearWeight, Requirement, RewardTotals, WeightedSum
    from reward_models.entailment import EntailmentReward
    from reward_models.errors import InputError, RewardError
    from reward_models.instruction_checks import InstructionChecks
    from reward_models.llm_judge import LLMJudge
    from reward_models.loading import load_reward
    from reward_models.sequence_classification import SequenceClassificationReward
    from reward_models.shaping import FormatReward, OverlongPenalty, RepetitionPenalty
    from reward_models.text_metrics import TextMetric
    from reward_models.wrappers import Retried, Threaded

_HOMES = {
    "ArithmeticVerifier": "arithmetic",
    "Cached": "cached",
    "EntailmentReward": "entailment",
    "FormatReward": "shaping",
    "InputError": "errors",
    "InstructionChecks": "instruction_checks",
    "LLMJudge": "llm_judge",
    "LinearWeight": "combine",
    "OverlongPenalty": "shaping",
    "RepetitionPenalty": "shaping",
    "Requirement": "combine",
    "Retried": "wrappers",
    "RewardError": "errors",
    "RewardTotals": "combine",
    "SequenceClassificationReward": "sequence_classification",
    "TextMetric": "text_metrics",
    "Threaded": "wrappers",
    "Verdict": "arithmetic",
    "WeightedSum": "combine",
    "load_reward": "loading",
}

__all__ = [
    "ArithmeticVerifier",
    "Cached",
    "EntailmentReward",
    "FormatReward",
    "InputError",
    "InstructionChecks",
    "LLMJudge",
    "LinearWeight",
    "OverlongPenalty",
    "RepetitionPenalty",
    "Requirement",
    "Retried",
    "RewardError",
    "RewardTotals",
    "SequenceClassificationReward",
    "TextMetric",
    "Threaded",
    "Verdict",
    "WeightedSum",
    "load_reward",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'reward_models' has no attribute {name!r}")
    return getattr(import_module(f"reward_models.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
