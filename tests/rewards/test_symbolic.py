"""Symbolic answers: compared by math-verify in a process of its own, within a time limit."""

import importlib.util
import time

import pytest

from reward_models import ArithmeticVerifier, InputError, arithmetic, symbolic

if importlib.util.find_spec("math_verify") is None:
    pytest.skip("math-verify is not installed (pip install 'gkd-rl[math]')", allow_module_level=True)


@pytest.fixture(scope="module")
def verifier() -> ArithmeticVerifier:
    return ArithmeticVerifier(symbolic=True, symbolic_seconds=2)


@pytest.mark.parametrize(
    ("completion", "reference", "status"),
    [
        ("\\boxed{\\frac{\\sqrt{2}}{2}}", "\\frac{1}{\\sqrt{2}}", "correct"),
        ("\\boxed{(x-1)(x+1)}", "x^2-1", "correct"),
        ("The answer is $2\\sqrt{2}$.", "\\sqrt{8}", "correct"),
        ("#### 2sqrt(2)", "sqrt(8)", "correct"),
        ("\\boxed{\\{2,1\\}}", "\\{1,2\\}", "correct"),
        ("\\boxed{\\sqrt{5184}}", "72", "correct"),
        ("\\boxed{x^2+1}", "x^2-1", "wrong"),
        ("#### 5", "x^2-1", "wrong"),
        ("\\boxed{\\text{no idea}}", "x^2-1", "wrong"),
        ("I do not know,\nI am sorry", "x^2-1", "no_answer"),
        ("\\boxed{hello world}", "hello world", "bad_reference"),
        ("#### 72", "", "bad_reference"),
        ("#### 1e1", "10", "correct"),
    ],
)
def test_expressions_are_compared_by_value(verifier: ArithmeticVerifier, completion: str, reference: str, status: str):
    assert verifier.verify(completion, reference).status == status


def test_a_comparison_without_an_end_is_ended_and_the_next_one_works(verifier: ArithmeticVerifier):
    start = time.monotonic()
    verdict = verifier.verify("\\boxed{9^{9^{9^{9}}}}", "\\sqrt{2}")
    assert (verdict.status, verdict.note) == ("wrong", "not finished within 2 s or the memory limit")
    assert time.monotonic() - start < 2 + 5  # the limit, and starting a worker on a busy machine
    assert verifier.verify("\\boxed{\\sqrt{8}}", "2\\sqrt{2}").status == "correct"


@pytest.mark.parametrize("text", ["(10^{10^{10}})!", "\\frac{" * 100, "\\ud800", "\\int_0^{10^9} x^{1000} dx", "{" * 400])
def test_hostile_expressions_are_not_right(verifier: ArithmeticVerifier, text: str):
    assert verifier.verify(f"#### {text}", "\\sqrt{2}").status in {"wrong", "no_answer"}


def test_symbolic_text_is_not_evaluated_either(verifier: ArithmeticVerifier, tmp_path, monkeypatch):
    verifier.judge.close()  # pyright: ignore[reportOptionalMemberAccess]
    monkeypatch.chdir(tmp_path)  # the next worker starts here
    for code in ("__import__('os').mkdir('e')", "open('e','w')", "().__class__"):
        assert verifier.verify(f"\\boxed{{{code}}}", "\\sqrt{2}").status != "correct"
        assert verifier.verify("\\boxed{\\sqrt{2}}", code).status != "correct"
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_dies_is_replaced(verifier: ArithmeticVerifier):
    assert verifier.verify("\\boxed{x}", "x").status == "correct"
    worker = verifier.judge._worker  # pyright: ignore[reportOptionalMemberAccess]
    assert worker
    worker.kill()
    worker.wait()
    assert verifier.verify("\\boxed{x}", "x").status == "correct"


def test_plain_numbers_never_start_a_worker():
    verifier = ArithmeticVerifier(symbolic=True)
    assert verifier.verify("#### 72", "72").status == "correct"
    assert verifier.judge is not None
    assert verifier.judge._worker is None


def test_without_math_verify_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(symbolic.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gkd-rl\[math\]"):
        arithmetic.ArithmeticVerifier(symbolic=True)
