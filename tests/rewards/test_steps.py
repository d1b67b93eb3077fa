"""Which calculations of a solution are checked, and that they are checked exactly."""

import pytest

from reward_models.steps import find_steps


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("48+24=72", [("48+24=72", True)]),
        ("48/2 = <<48/2=24>>24 clips and 48+24 = <<48+24=72>>73", [("48/2=24", True), ("48+24=72", True)]),
        ("$5 * 3 = $16", [("5*3=16", False)]),
        ("80,000+50,000=$130,000.", [("80,000+50,000=130,000", True)]),
        ("0.1+0.2=0.3", [("0.1+0.2=0.3", True)]),
        ("10/3=3.33", [("10/3=3.33", False)]),
        ("10/4 = 2 1/2", [("10/4=2 1/2", True)]),
        ("1-2/3=1/3", [("1-2/3=1/3", True)]),
        ("2+3*4=20", [("2+3*4=20", False)]),
        ("(2+3)*4=20", [("(2+3)*4=20", True)]),
        ("-3+5=2, -2^2+5=1", [("-3+5=2", True), ("-2^2+5=1", True)]),
        ("20% * 50 = 10", [("20%*50=10", True)]),
        ("3 x 5 = 15", [("3x5=15", True)]),
        ("3 × 5 − 1 = 14", [("3*5-1=14", True)]),
        ("\\[ 3 \\times 5 = 15 \\]", [("3*5=15", True)]),
        ("2**10=1024", [("2**10=1024", True)]),
        ("- 3 + 5 = 8", [("3+5=8", True)]),
        ("2. 4+5=9", [("4+5=9", True)]),
        ("It has 5. 4+5 = 9", [("4+5=9", True)]),
        ("5 (3+2 = 5)", [("3+2=5", True)]),
        ("x = 3+4 = 7", [("3+4=7", True)]),
        ("5 - 3 = 2 - 1", [("5-3=2-1", False)]),
        ("48+24=72+3=75", [("48+24=72+3", False), ("72+3=75", True)]),
        ("5/0=3", [("5/0=3", False)]),
    ],
)
def test_a_calculation_is_checked_exactly(text: str, steps: list[tuple[str, bool]]):
    assert [(step.text, step.right) for step in find_steps(text)] == steps


@pytest.mark.parametrize(
    "text",
    [
        "5 apples * 3 + 2 = 17",
        "2x + 3 = 7",
        "3x-5=16",
        "66(1/3)=22",
        "17 000/5=3 400",
        "160,0000/10=16000",
        "x=5",
        "-5=-5",
        "1=1=1",
        "== 5",
        "9**9**9**9=5",
        "2^(1/2)=1.41",
        "(" * 30 + "1+1" + ")" * 30 + "=2",
        "1+" * 60 + "1=61",
    ],
)
def test_what_cannot_be_read_whole_is_no_step(text: str):
    assert find_steps(text) == []
