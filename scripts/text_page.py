"""From the runs of ``scripts/evidence_text.py`` to one CSV file, and from that to docs/evidence-text.md's tables and picture.

Every number of the tables is in the CSV file: a line for each model (``seed`` is its seed), and a line for each method (``seed`` is
``all``) with means over seeds, 95% intervals, and differences to on-policy GKD.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import text_results

Line = dict[str, str]
"""column → value as text; empty where there is none"""

PHASES = ("generation", "teacher", "student")
FIGURES = ("score", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "ntrex_bleu", "ntrex_chrf")
SAMPLED = ("reward", "self_bleu", "distinct_2", "reverse_kl", "length", "truncated")
RANGES = ("score_low", "score_high", "reward_low", "reward_high")
GAINS = tuple(f"{of}_{part}" for of in ("score_gain", "reward_gain") for part in ("mean", "low", "high"))
COLUMNS = ("task", "method", "seed", "rows", "steps", *PHASES, *FIGURES, *SAMPLED, *RANGES, *GAINS)

SINGLE = {"student-itself": "initial student", "teacher-itself": "teacher"}
COMPARED_WITH = "on_policy_gkd"
ORDER = ("initial student", "teacher", "sft", "supervised_kd", "on_policy_gkd", "joint_0.5", "joint_0.1", "reward")
BESIDE = {"reverse_kl": "KL to teacher", "self_bleu": "Self-BLEU", "distinct_2": "distinct-2", "length": "tokens", "truncated": "cut off"}
CURVE = ("on_policy_gkd", "joint_0.5", "joint_0.1", "reward")


def lines_of(folder: Path) -> list[Line]:
    """The lines of one task, from what its models and runs left in ``folder``."""
    found: dict[str, dict[str, tuple[text_results.Judged, Line]]] = {}
    for place in sorted(folder.glob("*/test.json")):
        method, _, seed = place.parent.name.partition("-seed-")
        judged = text_results.load(place)
        line = {"task": folder.name, "method": SINGLE.get(method, method), "seed": seed or "-", "rows": str(len(judged.reward))}
        line |= _numbers(judged.figures) | _work(place.parent / "run")
        if (other := place.with_name("ntrex.json")).is_file():
            line |= _numbers({f"ntrex_{name}": value for name, value in text_results.load(other).figures.items()})
        found.setdefault(line["method"], {})[line["seed"]] = judged, line
    draws = {method: text_results.bootstrap([judged for judged, _ in runs.values()]) for method, runs in found.items()}
    lines = []
    for method in sorted(found, key=ORDER.index):
        ours = [line for _, line in found[method].values()]
        lines += [*ours, _summary(ours, draws[method], draws.get(COMPARED_WITH))]
    return lines


def _summary(runs: Sequence[Line], draws, compared) -> Line:
    """Means of ``runs``, intervals from the bootstrap, and gains over the method that all are compared with."""
    line = {name: runs[0][name] for name in ("task", "method", "rows")} | {"seed": "all"}
    means = {name: _mean([run[name] for run in runs]) for name in COLUMNS[4:] if all(run.get(name) for run in runs)}
    line |= _numbers(means)
    for of, values, others in zip(("score", "reward"), draws, compared or (None, None), strict=True):
        low, high = text_results.interval(values)
        line |= _numbers({f"{of}_low": low, f"{of}_high": high})
        if others is not None and runs[0]["method"] != COMPARED_WITH:
            low, high = text_results.interval(values - others)
            line |= _numbers({f"{of}_gain_mean": float(np.mean(values - others)), f"{of}_gain_low": low, f"{of}_gain_high": high})
    return line


def _work(run: Path) -> Line:
    """Steps of a run, and the TFLOP that it counted by phase."""
    if not (run / "metrics.jsonl").is_file():
        return {}
    rows = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    counted = {phase: sum(float(row.get(f"flops_{phase}", 0.0)) for row in rows) / 1e12 for phase in PHASES}
    return {"steps": str(len(rows)), **_numbers(counted)}


def _numbers(values: dict[str, float]) -> Line:
    return {name: f"{value:.5g}" for name, value in values.items() if name in COLUMNS}


def _mean(values: Sequence[str]) -> float:
    return sum(map(float, values)) / len(values)


def write_table(lines: Sequence[Line], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: line.get(name, "") for name in COLUMNS} for line in lines)


def read_table(path: Path) -> list[Line]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(lines: Sequence[Line], page: Path) -> None:
    """Put each task's tables between its marks in ``page`` (made if it is not there), and draw the picture beside it."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    for task in dict.fromkeys(line["task"] for line in lines):
        begin, end = marks(task)
        if begin not in text:
            text += f"\n{begin}\n{end}\n"
        made = f"{begin}\n{tables([line for line in lines if line['task'] == task])}\n{end}"
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, made=made: made, text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")
    if lines:
        picture = page.parent / "images" / f"{page.stem}.png"
        picture.parent.mkdir(exist_ok=True)
        draw(lines, picture)


