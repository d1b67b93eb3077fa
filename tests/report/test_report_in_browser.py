"""The page as a person uses it, in a real Chromium: found, sorted, read, compared, by mouse, by keyboard, on a phone."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from run_folders import HOSTILE, metrics_row, rollout, write_answers, write_rows, write_run

from gkd_rl.report.page import write_report
from gkd_rl.report.reader import RunReader
from gkd_rl.report.serve import LiveServer

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 48 rollouts, half of them right."""
    folder = write_run(tmp_path_factory.mktemp("one") / "run")
    return write_report([folder], folder / "report.html")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("two")
    runs = [write_run(place / "first", "objective.alpha=0.25"), write_run(place / "second", "objective.alpha=0.75")]
    return write_report(runs, place / "report.html")


def _count(page: Page, text: str) -> None:
    expect(page.locator("#count")).to_have_text(f"{text} rollouts")


def test_filters_narrow_the_list_and_clear_widens_it(opened, one: Path):
    page = opened(one)
    _count(page, "48 of 48")
    page.select_option("#verdict", "right")
    _count(page, "24 of 48")
    page.fill("#step-low", "10")
    page.fill("#step-high", "15")
    _count(page, "8 of 48")
    page.fill("#length-high", "3")
    _count(page, "4 of 48")
    page.fill("#reward-high", "0.5")
    _count(page, "0 of 48")
    page.click("button[type=reset]")
    _count(page, "48 of 48")
    page.fill("#search", "WHAT IS 5 AND 10")
    _count(page, "4 of 48")
    page.fill("#search", "#### 999")
    _count(page, "24 of 48")


def test_the_list_is_sorted_by_figures_both_ways(opened, one: Path):
    page = opened(one)
    first = page.locator(".row").first
    expect(first).to_contain_text("step 5")
    page.click("#order")
    expect(first).to_contain_text("step 30")
    page.select_option("#sort", "length")
    expect(first).to_contain_text("5 tokens")
    page.click("#order")
    expect(first).to_contain_text("3 tokens")
    page.select_option("#sort", "reward")
    expect(first).to_contain_text("✗ 0")


def test_a_token_tells_its_figures_and_what_both_models_would_have_said(opened, one: Path):
    page = opened(one)
    tokens = page.locator("#detail .tokens span")
    expect(tokens).to_have_count(3)
    tokens.nth(1).hover()
    panel = page.locator(".token")
    expect(panel).to_contain_text("2 of 3")
    for text in ("log p", "-0.7", "0.497", "0.4", "student would say", "0.900", "teacher would say", "0.750"):
        expect(panel).to_contain_text(text)


def test_colours_follow_the_chosen_figure(opened, one: Path):
    page = opened(one)
    shades = "spans => spans.map(span => span.style.background)"
    tokens = page.locator("#detail .tokens span")
    expect(tokens).to_have_count(3)
    by_divergence = tokens.evaluate_all(shades)
    assert by_divergence[2] == "" and "--warm" in by_divergence[1], "no divergence, no colour"
    page.select_option("#shade", "advantage")
    expect(page.locator(".legend")).to_contain_text("+1.5")
    by_advantage = page.locator("#detail .tokens span").evaluate_all(shades)
    assert len(set(by_advantage)) == 1 and "--plus" in by_advantage[0]


def test_a_group_stands_side_by_side(opened, one: Path):
    page = opened(one)
    page.click("#group")
    cards = page.locator(".group > div")
    expect(cards).to_have_count(4)
    assert [card.count("wrong") for card in cards.all_inner_texts()] == [0, 1, 0, 1]
    left, right = cards.nth(0).bounding_box(), cards.nth(1).bounding_box()
    assert left and right and left["y"] == right["y"] and left["x"] < right["x"]
    assert "null" not in page.locator("#detail").inner_text()
    page.click("#group")
    expect(cards).to_have_count(0)


def test_the_verifiers_reading_is_shown(opened, one: Path):
    page = opened(one)
    page.select_option("#verdict", "wrong")
    page.locator(".row").first.click()
    expect(page.locator("#detail .reading")).to_have_text("verifier: wrong · read “999” (hash) · the reference is 15")


