"""gkd-rl: align and compress a language model in one run."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any


def _others_run() -> bool:
    """Whether another process wants a processor at this moment, as far as the system says."""
    try:
        running, _, _ = Path("/proc/loadavg").read_text().split()[3].partition("/")
    except (OSError, IndexError):
        return True
    return int(running) > 1


# How threads wait for their next piece of work. To spin for some microseconds saves a small model a third of its time, but starves
# whatever shares the machine, and is starved by it: then they sleep. Read when torch is first imported.
if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
    if _others_run():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        os.environ["GOMP_SPINCOUNT"] = "3000"


_HOMES = {
    "ArithmeticVerifier": "reward_models",
    "Config": "gkd_rl.config.run",
    "Evaluation": "gkd_rl.evaluation.evaluate",
    "UserError": "gkd_rl.errors",
    "evaluate": "gkd_rl.evaluation.command",
    "fused_objective": "gkd_rl.objective.fused",
    "grade": "reward_models.grading",
    "load_config": "gkd_rl.config.load",
    "token_divergence": "gkd_rl.objective.divergence",
    "train": "gkd_rl.training",
    "unified_objective": "gkd_rl.objective.unified",
    "validate": "gkd_rl.config.validate",
}
"""The names of ``gkd_rl`` itself and where they live. Imported when first asked for: the command line has to answer at once."""

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gkd_rl' has no attribute '{name}'; it has {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
