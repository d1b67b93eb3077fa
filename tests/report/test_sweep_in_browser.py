"""The page of a sweep as a person uses it, in a real Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from run_folders import HOSTILE
from sweep_pages import sweep_page

pytestmark = pytest.mark.browser
READY = "#run-table table"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three learning rates, spaced by ratios, and two values of α, with two seeds; the last run failed."""
    return sweep_page(tmp_path_factory.mktemp("sweep") / "sweep", "{optimizer.lr: [0.001, 0.01, 0.1], objective.alpha: [0, 1]}")


def _plot(page: Any, title: str) -> Any:
    plot = page.locator(f"[data-chart='{title}']")
    plot.scroll_into_view_if_needed()
    expect(plot.locator(".main-svg").first).to_be_visible()
    return plot


def test_the_table_marks_the_best_what_differs_from_it_and_the_frontier(opened, sweep: Path) -> None:
    page = opened(sweep, READY)
    rows = page.locator("#settings tbody tr")
    expect(rows).to_have_count(6)
    expect(rows.first).to_contain_text("lr=0.001 alpha=0")
    expect(rows.first).to_contain_text("0.210 ±0.127")
    assert [("the best" in text, "★" in text) for text in rows.all_inner_texts()] == [(False, False)] * 5 + [(True, True)]
    significant = [" significant" in f" {text}" and "not significant" not in text for text in rows.all_inner_texts()]
    assert significant[0] and not significant[5]


def test_a_failed_run_is_shown_with_its_reason_as_text(opened, sweep: Path) -> None:
    page = opened(sweep, READY)
    expect(page.locator(".warning")).to_contain_text(f"lr=0.1 alpha=1 seed=1 failed: gkd-rl: {HOSTILE}")
    expect(page.locator("#run-table tbody tr")).to_have_count(12)
    expect(page.locator("#run-table tbody tr").last).to_contain_text("failed")
    assert page.locator("img").count() == 0 and page.title() == "sweep · gkd-rl report"


def test_swept_keys_have_their_axes_and_one_line_for_each_of_the_others(opened, sweep: Path) -> None:
    page = opened(sweep, READY)
    by_rate, by_alpha = _plot(page, "accuracy by optimizer.lr"), _plot(page, "accuracy by objective.alpha")
    assert by_rate.evaluate("plot => [plot.layout.xaxis.type, plot.data.length]") == ["log", 2]
    assert by_alpha.evaluate("plot => [plot.layout.xaxis.type, plot.data.length]") == ["linear", 3]
    assert by_rate.evaluate("plot => plot.data.map(line => line.name)") == ["alpha=0", "alpha=1"]
    assert by_rate.evaluate("plot => Array.from(plot.data[0].x)") == [0.001, 0.01, 0.1]


def test_the_frontier_rings_what_nothing_else_dominates(opened, sweep: Path) -> None:
    plot = _plot(opened(sweep, READY), "Frontier of accuracy")
    front = plot.evaluate("plot => { const last = plot.data.at(-1); return [last.marker.symbol, Array.from(last.x), Array.from(last.y)]; }")
    assert front[0] == "circle-open" and front[1] == [pytest.approx(0.7)] and front[2] == [pytest.approx(0.4)]
    assert plot.evaluate("plot => plot.layout.xaxis.type") == "log"


def test_settings_are_left_out_and_bands_are_of_several_seeds(opened, sweep: Path) -> None:
    page = opened(sweep, READY)
    plot = _plot(page, "Held-out accuracy")
    count = lambda: plot.evaluate("plot => [plot.data.length, plot.data.filter(trace => trace.fill === 'tonexty').length]")
    assert count() == [16, 5], "a line for each of six settings, and two edges where there are two seeds"
    page.uncheck("#bands")
    assert count() == [6, 0]
    button = page.locator("#chosen button").first
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    assert count() == [5, 0]
    button.click()
    assert count() == [6, 0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system_and_the_switch_of_a_sweep(opened, sweep: Path, scheme: str) -> None:
    page = opened(sweep, READY, color_scheme=scheme)
    ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
    light, dark = "rgb(246, 246, 243)", "rgb(19, 21, 25)"
    assert ground() == (light if scheme == "light" else dark)
    page.click("#theme")
    page.click("#theme")
    assert ground() == dark


def test_a_phone_needs_no_scrolling_sideways_in_a_sweep(opened, sweep: Path) -> None:
    page = opened(sweep, READY, viewport={"width": 360, "height": 740})
    for section in ("overview", "frontier", "swept", "curves", "runs"):
        page.locator(f"#{section}").scroll_into_view_if_needed()
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, section


def test_hostile_labels_do_nothing(opened, tmp_path: Path) -> None:
    grid = "{student.path: ['<img src=x onerror=alert(1)>', '<b>%{x}</b>'], objective.alpha: [0, 1]}"
    page = opened(sweep_page(tmp_path / "sweep", grid), READY)
    expect(page.locator("#settings tbody tr").first).to_contain_text("<img src=x onerror=alert(1)>")
    for title in ("Frontier of accuracy", "accuracy by objective.alpha", "Reward"):
        _plot(page, title).hover()
    expect(page.locator("[data-chart='accuracy by objective.alpha'] .legend")).to_contain_text("<img src=x")
    assert page.locator("img").count() == 0
