"""Does what pages say, in one process so that the libraries are imported once: ``python page_runner.py PLAN.json FOLDER``.

The plan maps pages to their steps (``pages.steps``). Each page gets a folder of its own below FOLDER, which holds what the pages suppose a
reader to have. A line of JSON per page says what failed, or nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "run")]

SUPPOSED = ("STUDENT", "TEACHER", "DATA")
ANSWERS = [
    {"answer": "#### 72", "completion": "48+24=72\n#### 72"},
    {"answer": "#### 5", "completion": "It is 6."},
]


def suppose(folder: Path) -> None:
    """The files and folders that pages call by names of their own: configurations, models, data, answers."""
    from workbench import build_models, problems

    models = build_models(folder / ".models")
    for name, path in {"STUDENT": models.student, "TEACHER": models.teacher}.items():
        (folder / name).symlink_to(path)
    (folder / "DATA" / "gsm8k").mkdir(parents=True)
    for split in ("train", "test"):
        rows = problems(split, 12)
        (folder / "DATA" / "gsm8k" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(page: Path, supposed: Path) -> None:
    page.mkdir(parents=True)
    for name in SUPPOSED:
        (page / name).symlink_to(supposed / name)
    for name in ("configs", "scripts"):
        (page / name).symlink_to(ROOT / name)
    (page / "CONFIG").write_text("base: configs/arithmetic.yaml\nrun_dir: RUN_DIR\n")
    (page / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ANSWERS))


def gkd_rl(words: list[str]) -> None:
    from gkd_rl.cli import main

    try:
        main(words)
    except SystemExit as leaving:
        if leaving.code:
            raise RuntimeError(f"exit status {leaving.code}") from leaving


def do(step: dict[str, Any]) -> None:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            if step["kind"] == "file":
                Path(step["name"]).write_text(step["text"])
            elif step["kind"] == "python":
                exec(compile(step["text"], "block", "exec"), {"__name__": "__main__"})
            elif step["kind"] == "gkd-rl":
                gkd_rl(step["words"])
            else:
                found = subprocess.run(["bash", "-euc", step["text"]], stdout=subprocess.PIPE, text=True, check=True)
                printed.write(found.stdout)
    finally:
        print(printed.getvalue(), file=sys.stderr)
    lines = [line.strip() for line in printed.getvalue().splitlines()]
    missing = [line for line in step.get("output", ()) if line.strip() not in lines]
    if missing:
        raise AssertionError(f"the page says that this is printed: {missing}")


def walk(steps: list[dict[str, Any]]) -> str:
    """Do all; returns what went wrong."""
    for step in steps:
        print(f"--- {step}", file=sys.stderr, flush=True)
        try:
            do(step)
        except (Exception, SystemExit):
            return f"{step}\n{traceback.format_exc()}"
    return ""


def main() -> None:
    plan, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    if any(name in json.dumps(plan) for name in SUPPOSED):
        suppose(folder)
    for page, steps in plan.items():
        here = folder / page.replace("/", "-")
        prepare(here, folder)
        os.chdir(here)
        sys.path.insert(0, str(here))
        print(json.dumps({"page": page, "failed": walk(steps)}), flush=True)
        sys.path.remove(str(here))
        for name in [name for name, module in sys.modules.items() if str(here) in str(getattr(module, "__file__", ""))]:
            del sys.modules[name]


if __name__ == "__main__":
    main()
