"""Pictures of a report in light and dark, wide and narrow, taken by the system's Chromium.

    python scripts/report_screenshots.py RUN_DIR/report.html FOLDER [--chromium /usr/bin/chromium]

Writes ``overview``, ``curves``, ``rollouts``, ``group`` and ``phone``, each as ``NAME-light.png`` and ``NAME-dark.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import Page, sync_playwright


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme=theme)
            page.goto(given.report.resolve().as_uri())
            page.wait_for_selector("#list[data-ready]")
            take(page, given.folder, theme)
            page.set_viewport_size({"width": 360, "height": 740})
            page.evaluate("window.scrollTo({top: 0, behavior: 'instant'})")
            page.wait_for_timeout(800)
            page.screenshot(path=given.folder / f"phone-{theme}.png")
            page.close()
        browser.close()


def take(page: Page, folder: Path, theme: str) -> None:
    for name in ("overview", "curves", "evaluation", "rollouts"):
        page.evaluate(f"document.getElementById('{name}').scrollIntoView({{behavior: 'instant'}})")
        if name == "rollouts":
            page.select_option("#sort", "divergence")
            page.click("#order")
            page.locator(".row").nth(1).click()
            show_uncertain_token(page)
        page.wait_for_timeout(1200)
        page.screenshot(path=folder / f"{name}-{theme}.png")
    if page.locator("#group").count():
        page.click("#group")
        page.wait_for_timeout(400)
        page.screenshot(path=folder / f"group-{theme}.png")


def show_uncertain_token(page: Page) -> None:
    """Point at the token on which the two models differ most."""
    page.wait_for_selector("#detail .tokens span")
    shades = "spans => spans.map(span => Number(span.style.background.match(/([\\d.]+)\\)$/)?.[1] ?? 0))"
    strengths = page.eval_on_selector_all("#detail .tokens span", shades)
    page.locator("#detail .tokens span").nth(strengths.index(max(strengths))).hover()


if __name__ == "__main__":
    main()
