"""Answers per second that the arithmetic verifier grades on one core, by the form in which the answer is stated.

    python scripts/bench_verifier.py [--rows 20000] [--json]

Every row has a reference of its own, so that nothing is found in a cache. Times are processor time of this process: other work
on the machine does not count. The best of three rounds is shown.
"""

import argparse
import json
import platform
import random
import time

from rich.console import Console
from rich.table import Table

from reward_models import ArithmeticVerifier
from reward_models.answers import read_reference

STEPS = "Anna has {a} apples and buys {b} more, {a}+{b}={c} in all.\nThen she sells them for {d} dollars each, {c}*{d}={e}.\n"
FORMS = {
    "a bare number": "{e}",
    "solution, then ####": STEPS + "#### {e}",
    "solution, then a box": STEPS + "Thus she gets $\\boxed{{\\${e:,}}}$.",
    "solution, then a sentence": STEPS + "The answer is ${e:,}.",
    "solution, last number": STEPS + "So in the end she gets {e} dollars.",
}


def numbers(rows: int) -> list[dict[str, int]]:
    """Return seeded operands; the answers `e` all differ."""
    generator, found = random.Random(0), {}
    while len(found) < rows:
        a, b, d = generator.randint(10, 9999), generator.randint(10, 9999), generator.randint(2, 999)
        found[(a + b) * d] = {"a": a, "b": b, "c": a + b, "d": d, "e": (a + b) * d}
    return list(found.values())


def rows_per_second(verifier: ArithmeticVerifier, form: str, operands: list[dict[str, int]], rounds: int = 3) -> float:
    """Return rows graded per second of processor time, the best of several rounds; every row must be right."""
    completions = [form.format(**row) for row in operands]
    references = [str(row["e"]) for row in operands]
    prompts = [""] * len(operands)
    seconds = []
    for _ in range(rounds):
        read_reference.cache_clear()
        start = time.process_time()
        rewards = verifier(prompts=prompts, completions=completions, reference=references)
        seconds.append(time.process_time() - start)
        assert rewards == [1.0] * len(operands)
    return len(operands) / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of each form (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    operands = numbers(args.rows)
    plain = {name: rows_per_second(ArithmeticVerifier(), form, operands) for name, form in FORMS.items()}
    checked = rows_per_second(ArithmeticVerifier(check_steps=True), FORMS["solution, then ####"], operands)
    speeds = {**plain, "solution, then ####, steps checked": checked}
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    if args.json:
        print(json.dumps({"machine": machine, "rows": args.rows, "rows_per_second": speeds}))
        return
    table = Table("form", "answers/s on one core", title=f"Arithmetic verifier, {args.rows} rows of each form ({machine})")
    for name, speed in speeds.items():
        table.add_row(name, f"{speed:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
