"""Instructions that a program can check: every id by followers and violators, on all real rows, and what is refused."""

import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from instruction_cases import cases

from reward_models import InputError, InstructionChecks, WeightedSum
from reward_models.instruction_checks import CHECKS
from reward_models.instructions.language import require_detector

ENGLISH = ("change_case:english_capital", "change_case:english_lowercase")
NEEDS_DETECTOR = (*ENGLISH, "language:response_language")
HAS_DETECTOR = importlib.util.find_spec("langdetect") is not None

ARGUMENTS: dict[str, dict[str, Any]] = {
    "change_case:capital_word_frequency": {"capital_relation": "at least", "capital_frequency": 4},
    "combination:repeat_prompt": {"prompt_to_repeat": "Write a (short) poem."},
    "detectable_content:number_placeholders": {"num_placeholders": 3},
    "detectable_content:postscript": {"postscript_marker": "P.P.S"},
    "detectable_format:multiple_sections": {"section_spliter": "Day", "num_sections": 3},
    "detectable_format:number_bullet_lists": {"num_bullets": 3},
    "detectable_format:number_highlighted_sections": {"num_highlights": 3},
    "keywords:existence": {"keywords": ["sea", "C++"]},
    "keywords:forbidden_words": {"forbidden_words": ["sea", "sky"]},
    "keywords:frequency": {"relation": "less than", "keyword": "sea", "frequency": 3},
    "keywords:letter_frequency": {"let_relation": "at least", "letter": "#", "let_frequency": 4},
    "language:response_language": {"language": "de"},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "sea"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 3},
    "length_constraints:number_sentences": {"relation": "less than", "num_sentences": 4},
    "length_constraints:number_words": {"relation": "at least", "num_words": 20},
    "startend:end_checker": {"end_phrase": "Any questions?"},
}


def _checks(**options: Any) -> InstructionChecks:
    return InstructionChecks(**{"language": HAS_DETECTOR, **options})


def _expect(checks: InstructionChecks, instruction: str, arguments: dict[str, Any]) -> None:
    followers, violators = cases(instruction, arguments)
    for response in followers:
        assert checks.followed(response, [instruction], [arguments]) == [True], (instruction, arguments, response)
    for response in violators:
        assert checks.followed(response, [instruction], [arguments]) == [False], (instruction, arguments, response)


def test_there_are_the_25_instructions_of_the_paper():
    assert len(CHECKS) == 25


@pytest.mark.parametrize("instruction", sorted(CHECKS))
def test_followers_follow_and_violators_do_not(instruction: str):
    _expect(_checks(), instruction, ARGUMENTS.get(instruction, {}))


def test_all_real_rows_can_be_followed_and_violated():
    path = Path(os.environ.get("GKD_RL_DATA", "")) / "ifeval" / "input_data.jsonl"
    if not path.is_file():
        pytest.skip("GKD_RL_DATA names no folder with ifeval/input_data.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    checks, seen = _checks(), set()
    for row in rows:
        for instruction, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            if instruction not in NEEDS_DETECTOR:
                _expect(checks, instruction, arguments)
            elif HAS_DETECTOR and (key := (instruction, str(arguments))) not in seen:
                seen.add(key)
                _expect(checks, instruction, arguments)
    assert len(rows) == 541
    empty = checks(prompts=[row["prompt"] for row in rows], completions=[""] * 541, **_columns(rows))
    assert set(empty) <= {0.0, None}
    assert empty.count(None) == (0 if HAS_DETECTOR else sum(row["instruction_id_list"] == ["language:response_language"] for row in rows))


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in ("instruction_id_list", "kwargs")}


IDS = ["punctuation:no_comma", "startend:quotation", "detectable_format:title"]


def test_the_score_is_the_share_or_all_or_nothing():
    columns = {"instruction_id_list": [IDS] * 3, "kwargs": [[{}] * 3] * 3}
    completions = ['"<<x>> y"', "<<x>> y", [{"role": "assistant", "content": "a, b"}]]
    assert _checks()([""] * 3, completions, **columns) == [1.0, pytest.approx(2 / 3), 0.0]
    assert _checks(score="all")([""] * 3, completions, **columns) == [1.0, 0.0, 0.0]


