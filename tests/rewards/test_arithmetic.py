"""The arithmetic verifier: its four verdicts, its rewards, TRL's calling form, and the whole of GSM8K."""

import json
import os
import re
from fractions import Fraction
from pathlib import Path

import pytest

from reward_models import ArithmeticVerifier, InputError


def _gsm8k(split: str) -> list[str]:
    folder = os.environ.get("GKD_RL_DATA")
    path = Path(folder or ".") / "gsm8k" / f"{split}.jsonl"
    if not folder or not path.is_file():
        pytest.skip("GKD_RL_DATA names no folder with gsm8k/train.jsonl and gsm8k/test.jsonl")
    return [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_four_verdicts_are_told_apart():
    verifier = ArithmeticVerifier()
    assert verifier.verify("#### 72", "72").status == "correct"
    assert verifier.verify("#### 71", "72").status == "wrong"
    assert verifier.verify("I do not know", "72").status == "no_answer"
    assert verifier.verify("#### 72", "seventy-two").status == "bad_reference"


def test_a_verdict_says_what_was_read_and_where():
    verdict = ArithmeticVerifier().verify("so it costs \\boxed{\\$1{,}234.50}.", "#### 1234.5")
    assert (verdict.read, verdict.form, verdict.value) == ("1,234.50", "boxed", Fraction(2469, 2))
    assert verdict.reference_value == Fraction(2469, 2)


@pytest.mark.parametrize(
    "reference", ["72", "72.0", "$72", "72 apples", "so 48+24=72\n#### 72", "\\boxed{72}", "The answer is 72.", "144/2", "7.2e1"]
)
def test_a_reference_is_a_number_or_a_solution(reference: str):
    assert ArithmeticVerifier().verify("#### 72", reference).status == "correct"


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "  ",
        "none",
        "nan",
        "inf",
        "3 or 4",
        "x+1",
        "\\sqrt{8}",
        "sqrt(8)",
        "2\\sqrt{2}",
        "5/0",
        "1e999999",
        "9**9**9",
        "72 = x + 1",
    ],
)
def test_an_unreadable_reference_is_never_right(reference: str):
    verdict = ArithmeticVerifier().verify(reference, reference)
    assert verdict.status == "bad_reference"
    assert ArithmeticVerifier()(prompts=["q"], completions=[reference], reference=[reference]) == [None]


@pytest.mark.parametrize(
    ("completion", "reference", "right"),
    [
        ("#### 0.333", "1/3", False),
        ("#### 1/3", "2/6", True),
        ("#### 0.1", "1/10", True),
        ("#### 10000000000000000.1", "10000000000000000.2", False),
        ("#### 50%", "50", True),
        ("#### 50%", "0.5", True),
        ("#### 0.5", "50%", True),
        ("#### 0.5", "50", False),
        ("#### 50%", "50%", True),
        ("#### 1.5 million", "1500000", True),
        ("#### 1.5 million", "1.5", True),
        ("#### 1.5 million", "1.5 billion", False),
        ("#### -72", "72", False),
    ],
)
def test_equality_is_exact_and_knows_percent_and_scale_words(completion: str, reference: str, right: bool):
    assert (ArithmeticVerifier().verify(completion, reference).status == "correct") is right


def test_a_tolerance_is_absolute_exact_and_inclusive():
    verifier = ArithmeticVerifier(tolerance="0.1")
    assert verifier.verify("#### 3.1", "3").status == "correct"
    assert verifier.verify("#### 3.1000001", "3").status == "wrong"


def test_without_the_fallback_only_a_stated_answer_counts():
    verifier = ArithmeticVerifier(fallback=False)
    assert verifier.verify("he has 72", "72").status == "no_answer"
    assert verifier.verify("the answer is 72", "72").status == "correct"


def test_a_completion_ends_where_the_model_asks_itself_the_next_question():
    text = "#### 72\n\nQ: Tom has 3 cats and 2 dogs.\nA: #### 5"
    assert ArithmeticVerifier().verify(text, "72").status == "correct"
    assert ArithmeticVerifier(stop=()).verify(text, "72").status == "wrong"


