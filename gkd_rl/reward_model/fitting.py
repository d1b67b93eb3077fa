"""TRL's ``RewardTrainer`` over tokenized pairs, and the model that it trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from gkd_rl.config.reward_model import RewardModelConfig
from gkd_rl.console import Bar, Terminal
from gkd_rl.errors import UserError
from gkd_rl.reward_model.model import load_scorer
from gkd_rl.reward_model.pairs import Answer, Pair, TokenPair
from reward_models.template import RowTemplate


class Scorer:
    """The model with its tokenizer; texts become tokens as in ``reward_models.SequenceClassificationReward``."""

    def __init__(self, config: RewardModelConfig, train: Sequence[Pair]) -> None:
        transformers_logging.disable_progress_bar()
        self.template, self.config = RowTemplate(config.preferences.template), config
        answers = [answer for pair in train for answer in (pair.chosen, pair.rejected)]
        texts = {self.template.text(0, answer.prompt, answer.completion, {}) for answer in answers}
        self.model, self.tokenizer = load_scorer(config, sorted(texts))
        self.tokenizer.truncation_side = "right"

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def tokens(self, answer: Answer, where: str) -> list[int]:
        """Tokens of a prompt with its answer. Raises ``UserError`` where they are too many, if that is an error."""
        prompt, completion = answer.prompt, answer.completion
        chat = isinstance(prompt, list) and bool(self.tokenizer.chat_template)
        if isinstance(prompt, list) and self.tokenizer.chat_template:
            said = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
            text = self.tokenizer.apply_chat_template([*prompt, *said], tokenize=False)
        else:
            text = self.template.text(0, prompt, completion, {})
        limit = self.config.max_length
        cut = {"truncation": True, "max_length": limit} if self.config.long_texts == "cut" else {}
        ids = self.tokenizer(text, add_special_tokens=not chat, verbose=False, **cut)["input_ids"]
        if len(ids) > limit and self.config.long_texts == "error":
            raise UserError(f"{where}: a text has {len(ids)} tokens, over max_length={limit}; raise it, or set long_texts to drop or cut")
        return ids

    @torch.inference_mode()
    def scores(self, rows: Sequence[list[int]], batch_size: int = 64) -> list[float]:
        """The reward of each row; in batches of like length."""
        self.model.eval()
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found = [0.0] * len(rows)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            padded = self.tokenizer.pad({"input_ids": [rows[i] for i in batch]}, padding_side="right", return_tensors="pt")
            inputs = {name: padded[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
            for i, score in zip(batch, self.model(**inputs).logits[:, 0].float().tolist(), strict=True):
                found[i] = score
        return found

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in Hugging Face form."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class _Progress(TrainerCallback):
    """Each update moves the bar."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.loss = math.nan
        self.figures: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "loss" in logs:
            self.loss = logs["loss"]
            self.figures = {"loss": logs["loss"], "accuracy": logs.get("accuracy", math.nan)}
            if not math.isfinite(self.loss):
                raise UserError(f"the loss is {self.loss} after {state.global_step} updates; lower training.lr")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.advance(1, self.figures)


def fit(config: RewardModelConfig, scorer: Scorer, pairs: Sequence[TokenPair], folder: Path, terminal: Terminal) -> float:
    """Train ``scorer`` on ``pairs``; returns the last logged loss. Raises ``UserError`` where it is not finite."""
    training = config.training
    if training.threads:
        torch.set_num_threads(training.threads)
    steps = max(1, math.ceil(training.epochs * len(pairs) / training.batch_size))
    columns = {"chosen_ids": [pair.chosen for pair in pairs], "rejected_ids": [pair.rejected for pair in pairs]}
    if any(pair.margin for pair in pairs):
        columns["margin"] = [pair.margin for pair in pairs]  # pyright: ignore[reportArgumentType]
    disable_progress_bar()
    with warnings.catch_warnings(), terminal.bar("training", steps) as bar:
        warnings.simplefilter("ignore")  # of libraries about each other
        settings = _settings(config, steps, folder)
        progress = _Progress(bar)
        rows = Dataset.from_dict(columns)
        trainer = RewardTrainer(scorer.model, settings, train_dataset=rows, processing_class=scorer.tokenizer, callbacks=[progress])
        for printing in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printing)
        trainer.train()
    return progress.loss


def _settings(config: RewardModelConfig, steps: int, folder: Path) -> RewardConfig:
    training = config.training
    return RewardConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.lr,
        lr_scheduler_type=training.schedule,
        warmup_steps=round(training.warmup_share * steps),
        weight_decay=training.weight_decay,
        center_rewards_coefficient=training.center_rewards_coefficient or None,
        disable_dropout=not config.model.dropout,
        max_length=None,
        seed=config.seed,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=max(1, steps // 100),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
