"""What README and documentation tell a reader to type is done, in the order of each page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT, STARTS, blocks, is_slow, steps

pytestmark = pytest.mark.timeout(1800)  # the first test waits for all fast pages
RUNNER = Path(__file__).with_name("page_runner.py")
WALKED = {str(page.relative_to(ROOT)): page for page in PAGES if any(step["kind"] != "file" for step in steps(page))}
FAST = sorted(name for name, page in WALKED.items() if not is_slow(page))
SLOW = sorted(set(WALKED) - set(FAST))


def walk(names: list[str], folder: Path) -> dict[str, str]:
    """Page → what went wrong on it, for all ``names`` in one process."""
    plan = folder / "plan.json"
    plan.write_text(json.dumps({name: steps(WALKED[name]) for name in names}))
    shim = folder / "bin" / "gkd-rl"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m gkd_rl "$@"\n')
    shim.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("GKD_RL_DATA", "COLUMNS")}
    environment |= {
        **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)},
        "PATH": os.pathsep.join((str(shim.parent), str(Path(sys.executable).parent), os.environ["PATH"])),
    }
    log = folder / "log"
    with log.open("w") as errors:
        command = [sys.executable, RUNNER, plan, folder / "pages"]
        found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    said = [json.loads(line) for line in found.stdout.splitlines() if line.startswith('{"page"')]
    tail = log.read_text()[-3000:]
    return {**dict.fromkeys(names, f"the pages before it ended the process\n{tail}"), **{row["page"]: row["failed"] for row in said}}


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return walk(FAST, tmp_path_factory.mktemp("docs"))


@pytest.mark.parametrize("page", FAST)
def test_page_does_what_it_says(page: str, fast: dict[str, str]):
    assert not fast[page], fast[page]


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_slow_page_does_what_it_says(page: str, tmp_path: Path):
    failed = walk([page], tmp_path)[page]
    assert not failed, failed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_not_run_says_why(page: Path):
    for block in blocks(page):
        assert block.note == "" or any(block.said(word) for word in ("not run", "slow", "file")), f"{page}: {block.note!r} has no reason"
        if block.language == "":
            typed = [line for line in block.text.splitlines() if line.removeprefix("$ ").split(" ")[0] in STARTS]
            assert not typed, f"{page}: a block with {typed} is marked as no code"


def test_most_pages_are_walked():
    assert len(FAST) >= 5 and len(SLOW) >= 2


def test_a_step_that_fails_is_found(tmp_path: Path):
    """The runner's own: an exit status, an exception and an output that is not printed."""
    bad = {
        "status": [{"kind": "gkd-rl", "words": ["grade", "nothing.jsonl"], "output": []}],
        "python": [{"kind": "python", "text": "assert False"}],
        "shell": [{"kind": "shell", "text": "false", "output": []}],
        "output": [{"kind": "shell", "text": "echo 1", "output": ["2"]}],
        "good": [{"kind": "shell", "text": "echo 1", "output": ["1"]}, {"kind": "python", "text": "import os"}],
    }
    (tmp_path / "plan.json").write_text(json.dumps(bad))
    command = [sys.executable, RUNNER, tmp_path / "plan.json", tmp_path / "pages"]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    assert {row["page"]: bool(row["failed"]) for row in map(json.loads, found.splitlines())} == {**dict.fromkeys(bad, True), "good": False}