def test_loose_reading_forgives_a_first_or_last_line_and_asterisks():
    strict, loose = _checks(), _checks(mode="loose")
    for response in ("Sure, here it is:\n<<x>>", "<<x>>\nbye, bye", "a, b\n<<x>>\nc, d"):
        assert strict.followed(response, IDS[::2], [{}] * 2) == [False, True]
        assert loose.followed(response, IDS[::2], [{}] * 2) == [True, True]
    assert strict.followed("**<<*>>**", IDS[2:], [{}]) == [True]
    assert loose.followed('**"quoted"**', IDS[1:2], [{}]) == [True]
    assert strict.followed('**"quoted"**', IDS[1:2], [{}]) == [False]
    assert loose.followed("a,\nb,\nc,", IDS[:1], [{}]) == [False]


def test_null_arguments_are_absent_ones_and_rows_without_instructions_do_not_apply():
    table = [{"num_words": 3, "relation": "at least", "num_bullets": None}, {"num_words": None, "relation": None, "num_bullets": None}]
    ids = ["length_constraints:number_words", "punctuation:no_comma"]
    assert _checks().followed("one two three", ids, table) == [True, True]
    total = WeightedSum([("followed", _checks(), 1.0)])
    assert total(["a"] * 3, ["b"] * 3, instruction_id_list=[[], None, IDS[:1]], kwargs=[[], None, [{}]]) == [None, None, 1.0]


def test_without_the_detector_languages_are_left_out_and_checking_them_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"checks of the language need langdetect; install it with: pip install 'gkd-rl\[language\]'"):
        require_detector()
    with pytest.raises(InputError, match="checks of the language need langdetect"):
        InstructionChecks()
    checks = InstructionChecks(language=False)
    ids = ["language:response_language", "change_case:english_capital"]
    assert checks.followed("DAS IST DEUTSCH", ids, [{"language": "fr"}, {}]) == [True]
    assert checks([""], ["text"], instruction_id_list=[ids[:1]], kwargs=[[{"language": "fr"}]]) == [None]


def test_english_is_asked_for_where_languages_are_checked():
    german = "das ist ein deutscher satz über das wetter und den wald"
    assert InstructionChecks().followed(german, ["change_case:english_lowercase"], [{}]) == [False]
    assert InstructionChecks(language=False).followed(german, ["change_case:english_lowercase"], [{}]) == [True]


@pytest.mark.parametrize(
    ("ids", "arguments", "message"),
    [
        (["punctuation:no_coma"], [{}], "row 0: there is no instruction 'punctuation:no_coma'; did you mean 'punctuation:no_comma'"),
        (["keywords:existence"], [{}], "row 0: instruction 'keywords:existence' takes keywords, not none"),
        (["punctuation:no_comma"], [{"n": 1}], "instruction 'punctuation:no_comma' takes no arguments, not n"),
        (["punctuation:no_comma"], [], "row 0: 1 instructions came with arguments for 0"),
        (
            ["length_constraints:number_words"],
            [{"relation": "over", "num_words": 3}],
            "cannot be checked with .*the relation is 'over'; it must be 'at least' or 'less than'",
        ),
        (["length_constraints:number_words"], [{"relation": "at least", "num_words": "3"}], "cannot be checked with"),
    ],
)
def test_rows_that_cannot_be_checked_are_refused(ids: list[str], arguments: list, message: str):
    with pytest.raises(InputError, match=message):
        _checks()([""], ["text"], instruction_id_list=[ids], kwargs=[arguments])


def test_options_and_columns_that_are_wrong_are_refused():
    for options, message in (({"score": "most"}, "score is 'most'"), ({"mode": "lose"}, "mode is 'lose'")):
        with pytest.raises(InputError, match=message):
            _checks(**options)
    with pytest.raises(InputError, match="no column 'kwargs' with the instructions; did you mean 'kwarg'"):
        _checks()([""], ["a"], instruction_id_list=[[]], kwarg=[[]])


@pytest.mark.parametrize("piece", ["[", "*", "<<", ">>", " ", "\n", "- ", "p.", "***", "\n\n", "a,", '"', "Day 1", ". ", "\x00\ud800"])
def test_a_megabyte_of_anything_takes_less_than_two_seconds_a_check(piece: str):
    checks, response = InstructionChecks(language=False), piece * (10**6 // len(piece))
    for instruction in sorted(CHECKS):
        start = time.process_time()
        checks.followed(response, [instruction], [ARGUMENTS.get(instruction, {})])
        assert time.process_time() - start < 2, instruction
