"""Build a reward, or any other part, from the dotted path and the keyword arguments that a configuration names."""

import functools
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from reward_models.errors import InputError, nearest_hint

Reward = Callable[..., list[float | None]]


def load_reward(path: str, options: Mapping[str, Any] | None = None) -> Reward:
    """Return the reward at `path`: a class is instantiated with `options`, a function has them bound.

    Args:
        path: `package.module.Name`, or `file.py:Name` for a file that is not installed.
        options: keyword arguments of the class or function.

    Raises:
        InputError: the module, file, name or an option does not exist (the nearest right one is named), or the class
            refuses its options.
    """
    options = dict(options or {})
    label = f"reward '{path}'"
    target = _find(label, path)
    if not inspect.isclass(target):
        _check_options(label, target, options)
        return _bind(target, options) if options else target
    reward = _call(label, target, options)
    if not callable(reward):
        raise InputError(f"{label}: its instances cannot be called; give the class a __call__ method")
    return cast(Reward, reward)


def load_object(path: str, options: Mapping[str, Any] | None = None, kind: str = "class") -> Any:
    """Return what the class or factory function at `path` makes of `options`; errors as for `load_reward`.

    Args:
        kind: what messages call it, for example "task".
    """
    label = f"{kind} '{path}'"
    return _call(label, _find(label, path), dict(options or {}))


def _call(label: str, target: Callable[..., Any], options: dict[str, Any]) -> Any:
    _check_options(label, target, options)
    try:
        return target(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"{label}: {error}") from error


def _bind(function: Callable[..., Any], options: dict[str, Any]) -> Reward:
    bound = functools.partial(function, **options)
    functools.update_wrapper(bound, function)
    return bound


def _find(label: str, path: str) -> Any:
    target = _named(label, path)
    if not callable(target):
        raise InputError(f"{label} is a {type(target).__name__}, not a function or class")
    return target


def _named(label: str, path: str) -> Any:
    file, colon, name = path.rpartition(":")
    if colon:
        return _attribute(label, _module_from_file(label, Path(file)), name)
    module_name, dot, name = path.rpartition(".")
    if not dot or not all(part.isidentifier() for part in path.split(".")):
        raise InputError(f"{label} is not a dotted path; write package.module.Name or file.py:Name")
    return _attribute(label, _module(label, module_name), name)


def _module(label: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name != missing and not name.startswith(missing + "."):
            raise InputError(f"{label} needs the module '{missing}', which is not installed") from error
        parent = missing.rpartition(".")[0]
        raise InputError(f"{label}: there is no module '{missing}'{_module_hint(missing, parent)}") from error


def _module_hint(missing: str, parent: str) -> str:
    places = getattr(sys.modules[parent], "__path__", []) if parent else None
    return nearest_hint(missing, [f"{parent}.{one.name}".lstrip(".") for one in pkgutil.iter_modules(places)])


def _module_from_file(label: str, file: Path) -> ModuleType:
    if not file.is_file():
        siblings = [str(other) for other in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise InputError(f"{label}: there is no file '{file}'{nearest_hint(str(file), siblings)}")
    spec = importlib.util.spec_from_file_location(f"_reward_file_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{label}: '{file}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look a class's module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{label}: '{file}' cannot be imported ({type(error).__name__}: {error})") from error
    return module


def _attribute(label: str, module: ModuleType, name: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError as error:
        hint = nearest_hint(name, [other for other in dir(module) if not other.startswith("_")])
        raise InputError(f"{label}: '{module.__name__}' has no '{name}'{hint}") from error


def _check_options(label: str, target: Callable[..., Any], options: Mapping[str, Any]) -> None:
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError as error:
        raise InputError(f"{label} does not say which options it takes; wrap it in a function of your own") from error
    if inspect.isclass(target) and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    accepted = [p.name for p in parameters if p.kind in named and p.name not in ("prompts", "completions")]
    for name in options:
        if name not in accepted:
            listed = ", ".join(accepted) or "none"
            raise InputError(f"{label} has no option '{name}'{nearest_hint(name, accepted)} (accepted: {listed})")
