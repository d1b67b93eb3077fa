"""The process that compares symbolic answers: `math-verify` behind a pipe, one JSON object per line each way.

It is started by file and imports nothing of this package. Only the LaTeX reader is used: it builds expressions from a grammar,
whereas math-verify's reader of plain expressions hands the text to Python's `eval`.
"""

import contextlib
import json
import logging
import re
import signal
import sys
from pathlib import Path
from typing import Any

_FUNCTIONS = "sqrt|sin|cos|tan|log|ln|exp|pi|infty"
_PLAIN_ROOT = re.compile(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)")
_PLAIN_FUNCTION = re.compile(rf"(?<![A-Za-z\\])(?=(?:{_FUNCTIONS})(?![A-Za-z]))")
_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_WORD = re.compile(r"[A-Za-z]{3,}")


def read(text: str) -> list[Any]:
    """Return what math-verify reads in `text`, nothing for prose (whose letters would be taken for a product of unknowns)."""
    from math_verify import LatexExtractionConfig, parse

    text = text.strip().strip("$").removeprefix("\\(").removesuffix("\\)")
    text = _PLAIN_FUNCTION.sub(r"\\", _PLAIN_ROOT.sub(r"\\sqrt{\1}", text))
    if not text.strip() or _WORD.search(_COMMAND.sub(" ", text)):
        return []
    found = parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=0)
    return [one for one in found if not isinstance(one, str)]


def compare(reference: str, answer: str) -> str:
    """Return `correct`, `wrong`, `no_answer` or `bad_reference`."""
    from math_verify import verify

    target = read(reference)
    if not target:
        return "bad_reference"
    found = read(answer)
    if not found:
        return "no_answer"
    return "correct" if verify(target, found, timeout_seconds=None) else "wrong"


def main(memory_bytes: int, seconds: int) -> None:
    """Serve comparisons until the pipe closes. The alarm ends a worker whose parent was killed while it waited."""
    sys.path.remove(str(Path(__file__).parent))  # the modules beside this file must not hide others of the same name
    with contextlib.suppress(ImportError):  # Windows has no limits to set
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    logging.disable(logging.CRITICAL)
    compare("x", "x")
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(seconds)
        status = compare(request["reference"], request["answer"])
        signal.alarm(0)
        print(json.dumps(status), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
