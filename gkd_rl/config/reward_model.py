"""Configuration of ``gkd-rl reward-model``: preferences, the model that learns them, and how."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class PreferencesConfig:
    """Where the preferences come from."""

    train: str = ""
    """JSONL, CSV, TSV or Parquet file, by its path or relative to ``data_dir``; ``ARCHIVE.tar.gz/MEMBER`` is read in place."""
    held_out: str | None = None
    """File of the held-out rows; null: ``held_out_share`` of the training rows."""
    held_out_share: float = 0.1
    """Share of the rows that is held out where no file is named; rows with the same prompt stay together."""
    kind: Literal["pairs", "scored"] = "pairs"
    """``pairs``: each row has a prompt, a chosen and a rejected answer; ``scored``: one answer with a number, of which pairs are made."""
    prompt_field: str | None = "prompt"
    """Field of the prompt, text or chat messages; null: there is none."""
    chosen_field: str = "chosen"
    """``pairs``: field of the better answer, text or chat messages."""
    rejected_field: str = "rejected"
    """``pairs``: field of the worse answer."""
    margin_field: str | None = None
    """``pairs``: field of the least difference of rewards that is asked for; null: none is."""
    completion_field: str = "completion"
    """``scored``: field of the answer."""
    score_field: str = "score"
    """``scored``: field of its number; higher is better."""
    min_gap: float = 0.0
    """``scored``: answers whose scores differ by less make no pair; equal ones never do."""
    across_prompts: bool = False
    """``scored``: answers to different prompts make pairs, where scores mean the same for all prompts."""
    pairs_per_row: int = 4
    """``scored``: training pairs that an answer is in at most. A held-out answer is in one at most: those pairs are independent."""
    score_margins: bool = False
    """``scored``: the difference of the scores is the margin."""
    template: str = "{prompt}{completion}"
    """Text of a row, where the tokenizer has no chat template or the prompt is text."""


@dataclass
class ScoringModelConfig:
    """The model with one output: a checkpoint, or one made from scratch."""

    path: str | None = None
    """Folder or hub name of the checkpoint to begin with; null: from scratch."""
    type: str = "modernbert"
    """From scratch: the architecture, as Transformers names it (``modernbert``, ``bert``, ``llama``, ...)."""
    config: dict[str, Any] = field(default_factory=dict)
    """From scratch: sizes, in the words of that architecture's configuration; by default a small model's."""
    vocabulary: int = 4000
    """From scratch: size of the byte-level BPE vocabulary that is learned from the training texts."""
    dropout: bool = False
    """Whether dropout works in training."""


@dataclass
class RewardTrainingConfig:
    """How it is trained, by TRL's ``RewardTrainer``."""

    epochs: float = 1.0
    """Passes over the training pairs."""
    batch_size: int = 32
    """Pairs of an update."""
    lr: float = 1e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the rate falls to 0."""
    warmup_share: float = 0.05
    """Share of the updates over which it rises."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    center_rewards_coefficient: float = 0.0
    """Weight of (reward of the chosen + reward of the rejected)², which keeps rewards near 0 (Eisenstein et al. 2023); 0: none."""
    threads: int = 0
    """CPU threads; 0: torch's default."""


@dataclass
class RewardModelConfig:
    """A reward model and its evidence."""

    run_dir: str = "runs/reward-model"
    """Folder that receives the model and the report."""
    resume: Literal["never", "new"] = "never"
    """``never``: refuse a folder that holds a run; ``new``: set it aside first."""
    seed: int = 0
    """Seed of pairs, order and initialisation."""
    data_dir: str | None = None
    """Folder of data files; by default the environment variable GKD_RL_DATA."""
    max_length: int = 512
    """Tokens of the longest text."""
    long_texts: Literal["error", "drop", "cut"] = "error"
    """What happens to longer ones: an error that names the row, the pair is left out and counted, or its end is cut."""
    preferences: PreferencesConfig = field(default_factory=PreferencesConfig)
    """Preference pairs."""
    model: ScoringModelConfig = field(default_factory=ScoringModelConfig)
    """The reward model."""
    training: RewardTrainingConfig = field(default_factory=RewardTrainingConfig)
    """Its training."""


def reward_model_complaints(config: RewardModelConfig) -> Iterator[str]:
    """What cannot work, one sentence each."""
    data, training = config.preferences, config.training
    if not data.train:
        yield "preferences.train names no file; set it to the file of preference pairs"
    if data.held_out is None and not 0 < data.held_out_share < 1:
        yield f"preferences.held_out_share is {data.held_out_share}; it must lie between 0 and 1, both excluded"
    if data.pairs_per_row < 1:
        yield f"preferences.pairs_per_row is {data.pairs_per_row}; it must be at least 1"
    if not 0 <= data.min_gap < math.inf:
        yield f"preferences.min_gap is {data.min_gap}; it must be a finite number of at least 0"
    if data.kind == "pairs" and data.score_margins:
        yield "preferences.score_margins is for kind=scored, and kind is pairs; name the field of margins in margin_field"
    if data.kind == "scored" and data.margin_field is not None:
        yield "preferences.margin_field is for kind=pairs, and kind is scored; set score_margins=true"
    if data.kind == "scored" and data.prompt_field is None and not data.across_prompts:
        yield "preferences.prompt_field is null, so that no two answers have the same prompt; set across_prompts=true"
    if config.max_length < 1:
        yield f"max_length is {config.max_length}; it must be at least 1"
    if config.model.vocabulary < 300:
        yield f"model.vocabulary is {config.model.vocabulary}; it must be at least 300, of which bytes take 256"
    for name in ("epochs", "lr", "batch_size"):
        if not 0 < getattr(training, name) < math.inf:
            yield f"training.{name} is {getattr(training, name)}; it must be above 0"
    for name in ("weight_decay", "center_rewards_coefficient", "threads"):
        if not 0 <= getattr(training, name) < math.inf:
            yield f"training.{name} is {getattr(training, name)}; it must be at least 0"
    if not 0 <= training.warmup_share <= 1:
        yield f"training.warmup_share is {training.warmup_share}; it must lie between 0 and 1"
