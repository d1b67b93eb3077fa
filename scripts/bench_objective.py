"""Times the fused objective against TRL's kernels, Liger's, plain PyTorch and the matrix products alone; forward and backward.

    python scripts/bench_objective.py                     # 2,048 tokens, vocabulary 32,000, widths 256/512
    python scripts/bench_objective.py --vocabulary 152000 --json

Contenders are warmed up (compiled) and take turns, so that a machine's moods meet all of them; the best time of each counts. Extra
memory is the peak of the resident set (of torch's allocator, on a GPU) over what is there before the step, less the gradients that
the step returns, in a process of its own whose allocator gives freed memory back: what was in use at once.
Shapes: N tokens, V vocabulary, H hidden.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from gkd_rl.config.objective import DivergenceConfig, ObjectiveConfig, SurrogateConfig, TelemetryConfig
from gkd_rl.objective import fused_objective
from gkd_rl.types import GlobalCounts, Head, TokenBatch

Loss = Callable[["Problem"], Tensor]

SLOW_REPEATS = 2
"""Turns of other libraries' contenders."""

PRUDENT_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000", "MALLOC_TOP_PAD_": "0"}
"""glibc gives freed memory back at once; without this the peak holds the holes between blocks too."""


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    tokens: int = 2048
    vocabulary: int = 32_000
    student_width: int = 256
    teacher_width: int = 512
    dtype: str = "float32"
    device: str = "cpu"


class Problem:
    """Hidden states and heads of student and teacher, and what the reward's term needs."""

    def __init__(self, sizes: Sizes) -> None:
        generator = torch.Generator().manual_seed(0)
        made = {"device": sizes.device, "dtype": getattr(torch, sizes.dtype)}

        def normal(*shape: int) -> Tensor:
            return (torch.randn(*shape, generator=generator) * shape[-1] ** -0.25).to(**made)

        self.sizes = sizes
        self.hidden = normal(sizes.tokens, sizes.student_width).requires_grad_()
        self.weight = normal(sizes.vocabulary, sizes.student_width).requires_grad_()
        self.teacher_hidden = normal(sizes.tokens, sizes.teacher_width)
        self.teacher_weight = normal(sizes.vocabulary, sizes.teacher_width)
        self.ids = torch.randint(sizes.vocabulary, (sizes.tokens,), generator=generator).to(sizes.device)
        self.advantages = torch.randn(sizes.tokens, generator=generator).to(sizes.device)
        self.old_logprobs = torch.full_like(self.advantages, -10.0)

    def batch(self, reward: float, divergence: float) -> TokenBatch:
        """All tokens with these weights of the two terms."""
        ones = torch.ones_like(self.advantages)
        return TokenBatch(
            student_hidden=self.hidden,
            student_head=Head(self.weight),
            token_ids=self.ids,
            reward_weights=reward * ones,
            divergence_weights=divergence * ones,
            cross_entropy_weights=0 * ones,
            advantages=self.advantages,
            old_logprobs=self.old_logprobs,
            sampler_logprobs=self.old_logprobs,
            sequence_index=torch.arange(len(ones), device=ones.device) // 128,
            teacher_hidden=self.teacher_hidden,
            teacher_head=Head(self.teacher_weight),
        )


def ours(beta: float, reward: float = 0.0) -> Loss:
    """The fused objective: a divergence alone, or with the reward's term, entropy bonus and telemetry."""
    config = ObjectiveConfig(divergence=DivergenceConfig(beta=beta), telemetry=TelemetryConfig(8 if reward else 0))
    if reward:
        config = replace(config, surrogate=SurrogateConfig(entropy_weight=0.01))

    def loss(problem: Problem) -> Tensor:
        counts = GlobalCounts(problem.sizes.tokens, problem.sizes.tokens, 0)
        return fused_objective(problem.batch(reward, 1 - reward), config, counts).loss

    return loss


