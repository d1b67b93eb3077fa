"""Instructions about how much there is of something: words, sentences, paragraphs, keywords, letters."""

import re

from reward_models.sentences import split_sentences

_WORD = re.compile(r"\w+")
_CAPITALISABLE = re.compile(r"\w+(?:[-'’]\w+)*")
_RULE = re.compile(r"\s?\*\*\*\s?")
_FIRST_WORD_END = re.compile(r"[.,?!'\"]")


def holds(count: int, relation: str, limit: int) -> bool:
    """Whether `count` is "at least" or "less than" `limit`."""
    if relation not in ("at least", "less than"):
        raise ValueError(f"the relation is '{relation}'; it must be 'at least' or 'less than'")
    return count >= limit if relation == "at least" else count < limit


def number_words(response: str, *, relation: str, num_words: int) -> bool:
    return holds(len(_WORD.findall(response)), relation, num_words)


def number_sentences(response: str, *, relation: str, num_sentences: int) -> bool:
    return holds(len(split_sentences(response)), relation, num_sentences)


def number_paragraphs(response: str, *, num_paragraphs: int) -> bool:
    """Paragraphs parted by `***`; one before the first mark or behind the last may be empty, one between two may not."""
    paragraphs = [paragraph.strip() for paragraph in _RULE.split(response)]
    if not all(paragraphs[1:-1]):
        return False
    return sum(map(bool, paragraphs)) == num_paragraphs


def nth_paragraph_first_word(response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """So many paragraphs parted by blank lines, of which the n-th begins with a word."""
    paragraphs = [stripped for paragraph in response.split("\n\n") if (stripped := paragraph.strip())]
    if len(paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'\"")
    return _FIRST_WORD_END.split(word)[0].lower() == first_word.lower()


def existence(response: str, *, keywords: list[str]) -> bool:
    return all(re.search(re.escape(keyword), response, re.IGNORECASE) for keyword in keywords)


def frequency(response: str, *, relation: str, keyword: str, frequency: int) -> bool:
    return holds(len(re.findall(re.escape(keyword.strip()), response, re.IGNORECASE)), relation, frequency)


def forbidden_words(response: str, *, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", response, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(response: str, *, let_relation: str, letter: str, let_frequency: int) -> bool:
    return holds(response.lower().count(letter.lower()), let_relation, let_frequency)


def capital_word_frequency(response: str, *, capital_relation: str, capital_frequency: int) -> bool:
    """Words all in capitals."""
    capital = sum(word.isupper() for word in _CAPITALISABLE.findall(response))
    return holds(capital, capital_relation, capital_frequency)


def number_placeholders(response: str, *, num_placeholders: int) -> bool:
    """Placeholders such as `[address]`, each on one line."""
    found = 0
    for line in response.split("\n"):
        end = -1
        while (start := line.find("[", end + 1)) >= 0 and (end := line.find("]", start + 1)) >= 0:
            found += 1
    return found >= num_placeholders
