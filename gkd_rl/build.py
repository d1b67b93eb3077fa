"""From a configuration to the parts of a run, checked in the order of their cost: words, files, tokenizers, then models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from gkd_rl.config.run import Config
from gkd_rl.config.validate import validate
from gkd_rl.console import PhaseTimes
from gkd_rl.engine import Engine
from gkd_rl.errors import UserError
from gkd_rl.evaluation.evaluate import Evaluator
from gkd_rl.evaluation.metrics import Answers, Metric, metric_functions
from gkd_rl.models.checkpointing import checkpoint_activations
from gkd_rl.models.language_model import LanguageModel, load_language_model
from gkd_rl.models.lora import has_lora
from gkd_rl.models.source import resolve
from gkd_rl.models.tokenizers import completion_tokens, load_tokenizer, prompt_tokens
from gkd_rl.models.trained import check_trained, mark_trained
from gkd_rl.objective.compiled import has_compiler
from gkd_rl.operators import require_operators
from gkd_rl.processes import Processes
from gkd_rl.rollout.ahead import CopySampler
from gkd_rl.rollout.calculator import require_marks
from gkd_rl.rollout.completions import TeacherCompletions
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.generate import GenerateSampler
from gkd_rl.rollout.sampler import InProcessSampler, Sampler
from gkd_rl.rollout.vllm import Backend, VllmSampler, require_vllm
from gkd_rl.rollout.vllm_engine import ColocatedVllm
from gkd_rl.rollout.vllm_server import VllmServer
from gkd_rl.scoring import make_rewards, score_texts
from gkd_rl.tasks.base import Task, make_task, metric_names, training_example
from gkd_rl.tasks.fitting import fit, uses_completions
from gkd_rl.teacher.build import Teaching, build_teaching, check_taught, check_teaching
from gkd_rl.teacher.local import LocalTeacher
from gkd_rl.types import Example
from reward_models.combine import WeightedSum


@dataclass
class Parts:
    """Everything a run is made of but the engine."""

    task: Task
    rewards: WeightedSum
    student: LanguageModel
    sampler: Sampler
    evaluation_sampler: Sampler
    """always of the student as it is"""
    teaching: Teaching
    reference: LocalTeacher | None
    evaluator: Evaluator
    held_out: list[Example]
    notes: tuple[str, ...] = ()
    """what is to be said of the data: rows left out or cut"""
    completions: TeacherCompletions | None = None
    """the teacher's completions of prompts, where off-policy rows carry them"""


