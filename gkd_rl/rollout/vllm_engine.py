"""A vLLM engine inside the training process, its weights put in from memory."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from gkd_rl.config.run import VllmConfig
from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.processes import Processes
from gkd_rl.rollout.vllm import Answer, Request, checkpoint_weights

MEMORY_SHARE = 0.05
"""Share of the device's memory that has to be free at the start. The cache's size is given, so nothing else follows from it."""


class ColocatedVllm:
    """Starts with the first weights; each rank has an engine of its own."""

    def __init__(self, config: VllmConfig, processes: Processes, max_tokens: int, max_rows: int) -> None:
        if config.sleep and processes.device.type == "cpu":
            raise UserError("rollout.vllm.sleep gives GPU memory back and there is no GPU; set it to false")
        self.config = config
        self.processes = processes
        self.max_tokens = max_tokens
        """prompt and completion of one row together"""
        self.max_rows = max_rows
        self.llm: Any = None

    def deliver(self, model: LanguageModel, version: int) -> None:
        if self.llm is None:
            with _in_one_line("start with this student"):
                self.llm = self._start(model)
        elif self.config.sleep:
            self.llm.wake_up()
        with _in_one_line("take the student's weights"):
            weights = iter(checkpoint_weights(model.module).items())
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights, "is_checkpoint_format": True})
        emptied = self.llm.reset_prefix_cache()
        assert emptied, "no request is under way"
        if self.config.sleep:
            self.llm.sleep(level=1)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        if self.config.sleep:
            self.llm.wake_up()
        with self._own_random_numbers(), _in_one_line("sample"):
            outputs = self.llm.generate(
                [{"prompt_token_ids": request.prompt} for request in requests],
                [SamplingParams(**request.settings) for request in requests],
                use_tqdm=False,
            )
        if self.config.sleep:
            self.llm.sleep(level=1)
        return [_answer(output.outputs[0]) for output in outputs]

    def _own_random_numbers(self) -> AbstractContextManager[None]:
        """vLLM seeds the process's generator at its start and draws from it at every step, for rows with seeds of their own too."""
        return torch.random.fork_rng([self.processes.device] if self.processes.device.type == "cuda" else [])

    def _start(self, model: LanguageModel) -> Any:
        with tempfile.TemporaryDirectory() as folder, self._own_random_numbers(), _own_threads():
            _describe(model, Path(folder))
            from vllm import LLM  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

            return LLM(
                model=folder,
                load_format="dummy",
                dtype=str(model.module.dtype).removeprefix("torch."),
                max_model_len=self.max_tokens,
                max_num_seqs=self.max_rows,
                kv_cache_memory_bytes=int(self.config.kv_cache_gib * 2**30),
                gpu_memory_utilization=MEMORY_SHARE,
                enforce_eager=self.config.eager,
                enable_sleep_mode=self.config.sleep,
                logprobs_mode="processed_logprobs",
                generation_config="vllm",
                distributed_executor_backend="external_launcher" if self.processes.count > 1 else None,
                disable_log_stats=True,
            )


def _answer(completion: Any) -> Answer:
    tokens = list(completion.token_ids)
    logprobs = [step[token].logprob for step, token in zip(completion.logprobs, tokens, strict=True)]
    return Answer(tokens, logprobs, completion.finish_reason == "stop")


def _describe(model: LanguageModel, folder: Path) -> None:
    """Configuration and tokenizer in Hugging Face form; weights come from memory."""
    config = copy.deepcopy(model.module.config)
    config.architectures = [type(model.module).__name__]
    config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


@contextmanager
def _own_threads() -> Iterator[None]:
    """On CPUs vLLM's start pins the process's threads and disables ``torch.set_num_threads``: not for the trainer."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # an engine in another process could not take tensors from this one
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Errors of an unknown model, of memory, of a kernel each have a type of their own; what users get is the reason."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise UserError(f"rollout.sampler: vLLM could not {what}: {reason}; rollout.sampler=native or generate may") from error
