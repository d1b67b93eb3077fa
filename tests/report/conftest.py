"""Pages in a real Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    assert CHROMIUM, "no Chromium was found; install it, or name it in CHROMIUM"
    with sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """``opened(path or address, **context)``: the page, once it has an element ``ready``; anything on its console, and any request, fails
    the test."""
    problems: list[str] = []
    contexts = []

    def opened(where: Path | str, ready: str = "#list[data-ready]", **settings: Any) -> Any:
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        address = where.as_uri() if isinstance(where, Path) else where
        page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:")) else problems.append(request.url))
        page.goto(address)
        page.wait_for_selector(ready, state="attached", timeout=60_000)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []
