"""One HTML file with everything in it: data, code, style. It asks the network for nothing, and its policy forbids it to."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterator, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from gkd_rl.errors import UserError
from gkd_rl.report.reader import RunReader
from gkd_rl.report.settings import differences
from gkd_rl.run_folder import write_atomically

ASSETS = Path(__file__).resolve().parent / "assets"
SCRIPTS = ("page.js", "plots.js", "overview.js", "curves.js", "flips.js", "rollouts.js", "completion.js", "live.js")


def has_plotly() -> bool:
    return util.find_spec("plotly") is not None


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of the runs in ``folders`` to ``out``; returns ``out``.

    Raises ``UserError`` for a folder without a run, damaged logs, a path that cannot be written, and where plotly is not installed.
    """
    page = report_page(readers(folders), live=False)
    try:
        write_atomically(out, page)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); choose another file") from None
    return out


def readers(folders: Sequence[Path]) -> list[RunReader]:
    """One reader for each folder. Raises ``UserError`` as ``write_report`` does, and for a folder given twice."""
    if not has_plotly():
        raise UserError("gkd-rl report draws with plotly, which is not installed; pip install 'gkd-rl[report]'")
    places = [folder.resolve() for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{folder} is given twice; name each run once")
    return [RunReader(folder) for folder in folders]


def report_page(runs: Sequence[RunReader], live: bool) -> str:
    """The page; ``live`` lets it ask its own server for what is added."""
    packs = [run.read({}) for run in runs]
    data = {"live": live, "settings": differences([run.settings for run in runs]), "runs": packs}
    blocks = [block for number, pack in enumerate(packs) for block in _apart(number, pack)]
    return whole_page(", ".join(pack["name"] for pack in packs), "body.html", SCRIPTS, data, blocks, live)


def whole_page(title: str, body: str, scripts: Sequence[str], data: Any, blocks: Sequence[str] = (), live: bool = False) -> str:
    """An HTML file around ``data``: the assets ``body`` and ``scripts``, of which one has a function ``start``, and plotly."""
    codes = [_plotly(), _code(scripts)]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(codes, live)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{html.escape(title)} · gkd-rl report</title>",
            f"<style>{(ASSETS / 'page.css').read_text(encoding='utf-8')}</style></head>",
            (ASSETS / body).read_text(encoding="utf-8").strip(),
            *blocks,
            f'<script type="application/json" id="data">{as_data(data)}</script>',
            *(f"<script>{code}</script>" for code in codes),
            "</html>\n",
        ]
    )


def as_data(value: Any) -> str:
    """JSON that no text in it can end: ``<`` is written as an escape."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _apart(number: int, pack: dict[str, Any]) -> Iterator[str]:
    """Puts the compressed parts of rollouts and evaluations into elements of their own, and their names (``#...``) in their place."""
    for place, chunk in enumerate(pack["chunks"]):
        for name in ("index", "texts", "tokens"):
            key = f"run-{number}-chunk-{place}-{name}"
            yield f'<script type="text/plain" id="{key}">{chunk[name]}</script>'
            chunk[name] = f"#{key}"
    for when, text in pack["answers"].items():
        key = f"run-{number}-answers-{when}"
        yield f'<script type="text/plain" id="{key}">{text}</script>'
        pack["answers"][when] = f"#{key}"


def _policy(scripts: Sequence[str], live: bool) -> str:
    """Only this page's own scripts run, by their hashes; nothing is fetched from anywhere but, live, from its server."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    fetched = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; connect-src {fetched}; "
        "base-uri 'none'; form-action 'none'"
    )


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _code(scripts: Sequence[str]) -> str:
    parts = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in scripts)
    return f'"use strict";\n(() => {{\n{parts}\nstart();\n}})();'
