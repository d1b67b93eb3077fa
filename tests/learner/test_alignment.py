"""Alignment of two tokenizers: the finest spans of one text, whatever the tokens are."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_zoo import FAMILIES, LINES, tokenizer

from gkd_rl.models.pieces import pieces_of
from gkd_rl.teacher.other_tokenizer import Reteller, Retold
from gkd_rl.teacher.spans import Span, common_spans, text_of, without_leading_spaces
from gkd_rl.types import Example


@st.composite
def cut_text(draw, text: bytes | None = None) -> list[bytes]:
    """A text in pieces, some of them empty."""
    text = draw(st.binary(max_size=12)) if text is None else text
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])] if text or cuts else []


def parts_both(spans: list[Span], ours: list, theirs: list) -> None:
    """The spans follow each other on both sides, from the first token to the last."""
    assert [span.student for span in spans] == list(pairwise([0, *(span.student[1] for span in spans)]))
    assert [span.teacher for span in spans] == list(pairwise([0, *(span.teacher[1] for span in spans)]))
    assert all(start < end for start, end in (span.student for span in spans))
    if spans:
        assert spans[-1].student[1] == len(ours) and spans[-1].teacher[1] == len(theirs)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_spans_part_one_text_at_every_common_end(data: st.DataObject):
    text = data.draw(st.binary(max_size=12))
    ours, theirs = data.draw(cut_text(text)), data.draw(cut_text(text))
    spans = common_spans(ours, theirs)
    parts_both(spans, ours, theirs if ours else [])
    common = {0} ^ ({0, *accumulate(map(len, ours))} & {0, *accumulate(map(len, theirs))})
    ends = list(accumulate(len(text_of(ours[slice(*span.student)])) for span in spans))
    assert [end for end in ends if end][: len(common)] == sorted(common), "no coarser and no finer"
    for span in spans:
        mine, its = (text_of(side[slice(*where)]) for side, where in ((ours, span.student), (theirs, span.teacher)))
        assert span.realised == (mine == its and span.teacher[0] < span.teacher[1])
        assert span.realised or mine == b""


@settings(max_examples=200, deadline=None)
@given(cut_text(), cut_text())
def test_spans_of_different_texts_part_both_and_say_which_are_alike(ours: list[bytes], theirs: list[bytes]):
    spans = common_spans(ours, theirs)
    parts_both(spans, ours, theirs if ours else [])
    for span in spans:
        mine, its = (text_of(side[slice(*where)]) for side, where in ((ours, span.student), (theirs, span.teacher)))
        assert span.realised == (mine == its and span.teacher[0] < span.teacher[1])


def spans_of(ours: str, theirs: str) -> list[tuple[str, str, bool]]:
    """Spans of pieces written with '|', as text with '|'; '#' is a special token."""
    sides = [[None if piece == "#" else piece.encode() for piece in side.split("|")] if side else [] for side in (ours, theirs)]
    shown = lambda side, where: "|".join("#" if piece is None else piece.decode() for piece in side[slice(*where)])
    return [(shown(sides[0], span.student), shown(sides[1], span.teacher), span.realised) for span in common_spans(*sides)]


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ("The| ans|wer| is", "The| answer| |is", [("The", "The", True), (" ans|wer", " answer", True), (" is", " |is", True)]),
        ("ab|c", "a|bc", [("ab|c", "a|bc", True)]),
        ("a|b|#", "ab", [("a|b", "ab", True), ("#", "", False)]),
        ("a|#|b|c", "a|b|c", [("a", "a", True), ("#|b", "b", False), ("c", "c", True)]),
        ("a|b", "a|#|b", [("a", "a|#", False), ("b", "b", True)]),
        ("a|b", "a|b|#", [("a", "a", True), ("b", "b|#", False)]),
        ("#", "", [("#", "", False)]),
        ("", "", []),
        ("one|\n|two| more", "one| |two| more", [("one", "one", True), ("\n", " ", False), ("two", "two", True), (" more", " more", True)]),
        ("one| ü| two", "one| |#| two", [("one", "one", True), (" ü", " |#", False), (" two", " two", True)]),
        ("one| ü| two", "one| | two", [("one", "one", True), (" ü", " ", False), (" two", " two", True)]),
        ("a", "a| |b", [("a", "a| |b", False)]),
        ("one|", "one", [("one", "one", True), ("", "", False)]),
        ("|one", "one", [("|one", "one", True)]),
        ("|one", "|one", [("|one", "|one", True)]),
    ],
)
def test_spans_by_hand(ours: str, theirs: str, expected: list[tuple[str, str, bool]]):
    assert spans_of(ours, theirs) == expected


def test_a_character_cut_at_one_place_is_cut_and_at_two_is_whole():
    euro = "€".encode()
    assert len(common_spans([euro[:1], euro[1:]], [euro[:1], euro[1:]])) == 2
    assert common_spans([euro[:1], euro[1:]], [euro[:2], euro[2:]]) == [Span((0, 2), (0, 2), True)]


def test_leading_spaces_are_cut_off_wherever_they_are():
    assert without_leading_spaces([None, b" ", b"  a", b" b"]) == [None, b"", b"a", b" b"]
    assert without_leading_spaces([b" "]) == [b""]


def retold(student: str, teacher: str, prompt: str, ids: list[int], ended: bool, chat: bool) -> tuple[Reteller, Retold]:
    ours, theirs = (pieces_of(tokenizer(family, chat), "here") for family in (student, teacher))
    reteller = Reteller(ours, theirs)
    return reteller, reteller.row(Example([{"role": "user", "content": prompt}] if chat else prompt), ids, ended)


LOSSLESS = ("bytes", "more bytes", "sentencepiece", "no prefix")


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("teacher", LOSSLESS)
@pytest.mark.parametrize("student", LOSSLESS)
def test_any_answer_is_retold_word_by_word(student: str, teacher: str, chat: bool):
    """Whole lines, with and without a space before them, and tokens sampled at random; every span has the same text on both sides."""
    one, rng = tokenizer(student, chat), random.Random(f"{student} {teacher}")
    ordinary = sorted(pieces_of(one, "here").bytes_of)
    rows = [one(space + line, add_special_tokens=False)["input_ids"] for line in LINES for space in ("", " ")]
    rows += [rng.choices(ordinary, k=12) for _ in range(5)]
    for ids in rows:
        reteller, row = retold(student, teacher, "Question: 1+1?\nAnswer:", [*ids, one.eos_token_id], True, chat)
        ours, theirs = reteller.student.of(ids), reteller.teacher.of(row.completion[:-1])
        parts_both(row.spans, [*ids, "end"], row.completion)
        assert row.spans[-1] == Span((len(ids), len(ids) + 1), (len(theirs), len(theirs) + 1), True)
        assert row.completion[-1] == reteller.teacher.tokenizer.eos_token_id
        if "\ufffd" not in text_of(ours).decode(errors="replace"):
            assert text_of(ours).lstrip() == text_of(theirs).lstrip() and all(span.realised for span in row.spans)
            assert (
                student != teacher or ids in rows[len(LINES) * 2 :] or all(b - a == 1 for s in row.spans for a, b in (s.student, s.teacher))
            )


@pytest.mark.parametrize("student", FAMILIES)
@pytest.mark.parametrize("teacher", ["unigram", "words"])
def test_what_the_teacher_cannot_write_lies_within_some_spans(student: str, teacher: str):
    one = tokenizer(student)
    ids = one("The answer\n is 7 8 9", add_special_tokens=False)["input_ids"]
    reteller, row = retold(student, teacher, "Q", ids, False, False)
    parts_both(row.spans, ids, row.completion[:-1])
    for span in row.spans:
        mine = text_of(reteller.student.of(ids)[slice(*span.student)]).strip()
        its = text_of(reteller.teacher.of(row.completion)[slice(*span.teacher)]).strip()
        assert mine == its or not span.realised
    crossed = student == "no prefix" and teacher == "words"  # whose spaces end tokens on one side and begin them on the other
    assert crossed or any(span.realised for span in row.spans)


def test_an_answer_that_is_cut_off_has_no_end():
    one = tokenizer("bytes")
    ids = one(" is 42", add_special_tokens=False)["input_ids"]
    reteller, row = retold("bytes", "sentencepiece", "The answer", ids, False, False)
    said = row.completion[:-1]
    assert row.spans[-1].student[1] == len(ids) and row.spans[-1].teacher[1] == len(said)
    prompt = reteller.teacher.tokenizer("The answer")["input_ids"]
    assert row.prompt == prompt
    assert reteller.teacher.tokenizer.decode(prompt + said) == "The answer is 42", "no space too many"


@pytest.mark.parametrize(
    ("student", "teacher", "said", "chat", "expected"),
    [
        ("bytes", "sentencepiece", "42", False, ["4", "2"]),
        ("bytes", "sentencepiece", " 42", False, ["▁", "4", "2"]),
        ("sentencepiece", "bytes", "42", False, ["Ġ4", "2"]),
        ("bytes", "sentencepiece", "42", True, ["▁", "4", "2"]),
        ("sentencepiece", "bytes", "42", True, ["4", "2"]),
        ("sentencepiece", "sentencepiece", "42", True, ["▁", "4", "2"]),
    ],
)
def test_the_first_space_is_the_texts_in_a_text_and_the_tokenizers_in_a_chat(
    student: str, teacher: str, said: str, chat: bool, expected: list[str]
):
    """SentencePiece's '42' is ' 42' behind other text, and what an answer begins with in a chat."""
    ids = tokenizer(student)(said, add_special_tokens=False)["input_ids"]
    reteller, row = retold(student, teacher, "The answer is", ids, False, chat)
    assert reteller.teacher.tokenizer.convert_ids_to_tokens(row.completion[:-1]) == expected
    assert all(span.realised for span in row.spans)


def test_only_a_row_that_ended_by_it_has_the_teachers_end():
    ids = [*tokenizer("bytes")(" is", add_special_tokens=False)["input_ids"], 0]
    for ended in (True, False):
        _, row = retold("bytes", "sentencepiece", "The answer", ids, ended, False)
        assert row.spans[-1].student == (len(ids) - 1, len(ids)) and row.spans[-1].realised == ended
        assert row.spans[-1].teacher[1] - row.spans[-1].teacher[0] == ended


def test_a_chat_goes_through_the_teachers_own_template():
    one = tokenizer("bytes", True)
    _, row = retold("bytes", "more bytes", "1+1?", [one.eos_token_id], True, True)
    assert tokenizer("more bytes").decode(row.prompt) == "[user]1+1?\n[assistant]\n"
    assert row.completion == [0] and row.spans == [Span((0, 1), (0, 1), True)]


def test_a_template_is_filled_in():
    ours, theirs = pieces_of(tokenizer("bytes"), "here"), pieces_of(tokenizer("more bytes"), "there")
    row = Reteller(ours, theirs, "{prompt} ({hint})").row(Example("1+1?", columns={"hint": "2"}), [1], True)
    assert tokenizer("more bytes").decode(row.prompt) == "1+1? (2)"
