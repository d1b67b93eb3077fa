"""This process among the others: ranks, what they tell each other, and how they end together.

With ``engine.py`` the only place that knows ranks. Accelerate's DeepSpeed plugin does not distribute on CPUs; the process group is
made here, and DeepSpeed called directly.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gkd_rl.errors import UserError
from reward_models.errors import InputError, RewardError

Result = TypeVar("Result")


def quiet_libraries() -> None:
    """Keep libraries' notices from users who can do nothing about them."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for library in ("torch.distributed", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module=r"(torch|deepspeed|transformers|accelerate)\b.*")


GRACE = 5.0
"""Seconds in which the ranks that are left have to show themselves after one was lost."""

BROKEN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "timed out", "Connection refused")
"""What errors of gloo and NCCL say where another process is gone or hangs."""


def require_ranks(environment: Mapping[str, str]) -> None:
    """Raise ``UserError`` for a process of several, or meant to be, that was not told its rank: each would train by itself.

    ``accelerate launch --cpu`` starts one process whatever ``--num_processes`` says; ``mpirun`` and ``srun`` name ranks in variables of
    their own.
    """
    if "WORLD_SIZE" in environment:
        return
    if environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_ADDR" in environment:
        raise UserError(
            "accelerate launch --cpu started one process in the place of several; leave --cpu out and give --multi_gpu, which also starts "
            "them where there is no GPU, or start with torchrun"
        )
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        if int(environment.get(name) or 1) > 1:
            raise UserError(
                f"this is one of {name}={environment[name]} processes but RANK and WORLD_SIZE are not set; start one torchrun per host "
                "(docs/scaling.md), which sets them"
            )


class Processes:
    """This process among the others: its rank, their number, its device. Started before anything is loaded."""

    def __init__(self, threads: int = 0, timeout: float = 1800.0) -> None:
        """``threads`` of torch (0: its default); ``timeout``: seconds after which a rank that does not answer is given up."""
        quiet_libraries()
        require_ranks(os.environ)
        if threads:
            torch.set_num_threads(threads)
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        os.environ.setdefault("LOCAL_RANK", str(local))  # DeepSpeed asks for it even where it is alone
        if not dist.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            store = dist.HashStore() if self.count == 1 else None  # pyright: ignore[reportPrivateImportUsage]
            limit = timedelta(seconds=timeout)
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.count, timeout=limit)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This rank's contiguous part of ``items``."""
        start, end = (len(items) * r // self.count for r in (self.rank, self.rank + 1))
        return list(items[start:end])

    def sum(self, values: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Sums over all ranks by name, in float64; a name that a rank does not have (it had no rows) counts as 0 there."""
        names = list(dict.fromkeys(name for part in self.gather(list(values)) for name in part))
        if not names:
            return {}
        tensor = torch.tensor([float(values.get(name, 0.0)) for name in names], dtype=torch.float64)
        return dict(zip(names, self._reduce(tensor, dist.ReduceOp.SUM), strict=True))

    def largest(self, value: float) -> float:
        """The largest value of any rank."""
        return self._reduce(torch.tensor([value], dtype=torch.float64), dist.ReduceOp.MAX)[0]

    def gather(self, item: Any) -> list[Any]:
        """The items of all ranks, in their order, on every rank."""
        if self.count == 1:
            return [item]
        items: list[Any] = [None] * self.count
        dist.all_gather_object(items, item)
        return items

    def together(self, work: Callable[[], Result]) -> Result:
        """What ``work`` gives. Where it fails on any rank, all ranks end with that failure instead of waiting for ever for that rank.

        Collectives within ``work`` must be over before anything in it can fail. Raises what ``work`` raised where this process is alone;
        else ``UserError`` with the first failure and its rank, but for the ranks that failed in a way that no user can mend: they raise
        their own.
        """
        if self.count == 1:
            return work()
        try:
            outcome, failure = work(), None
        except Exception as error:
            outcome, failure = None, error
        if not self.largest(float(failure is not None)):
            return outcome  # pyright: ignore[reportReturnType]
        mendable = isinstance(failure, UserError | InputError | RewardError)
        said = self.gather(None if failure is None else str(failure) if mendable else f"{type(failure).__name__}: {failure}")
        if failure is not None and not mendable:
            raise failure
        rank, text = next((rank, text) for rank, text in enumerate(said) if text is not None)
        raise UserError(f"rank {rank}: {text}") from failure

    def close(self) -> None:
        """Wait for the others and leave the group: processes that vanish from it make gloo abort the rest.

        A process alone keeps its group, of which DeepSpeed keeps references: the next run in this process uses it again.
        """
        if self.count > 1:
            self.barrier()
            dist.destroy_process_group()

    def lost(self, error: BaseException) -> list[int]:
        """The ranks that no longer answer, where ``error`` comes from a broken connection; every rank that is left calls it.

        Each says in the store that all share that it is there, and waits ``GRACE`` seconds for the others to say so.
        """
        if self.count == 1 or not any(sign in str(error) for sign in BROKEN):
            return []
        store = dist.distributed_c10d._get_default_store()
        try:
            store.set(f"gkd-rl/alive/{self.rank}", "1")
            deadline, missing = time.monotonic() + GRACE, set(range(self.count))
            while missing and time.monotonic() < deadline:
                missing -= {rank for rank in missing if store.check([f"gkd-rl/alive/{rank}"])}
                time.sleep(0.1)
        except RuntimeError:  # the store went with the process that held it, which is the first
            return [0]
        return sorted(missing)

    def barrier(self) -> None:
        if self.count > 1:
            dist.barrier()

    def _reduce(self, tensor: Tensor, how: Any) -> list[float]:
        if self.count > 1:
            tensor = tensor.to(self.device)
            dist.all_reduce(tensor, op=how)
        return tensor.tolist()
