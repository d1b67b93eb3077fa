"""What every rank does in the engine's tests: one launch trains, saves, restores and samples at every ZeRO stage."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from experiences import examples
from launching import ROOT
from tiny_models import language_model
from torch import Tensor

from gkd_rl import engine as engine_module
from gkd_rl.config.objective import AdvantageConfig, DivergenceConfig, ObjectiveConfig, SurrogateConfig
from gkd_rl.config.run import EngineConfig, OptimizerConfig
from gkd_rl.config.student import LoraConfig, StudentConfig
from gkd_rl.engine import Engine
from gkd_rl.learner import Learner, local_counts
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.models.lora import has_lora, merged
from gkd_rl.models.trained import mark_trained
from gkd_rl.objective.head import logits_of
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.processes import Processes
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.rescoring import policy_logprobs
from gkd_rl.rollout.rows import micro_batches, take_experience
from gkd_rl.rollout.sampler import InProcessSampler
from gkd_rl.scoring import global_advantages
from gkd_rl.teacher.local import LocalTeacher
from gkd_rl.types import Experience, GlobalCounts

KINDS = ("llama", "t5", "llama:lora", "t5:frozen")
STAGES = (0, 1, 2, 3)
WEIGHTS = TermWeights(0.6, 0.4, 0.2)
TOKEN_BUDGET = 40
RATES = (0.02, 0.03, 0.01)
CUTS: dict[int, tuple[tuple[tuple[int, ...], ...], ...]] = {
    1: ((tuple(range(10)),),) * 3,
    2: (
        ((0, 1, 2, 3, 4, 5, 8, 9), (6, 7)),
        (tuple(range(10)), ()),
        ((0,), tuple(range(1, 10))),
    ),
    4: (
        ((0, 1, 2, 3, 4), (8,), (), (5, 6, 7, 9)),
        ((), (3,), (0, 1, 2, 4, 5, 6, 7), (8, 9)),
        ((9, 0), (), (), (1, 2, 3, 4, 5, 6, 7, 8)),
    ),
}
"""By number of ranks, the rows of each in each update: unequal numbers, none, and dataset rows (8 and 9) on some ranks only."""
TRAINED = {
    "llama:lora": StudentConfig(lora=LoraConfig(rank=3, alpha=6.0, targets=["q_proj", "v_proj", "down_proj"])),
    "t5:frozen": StudentConfig(freeze=["shared.*", "lm_head.*", "encoder.block.0.*"]),
}
"""What of a student is trained, where that is not everything; both have a frozen head."""
OBJECTIVES = {
    "llama": ObjectiveConfig(),
    "t5": ObjectiveConfig(divergence=DivergenceConfig(mean="sequence"), surrogate=SurrogateConfig(mean="sequence")),
}
OPTIMIZERS = {
    "llama": OptimizerConfig(eps=1e-3, weight_decay=0.1, max_grad_norm=0.25),
    "t5": OptimizerConfig(eps=1e-3, weight_decay=0.1, max_grad_norm=0.0),
}
"""A large eps, because AdamW turns rounding of vanishing gradients into whole steps otherwise."""


def family(kind: str) -> str:
    """The kind of model, whatever of it is trained."""
    return kind.split(":")[0]


def student(kind: str, seed: int = 0) -> LanguageModel:
    """The model that is trained; the causal one's vocabulary is padded beyond the tokenizer's.

    Of a student that is trained in part, ``seed`` draws these parts alone: the rest is not in its checkpoints.
    """
    size = {"vocab_size": 16} if family(kind) == "llama" else {}
    if kind not in TRAINED:
        return language_model(kind, seed=seed, **size)
    model, other = language_model(family(kind), **size), language_model(family(kind), seed=seed, **size)
    mark_trained(model.module, TRAINED[kind], seed)
    generator = torch.Generator().manual_seed(seed)
    theirs = dict(other.module.named_parameters())
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if parameter.requires_grad:
                new = theirs[name] if name in theirs else torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(new)
    return model


def everything(experiences: dict[str, Experience], folder: str) -> dict[str, Any]:
    """All figures of this rank."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from collective_traffic import Traffic

    traffic = Traffic()
    traffic.watch()  # before DeepSpeed takes hold of torch's collectives
    processes = Processes(threads=1)
    _shard_small_parameters_too()
    found: dict[Any, Any] = {"processes": _sums(processes)}
    for kind in KINDS:
        for stage in STAGES:
            place = Path(folder) / f"{kind}-{stage}-{processes.count}"
            found[kind, stage] = _train(kind, stage, experiences[kind], processes, place)
    for stage in STAGES:
        found["bfloat16", stage] = _first_change("llama", stage, experiences["llama"], processes, torch.bfloat16)
    found["sent"] = _sent(experiences["llama"], processes, traffic)
    processes.close()
    return found


