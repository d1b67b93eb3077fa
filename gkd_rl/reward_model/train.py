"""``gkd-rl reward-model``: a model that scores answers, trained on preference pairs by TRL, and how far it can be trusted."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gkd_rl.config.load import config_to_yaml
from gkd_rl.config.reward_model import RewardModelConfig, reward_model_complaints
from gkd_rl.console import Terminal
from gkd_rl.errors import UserError
from gkd_rl.reward_model.pairs import Answer, Pair, TokenPair, read_pairs
from gkd_rl.run_folder import RunFolder, environment


def train_reward_model(config: RewardModelConfig) -> dict[str, Any]:
    """Train, judge the held-out pairs, and write ``RUN_DIR/model`` and ``RUN_DIR/report.json``, whose content is returned.

    The loss of a pair is −log σ(r_chosen − r_rejected − margin) + c·(r_chosen + r_rejected)². Raises ``UserError`` for what a user can
    mend.
    """
    for complaint in reward_model_complaints(config):
        raise UserError(complaint)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("reward-model trains in one process; start it without a launcher")
    if importlib.util.find_spec("trl") is None:
        raise UserError("reward-model trains by TRL, which is not installed; install it with: pip install 'gkd-rl[reward-model]'")
    started, terminal, folder = time.perf_counter(), Terminal(), RunFolder(Path(config.run_dir))
    folder.open(config.resume)
    try:
        try:
            train, held_out = read_pairs(config.preferences, config.data_dir, config.seed)
            from gkd_rl.reward_model.fitting import Scorer, fit  # torch and TRL: after the data is known to be there

            scorer = Scorer(config, train)
            tokens, dropped = _tokens(config, scorer, train)
            judged, judged_dropped = _tokens(config, scorer, held_out)
        except BaseException:
            folder.abandon()
            raise
        if note := folder.begin(config.resume):
            terminal.say(note)
        folder.write("config.yaml", config_to_yaml(config))
        folder.write("environment.json", json.dumps(environment(), indent=2))
        terminal.say(f"{len(tokens)} training pairs, {len(judged)} held out, {scorer.parameters:,} parameters")
        loss = fit(config, scorer, tokens, Path(config.run_dir), terminal)
        scorer.save(Path(config.run_dir) / "model")
        report = {
            "model": str(Path(config.run_dir) / "model"),
            "parameters": scorer.parameters,
            "training_pairs": len(tokens),
            "held_out_pairs": len(judged),
            "dropped_pairs": dropped + judged_dropped,
            "training_loss": loss,
            **_judge(scorer, judged),
            "seconds": time.perf_counter() - started,
        }
        folder.write("report.json", json.dumps(report, indent=2))
        _show(config, report, terminal)
        return report
    finally:
        folder.close()


def _tokens(config: RewardModelConfig, scorer: Any, pairs: Sequence[Pair]) -> tuple[list[TokenPair], int]:
    """Pairs whose texts are short enough, and how many were dropped."""
    kept: list[TokenPair] = []
    for pair in pairs:
        ids = [scorer.tokens(answer, pair.where) for answer in (pair.chosen, pair.rejected)]
        if max(map(len, ids)) <= config.max_length:
            lengths = (_length(pair.chosen), _length(pair.rejected))
            kept.append(TokenPair(ids[0], ids[1], pair.margin, lengths))
    if not kept:
        raise UserError(f"max_length={config.max_length} leaves no pair; raise it, or set long_texts=cut")
    return kept, len(pairs) - len(kept)


def _length(answer: Answer) -> int:
    from reward_models.text import completion_text

    return len(completion_text(answer.completion))


def _judge(scorer: Any, pairs: Sequence[TokenPair]) -> dict[str, Any]:
    from reward_models.preferences import preference_report

    scores = scorer.scores([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
    chosen, rejected = scores[: len(pairs)], scores[len(pairs) :]
    mean = math.fsum(scores) / len(scores)
    spread = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    lengths = zip(*(pair.lengths for pair in pairs), strict=True)
    return {**preference_report(chosen, rejected, *map(list, lengths)).to_json(), "reward_mean": mean, "reward_deviation": spread}


def _show(config: RewardModelConfig, report: dict[str, Any], terminal: Terminal) -> None:
    def share(value: dict[str, Any]) -> str:
        return f"{value['share']:.3f} ({value['low']:.3f} to {value['high']:.3f}), {value['count']} pairs" if value["count"] else "no pairs"

    correlation = report["length_correlation"]
    rows = [
        ("held-out accuracy (95% interval)", share(report["accuracy"])),
        ("  where the chosen is shorter", share(report["chosen_shorter"])),
        ("  where the chosen is longer", share(report["chosen_longer"])),
        ("log loss (chance: 0.693)", f"{report['log_loss']:.3f}"),
        ("calibration error", f"{report['calibration_error']:.3f}"),
        ("correlation of reward and length", "–" if correlation is None else f"{correlation:.2f}"),
        ("mean and deviation of rewards", f"{report['reward_mean']:.2f}, {report['reward_deviation']:.2f}"),
        ("seconds", f"{report['seconds']:.0f}"),
    ]
    terminal.table(config.run_dir, ["", ""], rows)
    options = {"model": report["model"], "max_length": config.max_length, "template": config.preferences.template}
    entry = json.dumps([{"path": "reward_models.SequenceClassificationReward", "options": options}])
    terminal.say(f"to train with it: rewards={entry}")