def test_held_out_problems_that_flipped_are_shown(opened, tmp_path: Path):
    folder = write_run(tmp_path / "run")
    write_answers(folder, [0] * 30 + [1, 1, 1, 0], [1] * 30 + [0, 1, 1, 0], HOSTILE)
    page = opened(write_report([folder], tmp_path / "page.html"))
    expect(page.locator("#flip-summary")).to_contain_text("Of 34 problems 30 were gained and 1 lost; 2 were right both times and 1 wrong.")
    expect(page.locator("#flip-summary")).to_contain_text("probability 2.98e-8 (exact McNemar test)")
    expect(page.locator("#flip-list details")).to_have_count(25)
    page.click("#flip-more")
    expect(page.locator("#flip-list details")).to_have_count(30)
    expect(page.locator("#flip-more")).to_be_hidden()
    page.select_option("#flip-kind", "lost")
    lost = page.locator("#flip-list details")
    expect(lost).to_have_count(1)
    lost.locator("summary").click()
    for text in ("example 30", "What is 30?", "reference 30", "before 30", "after 30", "</script><img"):
        expect(lost).to_contain_text(text)
    assert [text[-1] for text in lost.locator(".flip-answer h4").all_inner_texts()] == ["✓", "✗"] and page.locator("img").count() == 0
    expect(page.locator("#flip-runs")).to_be_hidden()


def test_a_run_without_single_answers_has_no_list_of_them(opened, one: Path):
    expect(opened(one).locator("#flips")).to_be_hidden()


def test_runs_are_compared(opened, two: Path):
    page = opened(two)
    row = page.locator("#settings table").first.locator("tbody tr")
    expect(row).to_have_count(1)
    assert row.locator("td").all_inner_texts() == ["objective.alpha", "0.25", "0.75", "0.5"]
    page.locator("[data-chart='Loss']").scroll_into_view_if_needed()
    expect(page.locator("[data-chart='Loss'] .scatterlayer .js-line")).not_to_have_count(0)
    names = "plot => [...new Set(plot.data.map(trace => trace.name).filter(Boolean))]"
    assert page.locator("[data-chart='Loss']").evaluate(names) == ["first", "second"]
    page.select_option("#run", label="second")
    _count(page, "48 of 96")
    expect(page.locator("#final thead")).to_contain_text("second")


def test_smoothing_and_bands_change_the_curves(opened, one: Path):
    page = opened(one)
    plot = page.locator("[data-chart='Loss']")
    plot.scroll_into_view_if_needed()
    expect(plot.locator(".js-line")).not_to_have_count(0)
    spread = "plot => { const y = plot.data.at(-1).y; return Math.max(...y) - Math.min(...y); }"
    before, traces = plot.evaluate(spread), plot.evaluate("plot => plot.data.length")
    page.locator("#smoothing").fill("0")
    assert plot.evaluate(spread) > before and plot.evaluate("plot => plot.data.length") < traces
    page.locator("#smoothing").fill("0.9")
    assert plot.evaluate(spread) < before and plot.evaluate("plot => plot.data.filter(t => t.fill === 'tonexty').length") == 1
    page.uncheck("#bands")
    assert plot.evaluate("plot => plot.data.filter(t => t.fill === 'tonexty').length") == 0


def test_the_list_and_the_tokens_go_by_keyboard(opened, one: Path):
    page = opened(one)
    page.focus("#list")
    chosen = page.locator(".row[aria-selected=true]")
    for key, place in (("ArrowDown", 2), ("ArrowDown", 3), ("ArrowUp", 2), ("End", 48), ("Home", 1)):
        page.keyboard.press(key)
        expect(chosen).to_have_attribute("aria-posinset", str(place))
        expect(chosen).to_be_in_viewport()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#detail .chip", has_text="tokens")).to_have_text("4 tokens")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".token")).to_contain_text("of 4")
    page.keyboard.press("End")
    expect(page.locator(".token")).to_contain_text("4 of 4")
    page.keyboard.press("Escape")
    expect(page.locator("#list")).to_be_focused()


def test_everything_that_can_be_used_comes_in_the_order_of_the_page(opened, one: Path):
    page = opened(one)
    page.focus("#search")
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id"))
    assert seen[:10] == ["verdict", "reward-low", "reward-high", "step-low", "step-high", "length-low", "length-high", "sort", "order", ""]
    assert seen[10] == "list" and seen[11] == "shade"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system_and_the_switch(opened, one: Path, scheme: str):
    page = opened(one, color_scheme=scheme)
    ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
    light, dark = "rgb(246, 246, 243)", "rgb(19, 21, 25)"
    assert ground() == (light if scheme == "light" else dark)
    page.click("#theme")
    assert ground() == light
    page.click("#theme")
    assert ground() == dark
    page.click("#theme")
    assert ground() == (light if scheme == "light" else dark)


