"""Results in <<...>> marks are computed, and what was said to follow from them with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gkd_rl.tasks.calculator import LONGEST, CalculatedVerifier, recompute, without_marks
from gkd_rl.tasks.sources import open_rows


@pytest.mark.parametrize(
    ("said", "computed"),
    [
        ("2+2=<<2+2=5>>5 apples.\n#### 5", "2+2=<<2+2=4>>4 apples.\n#### 4"),
        ("<<3*4=12>>12", "<<3*4=12>>12"),
        ("<<1/4=0.3>>0.3 of it", "<<1/4=0.25>>0.25 of it"),
        ("<<1000*2=1,000>>1,000 and 1000", "<<1000*2=2000>>2000 and 2000"),
        ("<<1000*2=2,000>>2,000", "<<1000*2=2,000>>2,000"),
        ("<<5-7=2>>2", "<<5-7=-2>>-2"),
        ("<<-1/8=1>>1", "<<-1/8=-0.125>>-0.125"),
        ("5 birds: <<2+2=5>>5 and 15 and 5x and x5 and 5.", "5 birds: <<2+2=4>>4 and 15 and 5x and x5 and 4."),
        ("<<2+2=5>>5\n<<5*3=15>>15", "<<2+2=4>>4\n<<4*3=12>>12"),
        ("<<1/3=0.3>>0.3", "<<1/3=0.3>>0.3"),
        ("<<1/0=7>>7", "<<1/0=7>>7"),
        ("<<x+1=7>>7", "<<x+1=7>>7"),
        ("<<2+2=>>", "<<2+2=4>>"),
        ("<<9**9**9**9=1>>1", "<<9**9**9**9=1>>1"),
        ("<<2+2", "<<2+2"),
        ("", ""),
    ],
)
def test_results_are_computed_and_later_uses_follow(said: str, computed: str):
    assert recompute(said) == computed


def test_an_answer_beyond_the_limit_stays_as_it_is():
    text = "<<2+2=5>>5"
    assert recompute(text + "." * (LONGEST - len(text))).startswith("<<2+2=4>>4")
    assert recompute(text + "." * LONGEST).startswith(text)


def test_marks_can_be_left_out():
    assert without_marks("48/2 = <<48/2=24>>24 clips") == "48/2 = 24 clips"


def test_the_verifier_judges_the_recomputed_answer():
    wrong_sum, wrong_way = "<<48+24=71>>71\n#### 71", "<<48-24=24>>24\n#### 24"
    rewards = CalculatedVerifier(wrong=-1.0)(["q"] * 3, [wrong_sum, wrong_way, "#### 72"], reference=["72"] * 3)
    assert rewards == [1.0, -1.0, 1.0]
    chat = CalculatedVerifier()([[]], [[{"role": "assistant", "content": wrong_sum}]], reference=["72"])
    assert chat == [1.0]


def test_gsm8ks_own_solutions_keep_their_answers():
    data = os.environ.get("GKD_RL_DATA")
    if not data or not (Path(data) / "gsm8k" / "test.jsonl").is_file():
        pytest.skip("GKD_RL_DATA names no folder with gsm8k/test.jsonl")
    answers = [row.text("answer") for row in open_rows("gsm8k/test.jsonl", "test", data)]
    computed = [recompute(answer) for answer in answers]
    assert CalculatedVerifier()(answers, answers, reference=answers) == [1.0] * 1319
    assert sum(one != other for one, other in zip(answers, computed, strict=True)) < 15, "their marks are right, but for a few"
