"""The objective against what others published, on the same tensors: torch.distributions, TRL's JSD and GRPO loss, Liger's JSD."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from token_batches import gradients, logits_batch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from gkd_rl.config.objective import ObjectiveConfig, SurrogateConfig
from gkd_rl.objective import fused_objective, token_divergence, unified_objective
from gkd_rl.types import GlobalCounts, TokenBatch

OBJECTIVES = pytest.mark.parametrize("objective", [unified_objective, fused_objective])
BETAS = pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])

LENGTHS = (3, 1, 4)
ROWS = torch.arange(3).repeat_interleave(torch.tensor(LENGTHS))
"""[N] the completion of each token"""


def logits(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kls_are_those_of_torch_distributions():
    student, teacher = logits(0, 3, 2, 7), logits(1, 3, 2, 7)
    p, q = Categorical(logits=student), Categorical(logits=teacher)
    torch.testing.assert_close(token_divergence(student, teacher, kind="forward_kl"), kl_divergence(q, p))
    torch.testing.assert_close(token_divergence(student, teacher, kind="reverse_kl"), kl_divergence(p, q))
    p, q = Categorical(logits=student / 0.6), Categorical(logits=teacher / 1.9)
    ours = token_divergence(student, teacher, kind="reverse_kl", temperature=0.6, teacher_temperature=1.9)
    torch.testing.assert_close(ours, kl_divergence(p, q))


@pytest.mark.parametrize("beta", [0.2, 0.5, 0.8])
def test_jsd_is_the_mixtures_entropy_less_the_mean_entropy(beta):
    """Another formula of the same quantity: H(βq + (1−β)p) − βH(q) − (1−β)H(p)."""
    student, teacher = logits(0, 5, 7), logits(1, 5, 7)
    p, q = Categorical(logits=student), Categorical(logits=teacher)
    mixture = Categorical(probs=beta * q.probs + (1 - beta) * p.probs)
    expected = mixture.entropy() - beta * q.entropy() - (1 - beta) * p.entropy()
    torch.testing.assert_close(token_divergence(student, teacher, beta=beta), expected)


@pytest.mark.parametrize("beta", [0.2, 0.5])
def test_jsd_changes_sides_with_its_weight(beta):
    student, teacher = logits(0, 5, 7), logits(1, 5, 7)
    swapped = token_divergence(teacher, student, beta=1 - beta)
    torch.testing.assert_close(token_divergence(student, teacher, beta=beta), swapped)
    assert ((token_divergence(teacher, student, beta=beta) - swapped).abs().max() < 1e-12) == (beta == 0.5)


@BETAS
def test_jsd_is_trls(beta):
    trl = pytest.importorskip("trl.experimental.gkd.gkd_trainer").GKDTrainer.generalized_jsd_loss
    student, teacher = logits(0, 2, 5, 7).requires_grad_(), logits(1, 2, 5, 7)
    labels = torch.tensor([[1, 2, 3, -100, -100], [4, 1, 2, 3, -100]])
    ours = token_divergence(student, teacher, beta=beta, temperature=1.3, mask=labels != -100).sum()
    theirs = trl(student, teacher, labels, beta=beta, temperature=1.3, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (ours, theirs)))


@OBJECTIVES
@BETAS
def test_pure_distillation_is_trls_loss_per_token(objective, beta):
    trl = pytest.importorskip("trl.experimental.gkd.gkd_trainer").GKDTrainer.generalized_jsd_loss
    student, teacher = logits(0, 6, 7).requires_grad_(), logits(1, 6, 7)
    config = ObjectiveConfig(alpha=1)
    config.divergence.beta = beta
    batch = logits_batch(student, torch.zeros(6, dtype=torch.int64), teacher)
    result, (found,) = gradients(objective, batch, config, GlobalCounts(0, 6, 0))
    theirs = trl(student[None], teacher[None], torch.ones(1, 6), beta=beta)
    torch.testing.assert_close(result.loss, theirs)
    torch.testing.assert_close(found, torch.autograd.grad(theirs, student)[0])


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_is_ligers(beta):
    liger = pytest.importorskip("liger_kernel.chunked_loss.jsd_loss").LigerFusedLinearJSDFunction
    student, teacher = logits(0, 6, 7), logits(1, 6, 7)
    theirs = liger.distillation_loss_fn(student, teacher, beta=beta)
    torch.testing.assert_close(token_divergence(student, teacher, beta=beta).sum(), theirs.sum())


def grpo_of_trl(batch: TokenBatch, **options) -> Tensor:
    """TRL's GRPO loss with the trainer's settings given; the model is replaced by the batch's log-probabilities and entropies."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    mask = torch.zeros(3, max(LENGTHS), dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = True

    def padded(values: Tensor) -> Tensor:
        return torch.zeros(mask.shape, dtype=values.dtype).masked_scatter(mask, values)

    lp = batch.student_hidden.log_softmax(-1)
    logprobs = padded(lp.gather(-1, batch.token_ids[:, None]).squeeze(-1))
    entropies = padded(-(lp.exp() * lp).sum(-1))
    settings = {
        "importance_sampling_level": "token",
        "loss_type": "dapo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "entropy_coef": 0.0,
        "_entropy_bonus_enabled": True,
        "use_adaptive_entropy": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "aux_loss_enabled": False,
        "current_gradient_accumulation_steps": 1,
        **options,
    }
    args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    accelerator = SimpleNamespace(num_processes=1, sync_gradients=False, gather=lambda x: x, reduce=lambda x, reduction: x)
    own = SimpleNamespace(
        **settings,
        args=args,
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, entropies, None),
    )
    ids = padded(batch.token_ids)
    first = torch.tensor([0, 3, 4])
    inputs = {
        "prompt_ids": ids[:, :0],
        "prompt_mask": mask[:, :0],
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": batch.advantages[first],
        "old_per_token_logps": padded(batch.old_logprobs),
        "num_items_in_batch": mask.sum(),
    }
    return trainer._compute_loss(own, own.model, inputs)


