"""Where sentences end, and that odd text costs no more than its length."""

import time

import pytest

from reward_models.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Smith went to the U.S. in Jan. 2020. He met J. Doe.", ["Dr. Smith went to the U.S. in Jan. 2020.", "He met J. Doe."]),
        ('"Really?" she asked. "Yes." Then he left.', ['"Really?" she asked.', '"Yes."', "Then he left."]),
        ("It weighs 3.5 kg. 4 remain.", ["It weighs 3.5 kg.", "4 remain."]),
        ("1. One thing.\n2. Another thing, e.g. This. More", ["1. One thing.", "2. Another thing, e.g. This.", "More"]),
        ("A line\nanother line\n\n\nlast", ["A line", "another line", "last"]),
        ("See z.B. Berlin. Ärger kommt.", ["See z.B. Berlin.", "Ärger kommt."]),
        ("他来了。她走了！！好", ["他来了。", "她走了！！", "好"]),
        ("मैं। example.com is a site... of mine. *Bold.* Next", ["मैं। example.com is a site... of mine.", "*Bold.*", "Next"]),
        ("", []),
        (" \n\t\n", []),
        ("...", ["..."]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, sentences: list[str]):
    assert split_sentences(text) == sentences


@pytest.mark.parametrize("piece", [".", ". ", "\n", "A. ", "\n ", 'a."', ".'", "!\n", ". ((((((((", ".\t\t\t\t\t\t\t\t", "。"])
def test_a_megabyte_of_marks_takes_less_than_two_seconds(piece: str):
    start = time.process_time()
    split_sentences(piece * (10**6 // len(piece)))
    assert time.process_time() - start < 2
