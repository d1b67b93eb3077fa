"""The rewards run unchanged in TRL's own trainer, and rewards written for TRL run unchanged in a weighted sum."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.rewards.other_rewards import get_soft_overlong_punishment
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from reward_models import ArithmeticVerifier, WeightedSum, load_reward

WORDS = ["[PAD]", "[EOS]", "[UNK]", "####", *"0123456789", "what", "is"]


def _student() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]")
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    return LlamaForCausalLM(config), wrapped


def test_the_verifier_is_a_reward_of_trls_grpo_trainer(tmp_path: Path):
    model, tokenizer = _student()
    config = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = Dataset.from_list([{"prompt": "what is 7", "answer": "#### 7"}] * 4)
    verifier = ArithmeticVerifier(reference_field="answer", wrong=-1.0, no_answer=-2.0)
    trainer = GRPOTrainer(model, reward_funcs=[verifier], args=config, train_dataset=rows, processing_class=tokenizer)  # pyright: ignore
    trainer.train()
    logged = trainer.state.log_history[0]
    assert -2.0 <= logged["rewards/arithmetic/mean"] <= 1.0


@pytest.mark.parametrize(("length", "expected"), [(4, 1.0), (8, 0.5), (20, 0.0)])
def test_a_reward_of_trl_runs_in_a_weighted_sum(length: int, expected: float):
    overlong = get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=4)
    total = WeightedSum([("right", ArithmeticVerifier(), 1.0), ("length", overlong, 1.0)])
    assert total(["what is 7"], ["#### 7"], reference=["7"], completion_ids=[[3] * length]) == [expected]


def test_trls_own_rewards_are_named_by_their_path_and_run_on_chats():
    rewards = [(name, load_reward(f"trl.rewards.{name}"), 1.0) for name in ("think_format_reward", "accuracy_reward")]
    chats = [
        [{"role": "assistant", "content": text}] for text in (r"<think>so</think>\boxed{72}", r"\boxed{72}", r"<think>so</think>\boxed{71}")
    ]
    scored = WeightedSum(rewards).score(["p"] * 3, chats, solution=[r"\boxed{72}"] * 3)
    assert scored.components == {"think_format_reward": [1.0, 0.0, 1.0], "accuracy_reward": [1.0, 1.0, 0.0]}
