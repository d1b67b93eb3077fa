"""From a YAML file and dotted overrides to a ``Config`` of plain objects, with errors that name the fix.

``base: other.yaml`` (relative to the file) is read first and the file laid over it; ``key=value`` overrides come last. Sections are
merged key by key; lists and mappings of free form (``task.options``, ``ablation.grid``) are replaced as a whole.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from gkd_rl.config.run import Config, RewardConfig
from gkd_rl.errors import UserError


class HasDataDir(Protocol):
    """What configurations have in common."""

    data_dir: str | None


Settings = TypeVar("Settings", bound=HasDataDir)
_FREE_FORM = ("task.options", "tracking.options", "ablation.grid", "teacher_routing.weights", "model.config")
_SWITCHES = ("watch.action",)
"""Keys of which one choice is ``off``, which YAML reads as false."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read ``path`` with its bases and ``overrides`` (``a.b=value``) into a ``Config``; errors as of ``load_as``."""
    return load_as(Config, path, overrides)


def load_as(cls: type[Settings], path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Read ``path`` with its bases and ``overrides`` (``a.b=value``) into the dataclass ``cls``, which has a key ``data_dir``.

    Raises ``UserError`` for a missing or malformed file, an unknown key (with the nearest right one) or a wrong type.
    """
    merged = OmegaConf.structured(cls)
    for where, layer in _layers(Path(path), overrides):
        merged = _merge(merged, layer, where, cls)
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_first_line(error)}") from None
    assert isinstance(config, cls)
    if config.data_dir is None:
        config.data_dir = os.environ.get("GKD_RL_DATA") or None
    return config


def config_to_yaml(config: HasDataDir) -> str:
    """The whole resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """A copy of ``config`` with ``a.b=value`` overrides laid over it."""
    merged = OmegaConf.structured(config)
    for where, layer in _override_layers(overrides):
        merged = _merge(merged, layer, where, Config)
    result = OmegaConf.to_object(merged)
    assert isinstance(result, Config)
    return result


def _layers(path: Path, overrides: Sequence[str]) -> Iterator[tuple[str, DictConfig]]:
    chain: list[tuple[str, DictConfig]] = []
    seen: list[Path] = []
    current: Path | None = path
    while current is not None:
        if current.resolve() in seen:
            raise UserError(f"{current}: its 'base:' leads back to itself; remove one of the links")
        layer = _read(current, named_by=seen[-1:])
        seen.append(current.resolve())
        base = layer.pop("base", None)
        chain.append((str(current), layer))
        current = current.parent / str(base) if base else None
    yield from reversed(chain)
    yield from _override_layers(overrides)


def _emptied(merged: DictConfig, layer: DictConfig, where: str, cls: type) -> DictConfig:
    """``merged`` without the free-form mappings that ``layer`` gives anew (and not, as ``task.options.key=value`` does, in part)."""
    merged = merged.copy()
    for key in set(_FREE_FORM) & set(all_keys(cls)):
        if isinstance(OmegaConf.select(layer, key, throw_on_resolution_failure=False), DictConfig) and f"'{key}." not in where:
            OmegaConf.update(merged, key, {}, merge=False)
    return merged


def _read(path: Path, named_by: Sequence[Path]) -> DictConfig:
    """The mapping in ``path``; ``named_by`` is the file whose ``base:`` named it, if there is one."""
    if path.is_dir():
        raise UserError(f"configuration file {path} is a folder; name a YAML file in it")
    if not path.is_file():
        raise UserError(_no_file(path, named_by))
    try:
        layer = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not readable as YAML ({_yaml_problem(error)})") from None
    except PermissionError:
        raise UserError(f"configuration file {path} may not be read; change its permissions") from None
    if not isinstance(layer, DictConfig):
        raise UserError(f"{path}: a configuration is a mapping of keys to values, not a list or a single value")
    return layer


def _no_file(path: Path, named_by: Sequence[Path]) -> str:
    folder = path.parent if path.parent.is_dir() else Path(".")
    others = sorted(p.name for p in folder.glob("*.yaml") if p.resolve() not in named_by)
    near = difflib.get_close_matches(path.name, others, n=1, cutoff=0.5)
    what = f"{named_by[0]}: its base {path}" if named_by else f"configuration file {path}"
    return f"{what} does not exist" + (f"; did you mean {folder / near[0]}?" if near else "")


def _override_layers(overrides: Sequence[str]) -> Iterator[tuple[str, DictConfig]]:
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.\[\]-]*", key):
            raise UserError(f"override '{override}' is not of the form key=value, such as objective.alpha=0.25")
        try:
            yield f"override '{override}'", OmegaConf.from_dotlist([override])
        except YAMLError as error:
            raise UserError(f"override '{override}': its value is not readable as YAML ({_yaml_problem(error)})") from None
        except OmegaConfBaseException as error:
            raise UserError(f"override '{override}': {_first_line(error)}") from None


def _merge(merged: DictConfig, layer: DictConfig, where: str, cls: type) -> DictConfig:
    for key in set(_SWITCHES) & set(all_keys(cls)):
        if OmegaConf.select(layer, key, throw_on_resolution_failure=False) is False:
            OmegaConf.update(layer, key, "off")
    try:
        return OmegaConf.merge(_emptied(merged, layer, where, cls), layer)  # pyright: ignore[reportReturnType]
    except ConfigKeyError as error:
        raise UserError(f"{where}: {_unknown_key(error, cls)}") from None
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        raise UserError(f"{where}: {_misfit(layer, cls) or (key + ': ' if key else '') + _first_line(error)}") from None
    except TypeError:
        raise UserError(f"{where}: a list is replaced as a whole, for example rewards=[{{path: ..., weight: 1}}]") from None


def _misfit(layer: DictConfig, cls: type) -> str | None:
    """What is wrong with ``layer`` where it gives a whole section a single value, of which OmegaConf speaks in Python's terms."""
    keys = list(all_keys(cls))
    for section in (key for key in keys if any(other.startswith(f"{key}.") for other in keys)):
        given = OmegaConf.select(layer, section, throw_on_resolution_failure=False)
        if given is not None and not isinstance(given, DictConfig):
            return f"{section} is a section of keys, not the single value {given}; write {section}.KEY=VALUE"
    return None


def _unknown_key(error: ConfigKeyError, cls: type) -> str:
    key = str(error.full_key or error.key)
    known = [*all_keys(cls), *(f"rewards.{item.name}" for item in dataclasses.fields(RewardConfig) if cls is Config)]
    if error.object_type is RewardConfig:  # entries of a list, which OmegaConf names without their place
        known, key = [k for k in known if k.startswith("rewards.")], f"rewards.{key}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    tail = key.rsplit(".", 1)[-1]
    same_tail = sorted((other for other in known if other.rsplit(".", 1)[-1] == tail), key=lambda other: other.count("."))
    best = same_tail[0] if same_tail else (near[0] if near else "")
    return f"there is no key '{key}'; the nearest is '{best}'"


def all_keys(cls: type = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the configuration."""
    for item in dataclasses.fields(cls):
        yield prefix + item.name
        made: Any = item.default_factory() if item.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(made):
            yield from all_keys(type(made), f"{prefix}{item.name}.")


def value_at(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def differences(one: Config, other: Config) -> list[str]:
    """Dotted keys on which two configurations differ."""
    leaves = (key for key in all_keys() if not dataclasses.is_dataclass(value_at(one, key)))
    return [key for key in leaves if value_at(one, key) != value_at(other, key)]


def _yaml_problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or _first_line(error))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