def test_rewards_of_the_verdicts_can_be_set():
    verifier = ArithmeticVerifier(reference_field="answer", correct=2.0, wrong=-0.5, no_answer=-1.0)
    rewards = verifier(prompts=["q"] * 4, completions=["#### 1", "#### 2", "?", "#### 1"], answer=["1", "1", "1", "?"])
    assert rewards == [2.0, -0.5, -1.0, None]


def test_process_weight_shares_the_reward_between_steps_and_answer():
    verifier = ArithmeticVerifier(process_weight=0.25)
    text = "48/2=24\n48+24=73\n#### 73"
    assert verifier(prompts=["q"], completions=[text], reference=["72"]) == [0.25 * 0.5]
    assert verifier(prompts=["q"], completions=[text], reference=["73"]) == [0.75 + 0.25 * 0.5]
    assert verifier(prompts=["q"], completions=["#### 72"], reference=["72"]) == [0.75]
    verdict = verifier.verify(text, "72")
    assert (verdict.steps, verdict.right_steps, verdict.first_wrong_step) == (2, 1, "48+24=73")


def test_it_is_called_as_trl_calls_rewards():
    verifier = ArithmeticVerifier()
    chat = [{"role": "assistant", "content": "#### 72"}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "#### 72"}]}]
    turns = [
        {"role": "assistant", "content": "#### 1"},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "#### 72"},
    ]
    rewards = verifier(
        prompts=[[{"role": "user", "content": "q"}]] * 5,
        completions=[chat, parts, turns, [], "#### 72"],
        completion_ids=[[1]] * 5,
        reference=["72", 72, 72.0, "72", [{"role": "assistant", "content": "72"}]],
        trainer_state=None,
    )
    assert rewards == [1.0, 1.0, 1.0, 0.0, 1.0]
    assert verifier.__name__ == "arithmetic"


def test_a_missing_column_names_the_nearest_one():
    with pytest.raises(InputError, match=r"no column 'reference'.*did you mean 'references'"):
        ArithmeticVerifier()(prompts=["q"], completions=["1"], references=["1"])
    with pytest.raises(InputError, match="2 completions came with 1 references"):
        ArithmeticVerifier()(prompts=["q"] * 2, completions=["1"] * 2, reference=["1"])


@pytest.mark.parametrize("options", [{"tolerance": -1}, {"tolerance": "much"}, {"process_weight": 1.5}])
def test_options_out_of_range_are_refused(options: dict[str, object]):
    with pytest.raises(InputError, match=next(iter(options))):
        ArithmeticVerifier(**options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("split", "rows"), [("train", 7473), ("test", 1319)])
def test_every_gsm8k_reference_is_readable_and_equals_only_itself(split: str, rows: int):
    verifier, references = ArithmeticVerifier(), _gsm8k(split)
    assert len(references) == rows
    for reference in references:
        solution, _, answer = reference.rpartition("####")
        number = answer.strip().replace(",", "")
        for same in (
            reference,
            answer,
            f"{solution}\\boxed{{{answer}}}",
            f"{solution}The answer is ${answer.strip()}.",
            f"= {number}.00",
        ):
            verdict = verifier.verify(same, reference)
            assert (verdict.status, verdict.value) == ("correct", Fraction(number)), (same, verdict)
        for other in (f"{number}0" if number != "0" else "1", f"-{number}" if number != "0" else "2", f"1{number}", f"{number}.5"):
            other = other.replace("--", "").replace("1-", "1")
            assert verifier.verify(f"{solution}#### {other}", reference).status == "wrong", (other, reference)


def test_every_calculator_mark_of_gsm8k_is_a_right_step():
    verifier = ArithmeticVerifier(check_steps=True)
    solutions = ["\n".join(re.findall(r"<<[^<>]*>>", solution)) for solution in _gsm8k("train")]
    verdicts = [verifier.verify(solution, "1") for solution in solutions]
    assert [v.first_wrong_step for v in verdicts if v.first_wrong_step] == []
    marks = [mark for solution in solutions for mark in solution.split() if re.search(r"\d[-+*/(]+[\d.(]", mark)]
    assert sum(v.steps or 0 for v in verdicts) >= 0.999 * len(marks)