def updates(experiences: dict[str, Experience], folder: str) -> dict[Any, Any]:
    """The figures of this rank's updates alone, of students that are trained whole."""
    processes = Processes(threads=1)
    _shard_small_parameters_too()
    found = {
        (kind, stage): _train(kind, stage, experiences[kind], processes, Path(folder) / f"{kind}-{stage}")
        for kind in OBJECTIVES
        for stage in STAGES
    }
    processes.close()
    return found


def _train(kind: str, stage: int, experience: Experience, processes: Processes, place: Path) -> dict[str, Any]:
    model = student(kind)
    base = LocalTeacher(model, TOKEN_BUDGET, under_adapter=True) if has_lora(model.module) else None
    engine = _engine(model, kind, stage, processes)
    texts = _sample_alone(engine, model)
    norms, parameters = [], []
    for number in range(len(RATES)):
        if number == 2:
            engine.save(place)
            away = _send_states_away(engine)
        norms.append(_update(engine, model, kind, experience, number))
        parameters.append(_parameters(engine, model))
    other = student(kind, seed=7)
    restored = _engine(other, kind, stage, processes)
    restored.load(place)
    norm = _update(restored, other, kind, experience, 2)
    return {
        "norms": norms,
        "parameters": parameters,
        "restored": (norm, _parameters(restored, other)),
        "texts": texts,
        "parameter_count": (model.parameters, model.trained_parameters),
        "away": away,
        "checkpoint": _names_in(place),
        **({} if base is None else _under_and_merged(base, engine, experience)),
    }


def _sent(experience: Experience, processes: Processes, traffic: Any) -> list[float]:
    """What a rank sends in an update of one micro-batch at stages 0, 1 and 2, in sizes of the weights."""
    sizes = []
    for stage in (0, 1, 2):
        model = student("llama")
        engine = _engine(model, "llama", stage, processes)
        learner = Learner(model, OBJECTIVES["llama"], WEIGHTS)
        learner.counts = GlobalCounts(**processes.sum(local_counts([experience], learner.config)))
        traffic.sent.clear()
        engine.update([experience], learner.loss, RATES[0])
        sizes.append(traffic.sent.total() / (4 * model.parameters))
    return sizes


def _names_in(place: Path) -> set[str]:
    """Names of the model's weights in a checkpoint."""
    (file, *_) = [*place.glob("state/mp_rank_*"), *place.glob("state/zero_pp_rank_0_mp_rank_00_model_states.pt")]
    return {name.removeprefix("model.") for name in torch.load(file, weights_only=False)["module"]}


def _under_and_merged(base: LocalTeacher, engine: Engine, experience: Experience) -> dict[str, Tensor]:
    """Of the trained model: what is under its adapter (rank 1 asks about fewer rows), and its log-probabilities with both merged."""
    few = take_experience(experience, torch.arange(3 if engine.processes.rank else 10)).rollouts
    with engine.gathered():
        scores = base.score(few)
        with merged(base.model.module):
            logprobs = policy_logprobs(base.model, few, TOKEN_BUDGET)
    return {"base": logits_of(scores.hidden, scores.head), "merged": logprobs}


def _send_states_away(engine: Engine) -> tuple[bool, bool]:
    """Whether ZeRO's states were away within the context, and after it."""
    away = lambda: bool(getattr(engine.deepspeed.optimizer, "offloaded_states", None))
    with engine.states_away():
        inside = away()
    return inside, away()


def _first_change(kind: str, stage: int, experience: Experience, processes: Processes, dtype: torch.dtype) -> Tensor:
    """What the first update adds to the parameters of a model of another precision."""
    model = student(kind)
    model.module.to(dtype)  # pyright: ignore
    before = torch.cat([p.detach().float().flatten() for p in model.module.parameters()])
    engine = _engine(model, kind, stage, processes)
    _update(engine, model, kind, experience, 0)
    return _parameters(engine, model).float() - before