def build_parts(config: Config, processes: Processes, student_path: str | None = None, where: str = "student.path") -> Parts:
    """Make every part; ``student_path`` is a model in the place of the configured student that is not trained.

    Raises ``UserError`` before a model is loaded if it can.
    """
    validate(config)
    if config.rollout.first_batch is not None and processes.count > 1:
        raise UserError(f"rollout.first_batch is for runs of one process, and there are {processes.count}; leave it out")
    if config.rollout.sampler == "vllm":
        require_vllm(config.rollout.vllm)
    if student_path is None:
        require_operators(config)
    path = student_path or config.student.path
    source = resolve(path, where)
    if student_path is None:
        check_trained(config.student, source, where)
    task = make_task(config)
    rewards, verifier = task_rewards(config, task)
    held_out = task.held_out(config.evaluation.examples)
    if not held_out or task.train_size == 0:
        raise UserError(f"task.path: {config.task.path} has no {'training' if held_out else 'held-out'} examples; give it some")
    metrics = metric_functions(metric_names(task) if config.evaluation.metrics is None else config.evaluation.metrics)
    try_metrics(metrics, held_out, config.evaluation.score)
    tokenizer = load_tokenizer(source, where, config.student.trust_remote_code)
    if config.rollout.calculator:
        require_marks(tokenizer, path)
    try_rewards(rewards, held_out, tokenizer)
    try_rewards(verifier, held_out, tokenizer)
    task = fit(task, config, tokenizer)
    held_out = task.held_out(config.evaluation.examples)
    if not held_out or task.train_size == 0:
        raise UserError(
            f"every {'training' if held_out else 'held-out'} row is over task.max_prompt_tokens={config.task.max_prompt_tokens}; raise it"
        )
    check_prompts(config, tokenizer, held_out, "held-out")
    check_taught(config, held_out)
    if task.train_size is not None:
        training = [training_example(task, i) for i in range(min(task.train_size, config.task.train_examples or task.train_size))]
        check_prompts(config, tokenizer, training, "training")
        check_taught(config, training)
        if uses_completions(config):
            for example in training:
                completion_tokens(tokenizer, example, config.rollout.max_new_tokens)
    if config.rollout.on_policy_schedule.kind == "adaptive":
        for example in held_out[: config.evaluation.during_examples]:
            completion_tokens(tokenizer, example, config.rollout.max_new_tokens)
    check_teaching(config, tokenizer)
    if config.rollout.compile and not has_compiler(processes.device):
        raise UserError("rollout.compile needs g++ and Python's headers (on a GPU: Triton), and they are not here; set it to false")
    backend = make_backend(config, processes) if config.rollout.sampler == "vllm" else None
    student = load_student(config, path, where, processes)
    check_context(config, student.module.config)
    if student_path is None:
        mark_trained(student.module, config.student, config.seed)
    adapted = student if has_lora(student.module) else None
    teaching = build_teaching(config, processes, tokenizer, adapted)
    sampler = make_sampler(config, processes, student, backend)
    return Parts(
        task=task,
        rewards=rewards,
        student=student,
        sampler=sampler,
        evaluation_sampler=InProcessSampler(student, config.rollout.sampling_rows) if config.rollout.overlap else sampler,
        teaching=teaching,
        reference=make_reference(config, processes, path, where, adapted),
        evaluator=Evaluator(
            rewards,
            verifier,
            config.objective,
            processes,
            config.engine.micro_batch_tokens,
            config.rollout.max_new_tokens,
            config.evaluation.temperature,
            metrics,
            config.rollout.calculator,
        ),
        held_out=held_out,
        notes=tuple(getattr(task, "notes", ())),
        completions=_completions(config, processes, student, teaching),
    )


def build_engine(config: Config, processes: Processes, model: LanguageModel, times: PhaseTimes) -> Engine:
    """DeepSpeed over ``model``, which is trained from here on."""
    head = model.module.get_output_embeddings()
    assert head is not None
    model.module.eval()  # dropout would make the policy that is trained another one than the policy that samples
    if config.engine.activation_checkpointing and not checkpoint_activations(model.module):
        raise UserError(f"engine.activation_checkpointing: {type(model.module).__name__} has no layers that can run again; set it to false")
    return Engine(model.module, head, processes, config.engine, config.optimizer, times)


def task_rewards(config: Config, task: Task) -> tuple[WeightedSum, WeightedSum]:
    """What is rewarded, and what decides whether an answer is right: the task's own rewards, where it has some."""
    own, caches = task.default_rewards(), Path(config.run_dir) / "reward-cache"
    rewards = make_rewards(own if config.rewards is None else config.rewards, caches)
    return rewards, rewards if config.rewards is None or not own else make_rewards(own, caches)


def try_rewards(rewards: WeightedSum, examples: list[Example], tokenizer) -> None:
    """Judge two examples' own completions, so that a reward that cannot work says so before a model is loaded."""
    few = examples[:2]
    texts = [e.completion or "" for e in few]
    columns = [{**e.columns, "completion_ids": tokenizer(text)["input_ids"]} for e, text in zip(few, texts, strict=True)]
    score_texts(rewards, [e.prompt for e in few], texts, columns)


def try_metrics(metrics: Sequence[Metric], examples: list[Example], score: str) -> None:
    """Have the metrics judge two examples' own completions, as evaluations of a run do: one sample for each prompt.

    Raises ``UserError`` where they lack something, and where ``score`` is none of their figures.
    """
    few = examples[:2]
    texts = [example.completion or "" for example in few]
    names = {name for example in few for name in example.columns}
    answers = Answers(texts, [[text] for text in texts], {name: [example.columns.get(name) for example in few] for name in names})
    known = ["accuracy", "reward", *(name for metric in metrics for name in metric(answers))]
    if score not in known:
        raise UserError(f"evaluation.score is '{score}', and evaluations of this run give {', '.join(known)}; name one of these")


