"""Supervised fine-tuning, the student's initialisation: the same loop with dataset rows and their cross-entropy as the only term."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.config.run import Config, TeacherConfig, TeacherRoutingConfig
from gkd_rl.training import train


def sft(config: Config) -> dict[str, Any]:
    """Fine-tune the student on ``sft.examples`` completions of the task; the model goes to ``RUN_DIR/model``."""
    return train(sft_config(config))


def sft_config(config: Config) -> Config:
    """``config`` turned into its supervised form."""
    settings = config.sft
    return replace(
        config,
        max_steps=max(1, math.ceil(settings.epochs * settings.examples / settings.batch_size)),
        teacher=TeacherConfig(path=None),
        teachers={},
        teacher_routing=TeacherRoutingConfig(),
        task=replace(config.task, train_examples=settings.examples),
        rollout=replace(
            config.rollout,
            prompts_per_step=settings.batch_size,
            per_prompt=1,
            on_policy_share=0.0,
            first_batch=None,
            passes=1,
            updates_per_pass=1,
            max_staleness=0,
        ),
        objective=ObjectiveConfig(reward_weight=0.0, divergence_weight=0.0, cross_entropy_weight=1.0),
        optimizer=replace(config.optimizer, lr=settings.lr),
        log_rollouts_every=0,
    )
