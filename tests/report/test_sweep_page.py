"""The page of a sweep as a file: its figures, and that nothing in it runs or is fetched."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from run_folders import HOSTILE
from sweep_pages import sweep_page

from gkd_rl.ablation.page import is_logarithmic


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four values of a key spaced by ratios, two seeds; the last run failed."""
    folder = tmp_path_factory.mktemp("sweep")
    path = sweep_page(folder / "sweep", "{optimizer.lr: {log: [0.001, 1], points: 4}}")
    return path.read_text(encoding="utf-8")


def _data(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert found
    return json.loads(found.group(1))


def test_settings_have_their_means_intervals_and_differences(page: str) -> None:
    first, second, _, last = _data(page)["settings"]
    mean, low, high = first["figures"]["accuracy"]
    assert mean == pytest.approx(0.21) and (high - low) / 2 == pytest.approx(12.706 * 0.01, rel=1e-3)
    assert [run["accuracy"] for run in second["runs"]] == pytest.approx([0.24, 0.26]) and second["figures"]["rougeL"][0] == 0.5
    assert (
        last["best"] and not first["best"] and last["figures"]["accuracy"] == [pytest.approx(0.32), None, None] and len(last["runs"]) == 1
    )
    assert first["difference"][0] == pytest.approx(-0.6), "of the seed that both have: 1 and 7 of 10 right"
    assert first["difference"][2] < 0 and last["difference"] == [0, 0, 0]
    assert [setting["front"]["accuracy"] for setting in _data(page)["settings"]] == [False, False, False, True]


def test_curves_are_of_all_seeds(page: str) -> None:
    curve = _data(page)["settings"][0]["curves"]
    assert curve["reward"]["step"] == [1, 2, 3, 4, 5, 6] and curve["reward"]["low"] == curve["reward"]["high"]
    accuracy = curve["eval_accuracy"]
    assert (accuracy["step"], accuracy["low"]) == ([0, 5, 6], [0.1, 0.25, 0.2])
    assert accuracy["mean"][2] == pytest.approx(0.21) and accuracy["high"][2] == pytest.approx(0.22)


def test_a_failed_run_is_named_with_what_it_said_and_stays_text(page: str) -> None:
    (failed,) = _data(page)["failed"]
    assert failed == {"label": "lr=1.0", "seed": 1, "said": f"gkd-rl: {HOSTILE}", "folder": "lr-1.0_seed-1"}
    assert "<img" not in page and "default-src 'none'" in page and "connect-src 'none'" in page
    assert not re.search(r'(src|href)="(https?:)?//', page.partition("<script>")[0])


def test_keys_with_an_axis_are_those_of_several_numbers(tmp_path: Path) -> None:
    grid = (
        "{objective.alpha: [0, 0.5, 1], objective.divergence.kind: [gjsd, reverse_kl], optimizer.lr: [0.1], rollout.overlap: [true, false]}"
    )
    page = sweep_page(tmp_path / "sweep", grid).read_text(encoding="utf-8")
    assert _data(page)["keys"] == [{"key": "objective.alpha", "log": False}]


@pytest.mark.parametrize(
    ("spec", "values", "logarithmic"),
    [
        ({"log": [1, 10], "points": 2}, [1, 10], True),
        ({"linear": [1, 100], "points": 3}, [1, 50.5, 100], False),
        ([0.1, 0.3, 1, 3], [0.3, 0.1, 3, 1], True),
        ([1, 2, 3], [1, 2, 3], False),
        ([1, 10], [1, 10], False),
        ([0, 0.1, 1], [0, 0.1, 1], False),
        ([1, 2, 4, 8], [1, 2, 4, 8], True),
    ],
)
def test_values_spaced_by_ratios_get_a_logarithmic_axis(spec, values, logarithmic) -> None:
    assert is_logarithmic(spec, values) is logarithmic