def grpo_batch() -> TokenBatch:
    """Three completions whose ratios go below and above the bounds, with advantages of both signs."""
    batch = logits_batch(
        logits(0, len(ROWS), 7).requires_grad_(),
        torch.tensor([0, 1, 2, 3, 4, 5, 6, 0]),
        advantages=torch.tensor([1.5, -0.5, -1.0], dtype=torch.float64)[ROWS],
        reward_weights=torch.ones(len(ROWS), dtype=torch.float64),
        sequence_index=ROWS,
    )
    ratios = torch.tensor([0.5, 1.5, 1.1, 0.6, 0.5, 1.6, 0.9, 1.3], dtype=torch.float64)
    old = batch.old_logprobs - ratios.log()
    return replace(batch, old_logprobs=old, sampler_logprobs=old)


@OBJECTIVES
@pytest.mark.parametrize(
    ("ours", "theirs", "by_sequence"),
    [
        (SurrogateConfig(), {}, False),
        (SurrogateConfig(entropy_weight=0.05), {"entropy_coef": 0.05}, False),
        (SurrogateConfig(clip_high=0.2, mean="sequence"), {"loss_type": "grpo", "epsilon_high": 0.2}, True),
        (
            SurrogateConfig("sequence", 0.1, 0.05),
            {"importance_sampling_level": "sequence", "epsilon_low": 0.1, "epsilon_high": 0.05},
            False,
        ),
        (SurrogateConfig("sequence", mean="sequence"), {"importance_sampling_level": "sequence", "loss_type": "grpo"}, True),
    ],
    ids=["token mean", "entropy bonus", "sequence mean", "sequence ratio", "sequence ratio and mean"],
)
def test_pure_rl_is_trls_grpo_loss(objective, ours, theirs, by_sequence):
    batch = grpo_batch()
    expected = grpo_of_trl(batch, **theirs)
    if by_sequence:
        batch = replace(batch, reward_weights=1 / torch.tensor(LENGTHS, dtype=torch.float64)[ROWS])
    result, (found,) = gradients(objective, batch, ObjectiveConfig(alpha=0, surrogate=ours), GlobalCounts(3 if by_sequence else 8, 0, 0))
    torch.testing.assert_close(result.loss, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found, torch.autograd.grad(expected, batch.student_hidden)[0], rtol=1e-6, atol=1e-8)
    assert found.abs().sum(-1).bool().any()


@OBJECTIVES
def test_reinforce_is_the_weighted_log_likelihood(objective):
    """RLOO's own loss on one pass: −A·log p, by its gradient."""
    batch = grpo_batch()
    config = ObjectiveConfig(alpha=0, surrogate=SurrogateConfig(ratio="none"))
    _, (found,) = gradients(objective, batch, config, GlobalCounts(8, 0, 0))
    plain = torch.nn.functional.cross_entropy(batch.student_hidden, batch.token_ids, reduction="none")
    expected = torch.autograd.grad((batch.advantages * plain).mean(), batch.student_hidden)[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