def test_a_phone_needs_no_scrolling_sideways(opened, two: Path):
    page = opened(two, viewport={"width": 360, "height": 740})
    for section in ("overview", "curves", "evaluation", "cost", "rollouts"):
        page.locator(f"#{section}").scroll_into_view_if_needed()
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, section
    page.locator(".row").nth(2).click()
    page.click("#group")
    expect(page.locator(".group > div")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_hostile_texts_do_nothing(opened, tmp_path: Path):
    rows = [
        rollout(1, 2, i, completion=HOSTILE, prompt=[{"role": HOSTILE, "content": HOSTILE}], columns={HOSTILE: HOSTILE}) for i in range(4)
    ]
    folder = write_run(tmp_path / "run", "task.options={note: '<img src=x onerror=alert(1)>'}", rollouts=rows)
    finding = {"step": 9, "found": HOSTILE, "most_rewarded": [{"reward": 1, "completion": HOSTILE}]}
    (folder / "watch.jsonl").write_text(json.dumps(finding) + "\n")
    page = opened(write_report([folder], tmp_path / "page.html"))
    expect(page.locator(".row").first).to_contain_text("</script><img")
    page.click("#group")
    expect(page.locator(".group > div")).to_have_count(4)
    expect(page.locator(".text-block")).to_contain_text("onerror")
    assert page.locator("img").count() == 0 and page.title() == "run · gkd-rl report"


def test_a_run_without_steps_or_rollouts_is_a_page_too(opened, tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=0, finished=False)
    (folder / "rollouts.jsonl").unlink()
    page = opened(write_report([folder], tmp_path / "page.html"))
    expect(page.locator("#count")).to_contain_text("No rollouts were logged")
    expect(page.locator("#charts")).to_contain_text("No step has been logged yet")
    expect(page.locator("#browser")).to_be_hidden()


def test_a_live_page_draws_curves_once_there_are_any(opened, tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=0, finished=False)
    with LiveServer([RunReader(folder)], 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = opened(f"http://127.0.0.1:{server.server_port}/")
        expect(page.locator("#charts")).to_contain_text("No step has been logged yet")
        write_rows(folder / "metrics.jsonl", [metrics_row(step) for step in range(1, 9)])
        expect(page.locator("[data-chart='Loss']")).to_have_count(1, timeout=15_000)
        page.locator("[data-chart='Loss']").scroll_into_view_if_needed()
        expect(page.locator("[data-chart='Loss'] .js-line")).not_to_have_count(0)
        page.locator("#evaluation-chart").scroll_into_view_if_needed()
        expect(page.locator("#evaluation-chart .js-line")).not_to_have_count(0)
        server.shutdown()


def test_a_live_page_follows_its_run(opened, tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=10, finished=False)
    with LiveServer([RunReader(folder)], 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = opened(f"http://127.0.0.1:{server.server_port}/")
        expect(page.locator("#live")).to_have_text("● live, step 10")
        _count(page, "16 of 16")
        with (folder / "metrics.jsonl").open("a") as log:
            log.write(json.dumps(metrics_row(11)) + "\n")
        with (folder / "rollouts.jsonl").open("a") as log:
            log.write(json.dumps(rollout(11, 3, 0)) + "\n")
        expect(page.locator("#live")).to_have_text("● live, step 11", timeout=15_000)
        _count(page, "17 of 17")
        expect(page.locator(".card .chip")).to_have_text("step 11 of 30")
        server.shutdown()


def test_a_hundred_thousand_rollouts_open_within_seconds(opened, tmp_path: Path):
    rng = random.Random(0)
    folder = write_run(tmp_path / "run")
    rows = (rollout(1 + i // 100, i // 4, i % 4, completion=f"{rng.random()} and more of it " * 3) for i in range(100_000))
    write_rows(folder / "rollouts.jsonl", list(rows))
    path = write_report([folder], tmp_path / "page.html")
    started = time.perf_counter()
    page = opened(path)
    taken = time.perf_counter() - started
    _count(page, "100,000 of 100,000")
    assert page.locator(".row").count() < 60, "only what is in view is there"
    assert taken < 15, "some three seconds on two cores; more where they are shared"
    page.focus("#list")
    page.keyboard.press("End")
    expect(page.locator(".row[aria-selected=true]")).to_have_attribute("aria-posinset", "100000")
    page.fill("#search", "what is 1000 and 24999?")
    expect(page.locator("#count")).to_have_text(re.compile("^4 of 100,000"), timeout=30_000)
