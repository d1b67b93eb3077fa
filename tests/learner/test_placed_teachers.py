"""Teachers in fewer bits, and teachers that wait elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from experiences import experience, own_logits, token_rows
from tiny_models import build, language_model, letters, save

from gkd_rl.config.run import TeacherConfig
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.objective.head import logits_of
from gkd_rl.processes import Processes
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.sampler import InProcessSampler
from gkd_rl.teacher.build import load_frozen
from gkd_rl.teacher.local import LocalTeacher

WIDE = {
    "llama:untied": {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32},
    "t5": {"d_model": 64, "d_ff": 64, "d_kv": 32},
}
HERE = torch.device("cpu", 0)
"""The device of all tensors by another name: models move to it and back."""


@pytest.mark.parametrize(("bits", "most"), [("8bit", 0.05), ("4bit", 1.0)])
@pytest.mark.parametrize("kind", WIDE)
def test_a_quantized_teacher_says_nearly_the_same(tmp_path: Path, kind: str, bits: str, most: float):
    tokenizer = letters(12)
    plain = build(kind, tokenizer, **WIDE[kind])
    with torch.no_grad():  # weights as large as the tests' other models have would drown 4 bits
        for parameter in plain.parameters():
            parameter.mul_(0.4)
    save(plain, tokenizer, tmp_path)
    whole, packed = (
        load_frozen(TeacherConfig(path=str(tmp_path), quantize=quantize), "teacher.path", Processes()) for quantize in ("none", bits)
    )
    assert packed.module.get_memory_footprint() < whole.module.get_memory_footprint()
    rollouts = experience(language_model("llama"), None, 4, 2).rollouts
    scores = LocalTeacher(packed, 100).score(rollouts)
    logprobs = logits_of(scores.hidden, scores.head).log_softmax(-1)
    gaps = []
    for row, (prompt, completion) in enumerate(token_rows(rollouts)):
        with torch.no_grad():
            own = own_logits(whole, prompt, completion).log_softmax(-1)
        gaps.append((own.exp() * (own - logprobs[row, : len(completion)])).sum(-1))
    gap = torch.cat(gaps).mean()
    assert 1e-7 < gap < most


class Watched(LocalTeacher):
    """A teacher whose model's moves are recorded."""

    def __init__(self, model: LanguageModel, moves: list[torch.device]) -> None:
        to = model.module.to
        model.module.to = lambda device: moves.append(device) or to(device)  # type: ignore[method-assign]
        super().__init__(model, 100, HERE)


def test_a_teacher_comes_to_the_device_to_score_and_leaves_it_again(monkeypatch: pytest.MonkeyPatch):
    rollouts = experience(language_model("llama"), None, 2, 2).rollouts
    moves: list[torch.device] = []
    away = Watched(language_model("llama", seed=1), moves)
    assert torch.equal(away.score(rollouts).hidden, LocalTeacher(language_model("llama", seed=1), 100).score(rollouts).hidden)
    assert moves == [HERE, torch.device("cpu")]
    moves.clear()
    monkeypatch.setattr(away.model, "completion_hidden", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        away.score(rollouts)
    assert moves == [HERE, torch.device("cpu")]
    moves.clear()
    InProcessSampler(away.model, 4, HERE).sample([], 1, SamplingParams(2), 0)
    assert moves == [HERE, torch.device("cpu")]