def check_prompts(config: Config, tokenizer, examples: list[Example], kind: str) -> None:
    """Raise ``UserError`` for the first prompt that is empty or longer than ``task.max_prompt_tokens``."""
    for example in examples:
        length = len(prompt_tokens(tokenizer, example.prompt))
        if length == 0:
            raise UserError(f"the prompt of {kind} example {example.key} is empty; remove the row or give it text")
        if length > config.task.max_prompt_tokens:
            raise UserError(
                f"the prompt of {kind} example {example.key} has {length} tokens, over task.max_prompt_tokens="
                f"{config.task.max_prompt_tokens}; raise it, shorten or remove the row, or set task.long_prompts"
            )


def check_context(config: Config, model: PreTrainedConfig) -> None:
    """Raise ``UserError`` where prompt and answer may be longer than the student, of whose settings this is about, reads."""
    window = getattr(model, "max_position_embeddings", None)
    needed = config.task.max_prompt_tokens + config.rollout.max_new_tokens
    if window is not None and needed > window:
        raise UserError(
            f"task.max_prompt_tokens + rollout.max_new_tokens = {needed} but {config.student.path} reads at most {window} tokens; "
            "lower one of them"
        )


def load_student(config: Config, path: str, where: str, processes: Processes) -> LanguageModel:
    """The model at ``path``, loaded as ``config.student`` says, on this process's device."""
    model = load_language_model(path, where, config.student.dtype, config.student.trust_remote_code)
    model.module.to(processes.device)  # pyright: ignore[reportArgumentType]
    return model


def make_backend(config: Config, processes: Processes) -> Backend:
    """vLLM in this process (started with the first weights), or the server, which has to be there already."""
    settings, rows = config.rollout.vllm, config.rollout.sampling_rows
    max_tokens = config.task.max_prompt_tokens + config.rollout.max_new_tokens
    if settings.url is None:
        return ColocatedVllm(settings, processes, max_tokens, rows)
    folder = Path(settings.weights_dir) if settings.weights_dir else Path(config.run_dir) / "vllm-weights"
    return VllmServer(settings, folder, max_tokens, rows)


def make_sampler(config: Config, processes: Processes, student: LanguageModel, backend: Backend | None) -> Sampler:
    budget = 4 * config.engine.micro_batch_tokens
    if backend is not None:
        return VllmSampler(student, backend, processes, config.rollout.vllm.url is not None, budget)
    if config.rollout.sampler == "generate":
        return GenerateSampler(student, config.rollout.sampling_rows, budget)
    sampler = (CopySampler if config.rollout.overlap else InProcessSampler)(student, config.rollout.sampling_rows)
    if config.rollout.compile:
        sampler.model.compile_decoding()
    return sampler


def _completions(config: Config, processes: Processes, student: LanguageModel, teaching: Teaching) -> TeacherCompletions | None:
    rollout = config.rollout
    if rollout.completions == "dataset" or rollout.on_policy_share >= 1:
        return None
    assert teaching.model is not None, "validate asks for one"
    params = SamplingParams(rollout.max_new_tokens, temperature=rollout.completions_temperature, calculator=rollout.calculator)
    settings = {
        "teacher.path": config.teacher.path,
        "rollout.max_new_tokens": rollout.max_new_tokens,
        "rollout.completions_temperature": rollout.completions_temperature,
        "seed": config.seed,
        **({"rollout.calculator": True} if rollout.calculator else {}),
    }
    folder = Path(rollout.completions_dir or Path(config.run_dir) / "completions")
    sampler = InProcessSampler(teaching.model, rollout.sampling_rows, processes.device)
    return TeacherCompletions(student, sampler, params, config.seed, folder, settings, processes.rank)


def make_reference(config: Config, processes: Processes, path: str, where: str, adapted: LanguageModel | None) -> LocalTeacher | None:
    """The initial student, where the objective compares with it: what is under the adapter, or else a frozen copy."""
    if not (config.objective.surrogate.reference_kl_weight or config.objective.divergence.extrapolation != 1):
        return None
    if adapted is not None:
        return LocalTeacher(adapted, 4 * config.engine.micro_batch_tokens, under_adapter=True)
    model = load_student(config, path, where, processes)
    model.module.requires_grad_(False)
    return LocalTeacher(model, 4 * config.engine.micro_batch_tokens)