def marks(task: str) -> tuple[str, str]:
    """Comments of the page between which the tables of ``task`` stand."""
    return f"<!-- {task}: begin -->", f"<!-- {task}: end -->"


def tables(lines: Sequence[Line]) -> str:
    """Two tables of one task: quality by method, and what the answers are like and cost."""
    score, others = shown(lines)
    first = [["method", "runs", score, "95%", "by seed", *others.values(), "reward", "95%"]]
    second = [["method", f"over GKD: {score}", "over GKD: reward", *BESIDE.values(), "steps", "TFLOP"]]
    for line in (line for line in lines if line["seed"] == "all"):
        runs = [_text(run["score"], 2) for run in lines if run["method"] == line["method"] and run["seed"] != "all"]
        name = line["method"] if line["method"] in SINGLE.values() else f"`{line['method']}`"
        quality = [_text(line["score"], 2), _range(line, "score", 2), " ".join(runs), *(_text(line[other], 2) for other in others)]
        first.append([name, str(len(runs)), *quality, _text(line["reward"], 4), _range(line, "reward", 4)])
        gains = [f"{_text(line[f'{of}_mean'], n)} ({_range(line, of, n)})" for of, n in (("score_gain", 2), ("reward_gain", 4))]
        work = [_text(line["steps"], 0), ", ".join(_text(line[phase], 2) for phase in PHASES)] if line["steps"] else ["–", "–"]
        second.append([name, *(gains if line["score_gain_mean"] else ["–", "–"]), *(_text(line[one], 3) for one in BESIDE), *work])
    return f"{_table(first)}\n\n{_table(second)}"


def shown(lines: Sequence[Line]) -> tuple[str, dict[str, str]]:
    """What ``score`` is in a task's lines, and which figures of the greedy answers stand beside it, by column."""
    if any(line["rouge2"] for line in lines):
        return "ROUGE-2", {"rouge1": "ROUGE-1", "rougeL": "ROUGE-L"}
    return "chrF", {"bleu": "BLEU", "ntrex_chrf": "NTREX: chrF", "ntrex_bleu": "NTREX: BLEU"}


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _text(value: str, digits: int) -> str:
    return f"{float(value):.{digits}f}" if value else "–"


def _range(line: Line, of: str, digits: int) -> str:
    return f"{_text(line[f'{of}_low'], digits)} to {_text(line[f'{of}_high'], digits)}"


def draw(lines: Sequence[Line], path: Path) -> None:
    """Of each task the score against the mean reward: a point for each method with its intervals, and a line through the values of α."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(line["task"] for line in lines))
    figure, axes = plt.subplots(1, len(tasks), figsize=(5.5 * len(tasks), 4.2), layout="constrained", squeeze=False)
    for task, axis in zip(tasks, axes[0], strict=True):
        means = {line["method"]: line for line in lines if line["task"] == task and line["seed"] == "all"}
        score, _ = shown(list(means.values()))
        curve = [means[method] for method in CURVE if method in means]
        axis.plot([float(line["reward"]) for line in curve], [float(line["score"]) for line in curve], color="lightgrey", zorder=0)
        for line in means.values():
            x, y = float(line["reward"]), float(line["score"])
            bars = [[[at - float(line[f"{of}_low"])], [float(line[f"{of}_high"]) - at]] for of, at in (("reward", x), ("score", y))]
            bars = [[[max(0.0, side[0])] for side in bar] for bar in bars]
            axis.errorbar(x, y, xerr=bars[0], yerr=bars[1], fmt="o", markersize=4, linewidth=0.8, label=line["method"])
        axis.set(title=task, xlabel="mean reward of samples", ylabel=f"{score} of greedy answers")
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)
