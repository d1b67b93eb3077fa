"""Instructions about the form of a response: lists, sections, titles, JSON, quotation marks, case, how it starts and ends."""

import json
import re

_EMPHASIS = re.compile(r"\*[^\n*]*\*")
_STRONG = re.compile(r"\*\*[^\n*]*\*\*")
_FENCES = ("```json", "```Json", "```JSON", "```")
_POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def postscript(response: str, *, postscript_marker: str) -> bool:
    pattern = _POSTSCRIPTS.get(postscript_marker, re.escape(postscript_marker.lower()))
    return re.search(pattern, response.lower()) is not None


def number_bullet_lists(response: str, *, num_bullets: int) -> bool:
    """Exactly so many lines that start with `*` or `-`."""
    lines = [line.lstrip() for line in response.split("\n")]
    return sum(line.startswith("-") or (line.startswith("*") and line[1:2] not in ("", "*")) for line in lines) == num_bullets


def number_highlighted_sections(response: str, *, num_highlights: int) -> bool:
    """At least so many spans in `*one*` or `**two**` asterisks that hold something."""
    emphasised = [span for span in _EMPHASIS.findall(response) if span.strip("*").strip()]
    strong = [span for span in _STRONG.findall(response) if span[2:-2].strip()]
    return len(emphasised) + len(strong) >= num_highlights


def multiple_sections(response: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many headings such as `SECTION 1`."""
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", response)) >= num_sections


def json_format(response: str) -> bool:
    """JSON as a whole, which may stand in a fence."""
    text = response.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(response: str) -> bool:
    """A title in double angular brackets, `<<title>>`, on one line."""
    for line in response.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and end > start + 1 and line[start:end].strip("<> \t"):
            return True
    return False


def constrained_response(response: str) -> bool:
    return any(choice in response for choice in _CHOICES)


def two_responses(response: str) -> bool:
    """Two different responses parted by `******`."""
    parts = [part.strip() for part in response.split("******")]
    if not all(parts[1:-1]):
        return False
    given = [part for part in parts if part]
    return len(given) == 2 and given[0] != given[1]


def repeat_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(response: str, *, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(response: str) -> bool:
    text = response.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


def no_comma(response: str) -> bool:
    return "," not in response


def english_capital(response: str) -> bool:
    """All in capitals; that it is English is a matter of `language`."""
    return response.isupper()


def english_lowercase(response: str) -> bool:
    """All in small letters; that it is English is a matter of `language`."""
    return response.islower()
