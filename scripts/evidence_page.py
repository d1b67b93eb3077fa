"""The page of ``evidence.py``: tables and pictures are made anew between their marks, what a person wrote round them stays."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from evidence_arms import ARMS, BY_NAME, LONG
from evidence_pictures import draw_curves, draw_frontier, draw_methods
from evidence_results import PHASES, Result, difference, interval, mean, of

TITLES = {
    "methods": "Methods at equal arithmetic",
    "frontier": "Reward against distillation",
    "share": "Share of the student's own answers",
    "divergence": "Divergences",
    "prompts": "Few prompts",
    "self": "A teacher of the student's own size",
    "long": "Five times the arithmetic",
}
CLAIMS = (
    ("the student's own answers to new problems teach more than known solutions (JSD)", "on_policy_gkd", "share_0"),
    ("to the same problems they do too", "gkd_1500_prompts", "share_0"),
    ("and were all problems solved, still", "on_policy_gkd", "share_0_unlimited"),
    ("half of the rows the student's own are better than none", "share_0.5_unlimited", "share_0_unlimited"),
    ("all are better than half", "on_policy_gkd", "share_0.5_unlimited"),
    ("on-policy GKD is better than supervised distillation", "on_policy_gkd", "supervised_kd"),
    ("on-policy GKD is better than SeqKD", "on_policy_gkd", "seqkd"),
    ("on-policy GKD is better than ImitKD", "on_policy_gkd", "imitkd"),
    (
        "on-policy GKD on 5% of the solved problems' prompts is better than supervised distillation on all of them",
        "gkd_75_prompts",
        "supervised_kd",
    ),
    ("reward beside the teacher is better than the teacher alone", "joint", "on_policy_gkd"),
    ("the teacher beside the reward is better than the reward alone", "joint", "alpha_0"),
    ("joint training is better than distilling first and rewarding then", "joint", "distil_then_rl"),
    ("the teacher on wrong answers alone is better than on all", "gated_joint", "joint"),
    ("a student surpasses a teacher of its own size", "self_gkd", "on_policy_gkd"),
    ("with the reward beside it, and five times the arithmetic, it does", "self_joint_long", "on_policy_gkd"),
    ("with five times the arithmetic, reward beside that teacher is better than that teacher alone", "self_joint_long", "self_gkd_long"),
    ("reward beside the teacher that is hardly ever wrong is better than it alone, then", "joint_long", "on_policy_gkd_long"),
    ("the teacher beside the reward is better than the reward alone, still", "joint_long", "alpha_0_long"),
)
"""Claim, and the methods of which the first should be more accurate than the second."""


def write_page(path: Path, results: Sequence[Result], teraflops: float) -> None:
    """Write or renew the page at ``path`` and its pictures below ``images`` beside it."""
    text = path.read_text(encoding="utf-8") if path.is_file() else skeleton()
    for name, content in parts(results, teraflops).items():
        text = renewed(text, name, content)
    images = path.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    for study, draw in PICTURES.items():
        if found := [result for arm in _arms(study) for result in of(results, arm)]:
            draw([*of(results, "student"), *of(results, "teacher"), *found], images / f"evidence-{study}.png")


PICTURES: dict[str, Callable[[Sequence[Result], Path], None]] = {
    "methods": draw_methods,
    "frontier": draw_frontier,
    "curves": draw_curves,
}


def parts(results: Sequence[Result], teraflops: float) -> dict[str, str]:
    """What belongs between the marks, by name."""
    tables = {study: table(results, [name for name in _arms(study) if of(results, name)]) for study in TITLES}
    return {"how": how(results, teraflops), "claims": claims(results), **tables, "temperatures": temperatures(results)}


def skeleton() -> str:
    """A page without a word of what came out."""
    blocks = ["# Evidence", block("how", ""), "## Claims", block("claims", "")]
    for study, title in TITLES.items():
        picture = [f"![{title}](images/evidence-{study}.png)"] if study in PICTURES else []
        blocks += [f"## {title}", *picture, block(study, ""), *([block("temperatures", "")] if study == "divergence" else [])]
    blocks += ["## Accuracy over arithmetic", "![accuracy over arithmetic](images/evidence-curves.png)"]
    return "\n\n".join(blocks) + "\n"


def block(name: str, content: str) -> str:
    return f"<!-- made: {name} -->\n\n{content}\n\n<!-- end -->" if content else f"<!-- made: {name} -->\n\n<!-- end -->"


def renewed(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between the marks of ``name``; as it was where it has no such marks."""
    return re.sub(rf"<!-- made: {name} -->.*?<!-- end -->", lambda _: block(name, content), text, flags=re.DOTALL)


