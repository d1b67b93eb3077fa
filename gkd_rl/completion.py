"""Completion scripts for shells: commands, options and files by shtab; keys of the configuration, and their choices, beside them."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import shtab

from gkd_rl.config.reward_model import RewardModelConfig
from gkd_rl.config.run import Config
from gkd_rl.config.tracking import PACKAGES
from gkd_rl.config.validate import RESUME

_OF_REWARD_MODELS = "reward-model"
_FOLDERS = ("DIR", "FOLDER", "RUN_DIR", "CHECKPOINT_OR_RUN", "PATH")
_FILES = ("FILE",)
_BY_HAND = {"resume": RESUME, "trackers": tuple(f"[{name}]" for name in PACKAGES)}
"""Choices that the type does not tell."""


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script with which ``shell`` (bash, zsh, fish) completes the commands of ``parser``."""
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in subparsers.choices.items():
        keys = "_gkd_rl_reward_model_keys" if name == _OF_REWARD_MODELS else "_gkd_rl_keys"
        for action in command._actions:
            _complete(action, keys)
    made = shtab.complete(parser, shell, preamble=_PREAMBLES[shell]())
    return made + _BASH_END if shell == "bash" else made


def _complete(action: argparse.Action, keys: str) -> None:
    """Say to shtab what an argument is completed with."""
    found: Any = None
    if action.dest == "config":
        found = shtab.glob("*.yaml", "*.yml")
    elif action.dest == "overrides":
        found = {"bash": keys, "zsh": keys, "fish": f"({keys})"}
    elif action.metavar in _FOLDERS:
        found = shtab.DIRECTORY
    elif action.metavar in _FILES or action.dest in ("file", "out"):
        found = shtab.FILE
    if found is not None:
        action.complete = found  # pyright: ignore[reportAttributeAccessIssue]


def keys_and_choices(cls: type, prefix: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each dotted key that takes a value, and its choices where it has some."""
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        made: Any = item.default_factory() if item.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(made):
            yield from keys_and_choices(type(made), f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, _BY_HAND.get(prefix + item.name, _choices(hints[item.name]))


def _choices(hint: Any) -> tuple[str, ...]:
    if hint is bool:
        return ("true", "false")
    return tuple(map(str, get_args(hint))) if get_origin(hint) is Literal else ()


def _keys(cls: type) -> list[str]:
    return [f"{key}=" for key, _ in keys_and_choices(cls)]


def _all_choices() -> dict[str, tuple[str, ...]]:
    return {key: values for cls in (RewardModelConfig, Config) for key, values in keys_and_choices(cls) if values}


def _bash() -> str:
    """``=`` parts words in bash: a value is completed by the function below, as a word of its own."""
    cases = "\n".join(f"    {key}) echo '{' '.join(values)}' ;;" for key, values in _all_choices().items())
    return f"""
_gkd_rl_keys() {{ compgen -W "{" ".join(_keys(Config))}" -- "$1"; }}
_gkd_rl_reward_model_keys() {{ compgen -W "{" ".join(_keys(RewardModelConfig))}" -- "$1"; }}
_gkd_rl_choices() {{
  case "$1" in
{cases}
  esac
}}
"""


_BASH_END = """

_gkd_rl() {
  local word="${COMP_WORDS[COMP_CWORD]}" key=""
  if [[ "$word" == "=" ]]; then
    key="${COMP_WORDS[COMP_CWORD-1]}" word=""
  elif (( COMP_CWORD > 1 )) && [[ "${COMP_WORDS[COMP_CWORD-1]}" == "=" ]]; then
    key="${COMP_WORDS[COMP_CWORD-2]}"
  fi
  if [[ -n "$key" ]]; then
    COMPREPLY=($(compgen -W "$(_gkd_rl_choices "$key")" -- "$word"))
    [[ -n "$(_gkd_rl_choices "$key")" ]] || COMPREPLY=($(compgen -f -- "$word"))
    return 0
  fi
  _shtab_gkd_rl "$@"
  [[ "${COMPREPLY[0]-}" != *= ]] || compopt -o nospace 2>/dev/null || :
}
complete -o bashdefault -F _gkd_rl gkd-rl
"""


def _zsh() -> str:
    return _zsh_function("_gkd_rl_keys", Config) + _zsh_function("_gkd_rl_reward_model_keys", RewardModelConfig)


def _zsh_function(name: str, cls: type) -> str:
    given = [(key, [f"'{key}={value}'" for value in values]) for key, values in keys_and_choices(cls) if values]
    cases = "\n".join(f"    {key}=*) values=({' '.join(words)}) ;;" for key, words in given)
    return f"""
{name}() {{
  local -a keys values
  case "$PREFIX" in
{cases}
  esac
  (( $#values )) && compadd -- $values && return
  keys=({" ".join(_keys(cls))})
  compadd -S '' -- $keys
}}
"""


def _fish() -> str:
    return _fish_function("_gkd_rl_keys", Config) + _fish_function("_gkd_rl_reward_model_keys", RewardModelConfig)


def _fish_function(name: str, cls: type) -> str:
    words = [f"'{key}={value}'" for key, values in keys_and_choices(cls) for value in ("", *values)]
    return f"function {name}\n  printf '%s\\n' {' '.join(words)}\nend\n"


_PREAMBLES = {"bash": _bash, "zsh": _zsh, "fish": _fish}
