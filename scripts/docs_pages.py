"""Pages of the documentation that are made when it is built: the start page from the README, the notebook, and the reference of every key.

A hook of MkDocs (``mkdocs.yml``); ``python scripts/docs_pages.py`` prints the reference.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gkd_rl.config.reward_model import RewardModelConfig  # noqa: E402
from gkd_rl.config.run import Config, RequirementConfig, RewardConfig, TeacherConfig  # noqa: E402

NOTEBOOK = ROOT / "docs" / "notebooks" / "first-run.ipynb"

HEAD = """# Configuration

Every key, with its type and default. A run's configuration is a YAML file; `base: other.yaml` is read first and the file laid over it,
and `key=value` on the command line comes last. A wrong key is answered with the nearest right one.

"""


def reference() -> str:
    """The page of all keys, section by section, as the data classes have them."""
    lists = {"rewards": RewardConfig, "teachers": TeacherConfig}
    parts = [_section("", Config)]
    parts += [_section(name, cls) for name, cls in _sections(Config, "")]
    parts += [_section(f"{name}.NAME" if name == "teachers" else f"{name}[i]", cls) for name, cls in lists.items()]
    parts += [_section("rewards[i].requires", RequirementConfig), "# Configuration of `gkd-rl reward-model`\n"]
    parts += [_section("", RewardModelConfig)]
    parts += [_section(name, cls) for name, cls in _sections(RewardModelConfig, "")]
    return HEAD + "\n".join(parts)


def _sections(cls: type, prefix: str) -> Iterator[tuple[str, type]]:
    for item in dataclasses.fields(cls):
        made: Any = item.default_factory() if item.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(made):
            yield prefix + item.name, type(made)
            yield from _sections(type(made), f"{prefix}{item.name}.")


def _section(name: str, cls: type) -> str:
    rows = [f"## {name or 'The run'}", "", inspect.getdoc(cls) or "", "", "| key | type | default | |", "|---|---|---|---|"]
    documented = _docstrings(cls)
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        made: Any = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if dataclasses.is_dataclass(made):
            continue
        text = " ".join(documented[item.name].split()).replace("``", "`").replace("|", "\\|")
        rows.append(f"| `{item.name}` | {_type(hints[item.name])} | `{_value(made)}` | {text} |")
    return "\n".join(rows) + "\n"


def _docstrings(cls: type) -> dict[str, str]:
    """Field → the string that stands below it."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[ast.unparse(field.target)] = inspect.cleandoc(str(after.value.value))
    return found


def _type(hint: Any) -> str:
    if get_origin(hint) is typing.Literal:
        return " ".join(f"`{_value(value)}`" for value in get_args(hint))
    text = getattr(hint, "__name__", str(hint)) if not get_args(hint) else str(hint)
    text = re.sub(r"typing\.|gkd_rl\.config\.\w+\.", "", text).replace("NoneType", "null").replace("None", "null")
    return f"`{text}`".replace("|", "\\|")


def _value(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "-"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def start_page() -> str:
    """The README with its links as they are seen from ``docs/``."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\]\((?!https?:|#)(?=[A-Z]+(?:\.md)?\))[^)]*\)", "]", text)


def notebook_page() -> str:
    """The notebook's cells as a page."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    texts = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in cells]
    body = [f"```python\n{text}\n```" if is_code else text for text, is_code in texts]
    return "\n\n".join([*body, f"[The notebook]({NOTEBOOK.name}), to be run from a clone of the repository."])


def on_files(files: Any, config: Any) -> Any:
    """MkDocs' hook: adds these pages."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

    made = {"index.md": start_page(), "configuration.md": reference(), "notebooks/first-run.md": notebook_page()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs' hook: the README is the start page there."""
    return markdown.replace("](../README.md", "](index.md")


if __name__ == "__main__":
    print(reference())
