"""``gkd-rl report``: a page on disk, or one that follows its runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gkd_rl.console import Terminal
from gkd_rl.errors import UserError
from gkd_rl.report.page import readers, write_report
from gkd_rl.report.serve import serve


def report(runs: Sequence[str], out: str | None, live: bool, port: int | None) -> None:
    """Write the page of ``runs`` to ``out`` (default: ``report.html`` in the first one's folder), or serve it until interrupted."""
    folders = [Path(run) for run in runs]
    if live:
        if out is not None:
            raise UserError("--out names a file and --serve writes none; leave one of them out")
        serve(readers(folders), port or 0)
        return
    if port is not None:
        raise UserError("--port is of the server; add --serve, or leave it out")
    path = write_report(folders, Path(out) if out is not None else folders[0] / "report.html")
    Terminal().say(f"report     {path}   (open it in a browser)")