def _engine(model: LanguageModel, kind: str, stage: int, processes: Processes, **settings: Any) -> Engine:
    head = model.module.get_output_embeddings()
    assert head is not None
    config = EngineConfig(zero_stage=stage, **(settings or {"offload_while_scoring": stage < 3}))  # pyright: ignore
    return Engine(model.module, head, processes, config, OPTIMIZERS[family(kind)])


def _update(engine: Engine, model: LanguageModel, kind: str, experience: Experience, number: int) -> float:
    processes = engine.processes
    cuts = cut(experience, CUTS[processes.count][number][processes.rank])
    learner = Learner(model, OBJECTIVES[family(kind)], WEIGHTS)
    learner.counts = GlobalCounts(**processes.sum(local_counts(cuts, learner.config)))
    return engine.update(cuts, learner.loss, RATES[number]).norm


def cut(experience: Experience, rows: Sequence[int]) -> list[Experience]:
    """Micro-batches of some rows."""
    if not rows:
        return []
    return micro_batches(take_experience(experience, torch.tensor(rows)), TOKEN_BUDGET)


def _parameters(engine: Engine, model: LanguageModel) -> Tensor:
    with engine.gathered():
        return torch.cat([p.detach().flatten().clone() for p in model.module.parameters()])


def _sample_alone(engine: Engine, model: LanguageModel) -> list[str]:
    """Ranks decode different numbers of prompts to different lengths: rank 1 the last one only, shorter."""
    rank = engine.processes.rank
    mine = examples(5)[: 4 if engine.processes.count == 2 else 5] if rank == 0 else examples(5)[4:]
    with engine.gathered():
        sampler = InProcessSampler(model, max_rows=2)
        return list(sampler.sample(mine, 2, SamplingParams(3 if rank else 9), seed=1).texts)


def _sums(processes: Processes) -> dict[str, Any]:
    rank, count = processes.rank, processes.count
    mine = {"both": 1.5 + rank, "first": 4.0} if rank == 0 else {"second": 2.0, "both": 1.5 + rank}
    return {
        "sum": processes.sum(mine),
        "largest": processes.largest(float(rank)),
        "gather": processes.gather(f"rank {rank}"),
        "share": processes.share(list(range(5))),
        "rank": (rank, count),
        "advantages": _advantages(processes),
    }


def _advantages(processes: Processes) -> list[list[float]]:
    """Advantages of rewards 0, 1, 3 in one group and 5, 9 in another; the ranks hold other parts of the second group, or all of it."""
    rewards, group = torch.tensor([0.0, 1.0, 3.0, 5.0, 9.0]), torch.tensor([1, 1, 1, 2, 2])
    cuts = [slice(0, 5)] if processes.count == 1 else [slice(0, 4), slice(4, 5)]
    alone = [slice(0, 5), slice(5, 5)]
    return [
        global_advantages(rewards[rows], group[rows], AdvantageConfig(kind="dr_grpo"), processes).tolist()
        for rows in (cuts[processes.rank], alone[processes.rank])
    ]


def _shard_small_parameters_too() -> None:
    """ZeRO-3 leaves parameters of fewer than 100,000 elements whole, which would be all of a tiny model's."""
    settings_of = engine_module._deepspeed_config

    def with_sharding(*arguments: Any) -> dict[str, Any]:
        settings = settings_of(*arguments)
        return {**settings, "zero_optimization": {**settings["zero_optimization"], "stage3_param_persistence_threshold": 0}}

    engine_module._deepspeed_config = with_sharding


def plain_training(kind: str, experience: Experience) -> dict[str, Any]:
    """The same updates in plain PyTorch: one process, one batch, AdamW over what is trained."""
    model, settings = student(kind), OPTIMIZERS[family(kind)]
    parameters = [p for p in model.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
    )
    learner = Learner(model, OBJECTIVES[family(kind)], WEIGHTS, GlobalCounts(**local_counts([experience], OBJECTIVES[family(kind)])))
    norms, after = [], []
    for lr in RATES:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        learner.loss(experience).backward()
        limit = settings.max_grad_norm or float("inf")
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, limit)))
        optimizer.step()
        after.append(torch.cat([p.detach().flatten().clone() for p in model.module.parameters()]))
    return {"norms": norms, "parameters": after}