def how(results: Sequence[Result], teraflops: float) -> str:
    """How much was run."""
    seeds = sorted({result.seed for result in results if result.seed is not None})
    runs = [result for result in results if result.seed is not None]
    missing = [f"`{arm.name}` ({len(of(results, arm.name))})" for arm in ARMS if len(of(results, arm.name)) < len(seeds)]
    text = (
        f"{len(runs)} runs with the seeds {', '.join(map(str, seeds))}, each of {teraflops:g} TFLOP of generation, teacher and student "
        f"(`..._long`: {LONG * teraflops:g}). "
        f"All figures of each run are in [evidence.csv](evidence.csv)."
    )
    return text + (f" Not with every seed: {', '.join(missing)}." if missing else "")


def table(results: Sequence[Result], names: Sequence[str]) -> str:
    """Methods by accuracy, below the student that they begin from and the teacher."""
    head = "accuracy (95% interval) | each seed | 3 operations | 4 operations | sampled | pass@4 | Self-BLEU | KL to teacher"
    lines = [f"| method | steps | TFLOP: {', '.join(PHASES)} | {head} |", "|---" * 11 + "|"]
    ordered = sorted(names, key=lambda name: -mean(of(results, name), "accuracy"))
    return "\n".join([*lines, *(_row(name, of(results, name)) for name in ("student", "teacher", *ordered) if of(results, name))])


def _row(name: str, runs: Sequence[Result]) -> str:
    low, high = interval(runs)
    trained = runs[0].seed is not None
    work = ", ".join(f"{mean(runs, phase):.2f}" for phase in PHASES) if trained else "–"
    steps = f"{mean(runs, 'steps'):.0f}" if trained else "–"
    seeds = " ".join(f"{run.accuracy:.3f}" for run in runs) if trained else "–"
    others = " | ".join(f"{mean(runs, figure):.3f}" for figure in ("harder", "longer", "sampled", "pass_at_4"))
    label = f"`{name}`" if trained else name
    last = f"{mean(runs, 'self_bleu'):.1f} | {mean(runs, 'reverse_kl'):.3f}"
    return f"| {label} | {steps} | {work} | {mean(runs, 'accuracy'):.3f} ({low:.3f} to {high:.3f}) | {seeds} | {others} | {last} |"


def temperatures(results: Sequence[Result]) -> str:
    """Accuracy and Self-BLEU of samples by divergence and temperature, means over seeds."""
    found = {name: [run for run in of(results, name) if run.temperatures] for name in ("student", *_arms("divergence"))}
    found = {name: runs for name, runs in found.items() if runs}
    if not found:
        return ""
    at = [point[0] for point in next(iter(found.values()))[0].temperatures]
    lines = [f"| method | greedy | {' | '.join(f'T {value:g}: accuracy, Self-BLEU' for value in at)} |", "|---" * (2 + len(at)) + "|"]
    for name, runs in found.items():
        middle = np.mean([run.temperatures for run in runs], axis=0)
        cells = [f"{mean(runs, 'accuracy'):.3f}", *(f"{accuracy:.3f}, {bleu:.1f}" for _, accuracy, bleu in middle)]
        lines.append(f"| {name if name == 'student' else f'`{name}`'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def claims(results: Sequence[Result]) -> str:
    """Each claim with the difference that it rests on."""
    lines = ["| claim | difference in accuracy (95% interval) | seeds | here |", "|---|---|---|---|"]
    for claim, one, other in CLAIMS:
        runs = of(results, one), of(results, other)
        if BY_NAME[one].needs == other:  # its teacher is one model, the other's first seed
            found = (runs[0], [_as_seed(run, pupil.seed) for pupil in runs[0] for run in runs[1] if run.seed == 0])
        else:
            found = runs
        pairs = len({run.seed for run in found[0]} & {run.seed for run in found[1]})
        if pairs:
            middle, low, high = difference(*found)
            verdict = "holds" if low > 0 else "the contrary" if high < 0 else "not shown"
            lines.append(f"| {claim}: `{one}` − `{other}` | {middle:+.3f} ({low:+.3f} to {high:+.3f}) | {pairs} | {verdict} |")
    return "\n".join(lines)


def _as_seed(run: Result, seed: int | None) -> Result:
    return Result(**{**{name: getattr(run, name) for name in run.__dataclass_fields__}, "seed": seed})


def _arms(study: str) -> Iterable[str]:
    """Names of a study's methods; the curves are those of the methods."""
    wanted = "methods" if study == "curves" else study
    return [name for name, arm in BY_NAME.items() if wanted in arm.studies]
