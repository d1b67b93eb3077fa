"""Responses that follow an instruction, and responses that do not, made for any arguments of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Cases = tuple[list[str], list[str]]
"""Followers and violators."""


def _limits(relation: str, limit: int, made: Callable[[int], str]) -> Cases:
    """``made(n)`` has n of what is counted; the two counts next to the limit, and ones far off."""
    below, above = [made(max(limit - 1, 0)), *([made(limit // 2)] if limit > 1 else [])], [made(limit), made(limit + 3)]
    return (above, below) if relation == "at least" else (below, above)


def _other(word: str) -> str:
    return "zebra" if word.lower() != "zebra" else "quagga"


def number_words(relation: str, num_words: int) -> Cases:
    return _limits(relation, num_words, lambda n: "- " + " ".join(["word"] * n))


def number_sentences(relation: str, num_sentences: int) -> Cases:
    return _limits(relation, num_sentences, lambda n: " ".join(f"Sentence {i} of Mr. Hill ends." for i in range(n)) or " ")


def number_paragraphs(num_paragraphs: int) -> Cases:
    made = lambda n: "\n***\n".join(f"Paragraph {i}" for i in range(n))
    right = made(num_paragraphs)
    return [right, f"{right}\n***\n", f"***\n{right}"], [made(num_paragraphs + 1), made(num_paragraphs - 1), f"{right}\n***\n***\nx", ""]


def nth_paragraph_first_word(num_paragraphs: int, nth_paragraph: int, first_word: str) -> Cases:
    def made(count: int, word: str) -> str:
        return "\n\n".join(f"{word if i + 1 == nth_paragraph else 'some'} text" for i in range(count))

    right = made(num_paragraphs, first_word)
    quoted = made(num_paragraphs, f'"{first_word.upper()}",')
    wrong = [made(num_paragraphs, _other(first_word)), made(num_paragraphs + 1, first_word), made(num_paragraphs - 1, first_word)]
    return [right, quoted], wrong


def existence(keywords: list[str]) -> Cases:
    text = " and ".join(keywords)
    return [text, text.upper()], [" and ".join(keywords[1:]) or "none", "nothing of it"]


def frequency(relation: str, keyword: str, frequency: int) -> Cases:
    return _limits(relation, frequency, lambda n: "|" + "|".join([keyword.upper()] * n))


def forbidden_words(forbidden_words: list[str]) -> Cases:
    return ["xyzzy", f"x{forbidden_words[0]}x"], [f"We say {word.upper()}!" for word in forbidden_words]


def letter_frequency(let_relation: str, letter: str, let_frequency: int) -> Cases:
    other = "z" if letter.lower() != "z" else "y"
    return _limits(let_relation, let_frequency, lambda n: f"{other} " + (letter.upper() + " ") * n)


def capital_word_frequency(capital_relation: str, capital_frequency: int) -> Cases:
    return _limits(capital_relation, capital_frequency, lambda n: "small Words " + "NASA-X " * n)


def number_placeholders(num_placeholders: int) -> Cases:
    made = lambda n: "Dear [name], \n" + "live at [street [1]. " * (n - 1)
    return [made(num_placeholders), made(num_placeholders + 2)], [made(num_placeholders - 1) if num_placeholders > 1 else "no [place\n]"]


def postscript(postscript_marker: str) -> Cases:
    spaced = {"P.S.": "p. s. that too", "P.P.S": "p. p.s that too"}[postscript_marker]
    return [f"Text.\n\n{postscript_marker} that too", f"Text.\n{spaced}"], ["Text.\nPS that too", "Text. P."]


def number_bullet_lists(num_bullets: int) -> Cases:
    made = lambda n: "Title\n" + "\n".join(f"{'  * ' if i % 2 else '- '}point" for i in range(n)) + "\n**bold** * and - within"
    return [made(num_bullets)], [made(num_bullets - 1), made(num_bullets + 1), "*\n" * num_bullets]


def number_highlighted_sections(num_highlights: int) -> Cases:
    made = lambda n: " ".join(f"*part {i}*" if i % 2 else f"**part {i}**" for i in range(n)) + " ** ** *open"
    return [made(num_highlights), made(num_highlights + 1)], [made(num_highlights - 1), "* *" * num_highlights]


def multiple_sections(section_spliter: str, num_sections: int) -> Cases:
    made = lambda n: "\n".join(f"{section_spliter} {i + 1}\ntext" for i in range(n))
    return [made(num_sections), made(num_sections + 1)], [made(num_sections - 1), f"{section_spliter} one\n" * num_sections]


def json_format() -> Cases:
    return ['{"a": [1, 2]}', '```json\n{"a": null}\n```', " [] "], ["a: 1", '{"a": 1', '{"a": 1} and so on', "[" * 100_000]


def title() -> Cases:
    return ["<<joy>>\ntext", "text\n <<a title>> more"], ["<joy>", "<<\njoy>>", "<<>>", "<<  >>", "joy>><<"]


def constrained_response() -> Cases:
    return [f"My answer is {word}." for word in ("yes", "no", "maybe")], ["My answer is sure.", "yes", "my answer is yes."]


def two_responses() -> Cases:
    return ["one\n******\ntwo", "******one******two******"], ["one", "one******one", "one******two******three", "a************b"]


def repeat_prompt(prompt_to_repeat: str) -> Cases:
    return [f"{prompt_to_repeat}\n\nAnswer", f" {prompt_to_repeat.upper()}"], [f"Answer: {prompt_to_repeat}", prompt_to_repeat[1:]]


def end_checker(end_phrase: str) -> Cases:
    return [f"Text. {end_phrase}", f'"Text. {end_phrase.upper()}"\n'], [f"{end_phrase} Text", end_phrase[:-1]]


def quotation() -> Cases:
    return ['"all of it"', ' "all"\n'], ["none", '"open', 'open"', '"']


def no_comma() -> Cases:
    return ["no comma; none"], ["one, comma", ","]


def english_capital() -> Cases:
    return ["THIS IS ENGLISH TEXT THAT IS WRITTEN IN CAPITAL LETTERS"], ["THIS IS ENGLISH TEXT BUT one WORD", "123"]


def english_lowercase() -> Cases:
    return ["this is english text that is written in small letters"], ["this is english text but ONE word", "123"]


_IN = {
    "de": "Das ist ein deutscher Satz über das Wetter, das heute schön ist.",
    "en": "This is an English sentence about the weather, which is nice today.",
}
_LETTERS = {
    **{"ar": "هذه جملة باللغة العربية عن الطقس الجميل اليوم", "bg": "Това е изречение на български език за времето, което днес е хубаво."},
    **{"bn": "এটি আজকের সুন্দর আবহাওয়া সম্পর্কে একটি বাংলা বাক্য", "fa": "این یک جمله فارسی درباره هوای خوب امروز است که می‌خوانید"},
    **{"fi": "Tämä on suomenkielinen lause säästä, joka on tänään kaunis.", "gu": "આ આજના સુંદર હવામાન વિશે ગુજરાતી વાક્ય છે"},
    **{"hi": "यह आज के सुंदर मौसम के बारे में हिंदी में एक वाक्य है", "it": "Questa è una frase italiana sul tempo, che oggi è molto bello."},
    **{"kn": "ಇದು ಇಂದಿನ ಸುಂದರ ಹವಾಮಾನದ ಬಗ್ಗೆ ಕನ್ನಡ ವಾಕ್ಯ", "ko": "이것은 오늘 좋은 날씨에 대한 한국어 문장입니다"},
    **{"mr": "हे आजच्या सुंदर हवामानाबद्दल मराठी वाक्य आहे आणि ते छान आहे", "ne": "यो आजको राम्रो मौसमको बारेमा नेपाली वाक्य हो र यो राम्रो छ"},
    **{"pa": "ਇਹ ਅੱਜ ਦੇ ਸੁੰਦਰ ਮੌਸਮ ਬਾਰੇ ਪੰਜਾਬੀ ਵਾਕ ਹੈ", "pt": "Esta é uma frase em português sobre o tempo, que hoje não está ruim."},
    **{
        "ru": "Это русское предложение о погоде, которая сегодня очень хорошая.",
        "sw": "Hii ni sentensi ya Kiswahili kuhusu hali ya hewa nzuri ya leo.",
    },
    **{"ta": "இது இன்றைய அழகான வானிலை பற்றிய தமிழ் வாக்கியம்", "te": "ఇది నేటి అందమైన వాతావరణం గురించి తెలుగు వాక్యం"},
    **{"th": "นี่คือประโยคภาษาไทยเกี่ยวกับสภาพอากาศที่ดีในวันนี้", "ur": "یہ آج کے خوبصورت موسم کے بارے میں اردو کا ایک جملہ ہے"},
    "vi": "Đây là một câu tiếng Việt về thời tiết đẹp ngày hôm nay.",
}


def response_language(language: str) -> Cases:
    followers, others = {**_IN, **_LETTERS}[language], "en" if language != "en" else "de"
    return [followers], [_IN[others], "123 456"]


def cases(instruction: str, arguments: dict[str, Any]) -> Cases:
    """Followers and violators of an instruction with these arguments."""
    return globals()[instruction.split(":")[1]](**arguments)