def trl(beta: float, reward: float = 0.0) -> Loss:
    """TRL's chunked divergence, and its chunked log-probabilities for a clipped surrogate and entropy."""

    def loss(problem: Problem) -> Tensor:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction

        p = problem
        divergence, _ = ChunkedDivergenceFunction.apply(p.hidden, p.weight, None, p.teacher_hidden, p.teacher_weight, None, beta)
        if not reward:
            return divergence.mean()
        logprobs, entropy, *_ = ChunkedLogProbFunction.apply(p.hidden, p.weight, None, p.ids, 1.0, 32_768, None, 1.0, ("entropy",))
        ratio = (logprobs - p.old_logprobs).exp()
        surrogate = torch.min(ratio * p.advantages, ratio.clamp(0.8, 1.28) * p.advantages)
        return (1 - reward) * divergence.mean() - reward * (surrogate.mean() + 0.01 * entropy.mean())

    return loss


def liger(problem: Problem) -> Tensor:
    """Liger's fused linear JSD(½), compiled as it is by default."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # pyright: ignore[reportMissingImports]

    p = problem
    jsd = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5)
    return jsd(p.hidden, p.weight, p.teacher_hidden, p.teacher_weight, p.ids)


def plain(problem: Problem) -> Tensor:
    """JSD(½) from whole matrices of log-probabilities."""
    lp = (problem.hidden @ problem.weight.T).float().log_softmax(-1)
    lq = (problem.teacher_hidden @ problem.teacher_weight.T).float().log_softmax(-1)
    lm = torch.logaddexp(lp, lq) - torch.log(torch.tensor(2.0))
    return ((lq.exp() * (lq - lm) + lp.exp() * (lp - lm)) / 2).sum(-1).mean()


class Products(torch.autograd.Function):
    """The four matrix products that any such objective needs, over whole matrices and with nothing in between."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:  # type: ignore[override]
        logits = hidden @ weight.T
        ctx.save_for_backward(hidden, weight, logits)
        return (teacher_hidden @ teacher_weight.T)[0, 0] + logits[0, 0]

    @staticmethod
    def backward(ctx, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, logits = ctx.saved_tensors
        return logits @ weight, logits.T @ hidden, None, None


def products(problem: Problem) -> Tensor:
    """The matrix products alone: the floor."""
    loss: Tensor = Products.apply(problem.hidden, problem.weight, problem.teacher_hidden, problem.teacher_weight)
    return loss


CONTENDERS: dict[str, Loss] = {
    "ours JSD": ours(0.5),
    "ours reverse KL": ours(1.0),
    "ours joint": ours(0.5, reward=0.5),
    "TRL JSD": trl(0.5),
    "TRL reverse KL": trl(1.0),
    "TRL joint": trl(0.5, reward=0.5),
    "Liger JSD": liger,
    "plain JSD": plain,
    "products": products,
}


@dataclass(frozen=True)
class Measurement:
    """Best time of a contender and its extra memory."""

    seconds: float
    extra_bytes: float


def step(loss: Loss, problem: Problem) -> None:
    """One forward and backward pass, leaving fresh gradients."""
    problem.hidden.grad = problem.weight.grad = None
    loss(problem).backward()
    if problem.sizes.device == "cuda":
        torch.cuda.synchronize()


def best_times(names: Sequence[str], sizes: Sizes, repeats: int) -> dict[str, float]:
    """Seconds of each contender's quickest step; those that do not run here are left out."""
    problem, best = Problem(sizes), {}
    for turn in range(repeats + 1):
        for name in names if turn == 0 else best:
            # Beside slow contenders the noise of a machine is small.
            if turn > SLOW_REPEATS and not name.startswith(("ours", "products")):
                continue
            start = time.perf_counter()
            try:
                step(CONTENDERS[name], problem)
            except (ImportError, RuntimeError, NotImplementedError) as error:
                print(f"{name} does not run here: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            best[name] = min(best.get(name, inf), time.perf_counter() - start if turn else inf)
    return best


def extra_memory(loss: Loss, problem: Problem) -> float:
    """Peak memory of one step in bytes, over inputs and the gradients that it returns."""
    step(loss, problem)
    problem.hidden.grad = problem.weight.grad = None
    gc.collect()
    gradients = problem.hidden.nbytes + problem.weight.nbytes
    if problem.sizes.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(loss, problem)
        return torch.cuda.max_memory_allocated() - before - gradients
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step(loss, problem)
    return resident("VmHWM") - before - gradients


def resident(field: str) -> float:
    """A figure of this process's status in bytes: ``VmRSS`` now, ``VmHWM`` at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith(field)).split()[1])


def memory_apart(name: str, sizes: Sizes) -> float:
    """``extra_memory`` in a process of its own."""
    order = [sys.executable, __file__, "--memory-of", name]
    for key, value in asdict(sizes).items():
        order += [f"--{key.replace('_', '-')}", str(value)]
    done = subprocess.run(order, capture_output=True, text=True, check=True, env=os.environ | PRUDENT_ALLOCATOR)
    return float(done.stdout.splitlines()[-1])


def ratios(found: dict[str, Measurement], sizes: Sizes) -> dict[str, float | None]:
    """The figures to reach (ours faster: larger ``*_vs_trl``, ``*_vs_liger``, ``*_vs_plain``, smaller others); None: not measured."""

    def quotient(one: str, other: str) -> float | None:
        first, second = found.get(one), found.get(other)
        return round(first.seconds / second.seconds, 3) if first and second else None

    jsd = found["ours JSD"]
    return {
        "jsd_vs_trl": quotient("TRL JSD", "ours JSD"),
        "reverse_kl_vs_trl": quotient("TRL reverse KL", "ours reverse KL"),
        "joint_vs_trl": quotient("TRL joint", "ours joint"),
        "jsd_vs_liger": quotient("Liger JSD", "ours JSD"),
        "jsd_vs_plain": quotient("plain JSD", "ours JSD"),
        "jsd_vs_floor": quotient("ours JSD", "products"),
        "joint_vs_divergence": quotient("ours joint", "ours JSD"),
        "extra_memory_share": round(jsd.extra_bytes / (4 * sizes.tokens * sizes.vocabulary), 4),
    }


def table(found: dict[str, Measurement], sizes: Sizes) -> str:
    """All measurements as text."""
    jsd, logits = found["ours JSD"], 4 * sizes.tokens * sizes.vocabulary
    lines = [f"{'':<16}{'seconds':>9}{'ours JSD = 1':>14}{'extra MiB':>11}{'of [N, V] fp32':>16}"]
    for name, result in found.items():
        times, extra = result.seconds / jsd.seconds, result.extra_bytes
        lines.append(f"{name:<16}{result.seconds:>9.3f}{times:>14.2f}{extra / 2**20:>11.1f}{extra / logits:>16.3f}")
    return "\n".join(lines)


def surroundings(sizes: Sizes) -> str:
    """Device and versions in one line."""
    device = torch.cuda.get_device_name() if sizes.device == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    versions = []
    for package in ("torch", "trl", "liger-kernel"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} absent")
    return f"{device}; {', '.join(versions)}; {sizes}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all contenders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, value in asdict(Sizes()).items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the best counts (default 5)")
    parser.add_argument("--json", action="store_true", help="print one object with the ratios, and nothing else, on stdout")
    parser.add_argument("--memory-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    repeats, as_json, memory_of = given.pop("repeats"), given.pop("json"), given.pop("memory_of")
    sizes = Sizes(**given)
    if memory_of:
        print(extra_memory(CONTENDERS[memory_of], Problem(sizes)))
        return
    times = best_times(list(CONTENDERS), sizes, repeats)
    found = {name: Measurement(seconds, memory_apart(name, sizes)) for name, seconds in times.items()}
    print(f"{surroundings(sizes)}\n{table(found, sizes)}", file=sys.stderr if as_json else sys.stdout)
    figures = ratios(found, sizes)
    print(json.dumps(figures) if as_json else "\n".join(f"{name:<22}{figure}" for name, figure in figures.items()))


if __name__ == "__main__":
    main()
