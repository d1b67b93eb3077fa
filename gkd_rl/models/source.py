"""Where a model comes from: a folder, a hub name, or a model shipped with this package (``embedded:NAME``)."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from gkd_rl.errors import UserError

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SCHEME = "embedded:"


def resolve(path: str, where: str) -> str:
    """The folder or hub name to load from; ``where`` is the configuration key, for the error's text.

    Raises ``UserError`` for an unknown embedded name, an adapter's folder, and a path that neither exists nor can be a hub name.
    """
    if path.startswith(SCHEME):
        return str(_embedded(path.removeprefix(SCHEME), where))
    folder = Path(path).expanduser()
    if folder.exists():
        if (folder / "adapter_config.json").is_file():  # Transformers would load its base, and put the adapter in without a word
            raise UserError(f"{where}: {path} holds a peft adapter; give the folder of a model into which it is merged")
        if not (folder / "config.json").is_file():
            raise UserError(f"{where}: {path} holds no config.json, so it is not a model in Hugging Face form")
        return str(folder)
    beside = folder.parent != Path(".") and folder.parent.is_dir()
    if beside or path.count("/") > 1 or path.startswith((".", "/", "~")) or os.environ.get("HF_HUB_OFFLINE") == "1":
        near = difflib.get_close_matches(folder.name, _models_in(folder.parent), n=1, cutoff=0.5)
        hint = f"did you mean {folder.parent / near[0]}?" if near else f"give a folder, a hub name or '{SCHEME}NAME'"
        raise UserError(f"{where}: model folder {path} does not exist; {hint}")
    return path


def _models_in(folder: Path) -> list[str]:
    return sorted(p.parent.name for p in folder.glob("*/config.json"))


def _embedded(name: str, where: str) -> Path:
    known = _models_in(ASSETS)
    if name in known:
        return ASSETS / name
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    hint = f"; the nearest is '{SCHEME}{near[0]}'" if near else ""
    raise UserError(f"{where}: there is no embedded model '{name}'{hint}")
