"""The floors of the package: a file imports from its own floor or from lower ones, never from a higher one."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS: tuple[tuple[str, ...], ...] = (
    ("gkd_rl", "gkd_rl.types", "gkd_rl.errors", "gkd_rl.config"),
    (
        "gkd_rl.objective",
        "gkd_rl.config.validate",
        "gkd_rl.config.teachers",
        "gkd_rl.config.first_batch",
    ),  # the check of a configuration asks the objective about its part
    ("gkd_rl.models",),
    (
        *(
            "gkd_rl.teacher",
            "gkd_rl.rollout",
            "gkd_rl.engine",
            "gkd_rl.resharding",
            "gkd_rl.processes",
            "gkd_rl.accumulated",
            "gkd_rl.muon",
            "gkd_rl.operators",
            "gkd_rl.learner",
            "gkd_rl.scoring",
        ),
        *(
            "gkd_rl.run_folder",
            "gkd_rl.console",
            "gkd_rl.checkpoint",
            "gkd_rl.intact",
            "gkd_rl.signals",
            "gkd_rl.progress",
            "gkd_rl.tracking",
        ),
    ),
    ("gkd_rl.tasks", "gkd_rl.evaluation"),
    (
        *("gkd_rl.build", "gkd_rl.run_log", "gkd_rl.run", "gkd_rl.faults", "gkd_rl.collect", "gkd_rl.samples", "gkd_rl.training"),
        *("gkd_rl.sft", "gkd_rl.cache_teacher", "gkd_rl.export", "gkd_rl.watch", "gkd_rl.reward_model"),
        "gkd_rl.evaluation.command",
    ),
    ("gkd_rl.ablation", "gkd_rl.report", "gkd_rl.plan", "gkd_rl.preflight"),
    ("gkd_rl.cli", "gkd_rl.arguments", "gkd_rl.help_texts", "gkd_rl.completion", "gkd_rl.__main__", "gkd_rl.starting"),
)
"""Modules and packages of each floor; the longest name that fits a module decides."""


def test_every_module_stands_on_a_floor():
    stray = [module for module in _modules("gkd_rl") if module != "gkd_rl" and _named(module) == "gkd_rl"]
    assert not stray, f"say in FLOORS where these stand: {stray}"


def test_no_module_imports_from_a_higher_floor():
    wrong = [
        f"{module} (floor {_floor(module)}) imports {name} (floor {_floor(name)})"
        for module, path in _modules("gkd_rl").items()
        for name in sorted(_imports(path))
        if name.split(".")[0] == "gkd_rl" and _floor(name) > _floor(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_go_in_no_circle():
    modules = _modules("gkd_rl")
    graph = {module: {_home(name, modules) for name in _imports(path)} - {module} for module, path in modules.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_rewards_know_nothing_of_the_trainer():
    for module, path in _modules("reward_models").items():
        assert not [name for name in _imports(path) if name.split(".")[0] == "gkd_rl"], module


def _modules(package: str) -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    assert found
    return found


def _imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it, and ``module.name`` for each name that it takes from one."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def _home(name: str, modules: dict[str, Path]) -> str:
    """The module in which an imported name is found."""
    return name if name in modules else name.rpartition(".")[0]


def _named(module: str) -> str:
    fitting = [name for floor in FLOORS for name in floor if module == name or module.startswith(f"{name}.")]
    return max(fitting, key=len)


def _floor(module: str) -> int:
    named = _named(module)
    return next(number for number, floor in enumerate(FLOORS) if named in floor)
