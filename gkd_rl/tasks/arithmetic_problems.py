"""Word problems in the manner of GSM8K, made by a seeded generator, with step-by-step solutions.

A problem is a short story about one quantity: a start, events that change it, and a question. Its level is the number of
operations in its solution. Solutions are lines such as ``48+24=72``, closed by ``#### 72``. Every intermediate value is an
integer from 1 to 999. Train and held-out problems can never meet: a hash of the question decides which of the two it is.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]

HELD_OUT_SHARE = 8  # one question of so many belongs to the held-out side
LARGEST = 999
MAX_LEVEL = 6

PEOPLE = (("Anna", "she"), ("Ben", "he"), ("Clara", "she"), ("David", "he"), ("Emma", "she"), ("Felix", "he"))
OTHERS = ("Nora", "Omar", "Paul", "Rosa")
ITEMS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
BOXES = ("bags", "boxes", "jars")

STARTS = ("{name} has {n} {items}.", "{name} starts with {n} {items}.", "There are {n} {items} in the shop of {name}.")
CRATES = ("{name} has {a} {boxes} with {n} {items} each.", "{name} fills {a} {boxes} with {n} {items} each.")
ADDS = (
    "Then {he} buys {n} more.",
    "Then {he} finds {n} more {items}.",
    "{other} gives {name} {n} {items}.",
    "On Monday {he} gets {n} more {items}.",
)
SUBTRACTS = (
    "Then {he} sells {n} of them.",
    "Then {he} loses {n} {items}.",
    "{name} gives {n} {items} to {other}.",
    "On Sunday {he} gives away {n} of them.",
)
TIMES = ("Then the number of {items} grows {n} times as large.", "A week later {he} has {n} times as many {items}.")
SHARES = (
    "Then {he} splits them equally into {n} {boxes} and keeps one.",
    "Then {he} shares them equally with others, so that {n} people have the same.",
)
ASKS = ("How many {items} does {name} have now?", "How many {items} are left for {name}?")
PRICES = ("Each of them costs {n} dollars. How many dollars do all of them cost?",)
MORE = "{other} has {n} more {items} than {name}. How many {items} do they have together?"
AS_MANY = "{other} has {n} times as many {items} as {name}. How many {items} do they have together?"


@dataclass(frozen=True)
class Problem:
    """One word problem: its question, the solution's lines and its final answer."""

    question: str
    solution: str
    answer: int
    level: int

    @property
    def held_out(self) -> bool:
        """Whether this question belongs to the held-out side, by a hash of its text."""
        digest = hashlib.blake2b(self.question.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0


class _Story:
    """A problem in the making: the sentences so far, the solution's lines and the running quantity."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        name, he = rng.choice(PEOPLE)
        self.words = {
            "name": name,
            "he": he,
            "other": rng.choice(OTHERS),
            "items": rng.choice(ITEMS),
            "boxes": rng.choice(BOXES),
        }
        self.sentences: list[str] = []
        self.steps: list[str] = []
        self.value = 0

    def tell(self, templates: tuple[str, ...], **numbers: int) -> None:
        self.sentences.append(self.rng.choice(templates).format(**self.words, **numbers))

    def step(self, left: int, operator: str, right: int) -> None:
        value = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[operator]
        self.steps.append(f"{left}{operator}{right}={value}")
        self.value = value

    def factor(self) -> int | None:
        """A factor that keeps the product small enough, or None."""
        fitting = [k for k in range(2, 10) if self.value * k <= 400]
        return self.rng.choice(fitting) if fitting else None

    def divisor(self) -> int | None:
        """A divisor without remainder, or None."""
        fitting = [k for k in range(2, 10) if self.value % k == 0 and self.value > k]
        return self.rng.choice(fitting) if fitting else None

    def change(self) -> None:
        """Tell one event and take its step."""
        kind = self.rng.choice("++--*/")
        if kind == "*" and (factor := self.factor()):
            self.tell(TIMES, n=factor)
            self.step(self.value, "*", factor)
        elif kind == "/" and (divisor := self.divisor()):
            self.tell(SHARES, n=divisor)
            self.step(self.value, "/", divisor)
        elif kind == "-" and self.value > 3:
            loss = self.rng.randint(2, min(99, self.value - 1))
            self.tell(SUBTRACTS, n=loss)
            self.step(self.value, "-", loss)
        else:
            gain = self.rng.randint(2, min(99, LARGEST - self.value))
            self.tell(ADDS, n=gain)
            self.step(self.value, "+", gain)


def _start(story: _Story, room: int) -> None:
    rng = story.rng
    if room >= 1 and rng.random() < 0.3:
        count, each = rng.randint(2, 9), rng.randint(2, 40)
        story.tell(CRATES, a=count, n=each)
        story.step(count, "*", each)
    else:
        story.value = rng.randint(4, 99)
        story.tell(STARTS, n=story.value)


def _finish(story: _Story, ending: str) -> None:
    rng, own = story.rng, story.value
    if ending == "more":
        extra = rng.randint(2, 60)
        story.tell((MORE,), n=extra)
        story.step(own, "+", extra)
        story.step(own, "+", story.value)
    elif ending == "as many":
        factor = rng.randint(2, 4)
        story.tell((AS_MANY,), n=factor)
        story.step(own, "*", factor)
        story.step(own, "+", story.value)
    elif ending == "price":
        price = rng.randint(2, 9)
        story.tell(PRICES, n=price)
        story.step(own, "*", price)
    else:
        story.tell(ASKS)


_ENDINGS = {"plain": 0, "price": 1, "more": 2, "as many": 2}


def make_problem(rng: random.Random, level: int) -> Problem:
    """One problem of ``level`` operations (1 to 6), drawn with ``rng``."""
    if not 1 <= level <= MAX_LEVEL:
        raise ValueError(f"arithmetic problems have levels 1 to {MAX_LEVEL}, not {level}")
    while True:
        story = _Story(rng)
        ending = rng.choice([name for name, steps in _ENDINGS.items() if steps <= level])
        room = level - _ENDINGS[ending]
        _start(story, room)
        while len(story.steps) < room:
            story.change()
        if story.value * {"price": 9, "as many": 5}.get(ending, 1) > 500 or story.value > 400:
            continue  # the last step's product would grow too large: tell another story
        _finish(story, ending)
        return Problem(
            question=" ".join(story.sentences),
            solution="\n".join([*story.steps, f"#### {story.value}"]),
            answer=story.value,
            level=level,
        )


def problems(split: Split, seed: int, levels: tuple[int, ...]) -> Iterator[Problem]:
    """An endless stream of problems of one split; the same arguments give the same stream."""
    rng = random.Random(f"{split}/{seed}/{levels}")
    while True:
        problem = make_problem(rng, rng.choice(levels))
        if problem.held_out == (split == "test"):
            yield problem


def vocabulary() -> list[str]:
    """Every word, digit and sign that a problem or its solution can contain, sorted."""
    pieces: set[str] = {"Question", "Answer"}
    for group in (STARTS, CRATES, ADDS, SUBTRACTS, TIMES, SHARES, ASKS, PRICES, (MORE, AS_MANY)):
        for template in group:
            text = template.format(name="", he="", other="", items="", boxes="", n="", a="")
            pieces.update("".join(c if c.isalpha() else " " for c in text).split())
    pieces.update(name for name, _ in PEOPLE)
    pieces.update(("he", "she", *OTHERS, *ITEMS, *BOXES))
    return sorted(pieces)
