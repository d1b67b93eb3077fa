"""Configuration of a run: everything but the objective, and the ``Config`` that holds it all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gkd_rl.config.objective import ObjectiveConfig, ScheduleConfig
from gkd_rl.config.student import DType, StudentConfig
from gkd_rl.config.tracking import TrackingConfig
from gkd_rl.config.watch import WatchConfig


@dataclass
class TeacherConfig:
    """The model whose distribution the divergence pulls towards."""

    kind: Literal["model", "student", "base", "ema"] = "model"
    """``model``: that of ``path`` or ``url``; ``student``: the student as it is at the start; ``base``: the same without a second copy
    of its weights, the model under the adapters of ``student.lora``; ``ema``: the moving average of the student's weights. The last
    three have no ``path``."""
    decay: float = 0.99
    """``ema``: share of the average that is kept at each step."""
    privileged: str | None = None
    """Template of the prompt that the teacher sees in the place of the student's, with ``{prompt}``, ``{completion}`` (the dataset's) and
    the names of columns, such as ``{reference}``; null: the student's own."""
    path: str | None = "embedded:arithmetic-teacher"
    """A folder or hub name; ``embedded:NAME`` as for the student; null: no teacher (then α must be 0). With ``url``: where the
    served model's tokenizer is, to compare it with the student's; null: do not compare."""
    parameters: float | None = None
    """Number of parameters to plan with (``gkd-rl train --dry-run``) where ``path`` is on a hub that cannot be reached."""
    other_tokenizer: bool = False
    """The teacher has another tokenizer than the student: it reads the answers as text, in tokens of its own, and the two are compared on
    spans of text that both can write. Without it such a teacher is refused."""
    dtype: DType = "float32"
    """Precision of weights and forward passes."""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """Weights in 8 or 4 bits (NF4) through bitsandbytes; the head keeps ``dtype``."""
    offload: bool = False
    """The weights wait in CPU memory while the student trains, and come to the device to score; the head stays there."""
    shard: bool = False
    """Each rank holds its share of the weights, and gathers each layer's to score (ZeRO-3); the head stays whole. Not evaluated itself."""
    trust_remote_code: bool = False
    """Whether a checkpoint may bring its own Python code."""
    top_k: int | None = None
    """Keep of each distribution the log-probabilities of the k likeliest tokens and of the sampled one; null: keep all of it, which
    a server cannot give."""
    draws: bool = False
    """The ``top_k`` tokens are drawn from the teacher's distribution, with replacement, in the place of the likeliest."""
    url: str | None = None
    """An OpenAI-compatible server, such as ``http://host:8000``; its ``/v1/completions`` is asked."""
    served_model: str | None = None
    """The model's name on the server."""
    protocol: Literal["prompt_logprobs", "echo"] = "prompt_logprobs"
    """How the server is asked for log-probabilities of given tokens: vLLM's ``prompt_logprobs``, or ``echo`` with ``logprobs``."""
    rows_per_request: int = 8
    """Rows in one request to the server."""
    concurrency: int = 8
    """Requests under way at once, per rank."""
    retries: int = 5
    """How often a request is repeated that fails or has a wrong answer."""
    retry_seconds: float = 0.5
    """Wait before the first repetition; doubled before each further one, to a minute at most."""
    timeout: float = 120.0
    """Seconds without an answer after which a request has failed."""
    api_key_env: str | None = None
    """Environment variable that holds the server's key; null: none is sent."""
    cache: str | None = None
    """Folder made by ``gkd-rl cache-teacher``: scores of dataset rows come from there, those of sampled rows from ``path`` or ``url``."""


@dataclass
class TeacherRoutingConfig:
    """Which of several ``teachers`` teaches a row."""

    column: str | None = None
    """Column of the data that names each row's teacher; null: all of them teach every row, as the mixture of their probabilities."""
    weights: dict[str, float] = field(default_factory=dict)
    """The mixture's weights by teacher; by default all alike."""


@dataclass
class TaskConfig:
    """Where prompts and references come from."""

    path: str = "gkd_rl.tasks.arithmetic.ArithmeticTask"
    """Dotted path of the task's class."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the task's class."""
    prompt_format: Literal["plain", "chat"] = "plain"
    """``plain``: the task's own template; ``chat``: the tokenizer's chat template."""
    train_examples: int = 0
    """Train on the first so many examples only, reshuffled in every epoch; 0: all that the task has."""
    max_prompt_tokens: int = 384
    """Longest prompt in tokens."""
    long_prompts: Literal["error", "drop", "truncate"] = "error"
    """What happens to a longer one: an error that names it; it is left out and counted; or the part of it that the task allows to be cut
    (a document) is cut at its end, and counted."""
    long_completions: Literal["error", "drop"] = "error"
    """What happens to a row whose completion, where it is learned from, has more than ``rollout.max_new_tokens`` tokens. Never cut."""


@dataclass
class RequirementConfig:
    """A reward that has to be high enough before another one is asked."""

    reward: str = ""
    """Name of the other reward."""
    at_least: float = 1.0
    """What it has to give; where it gives less, this reward is not asked and adds nothing."""


@dataclass
class RewardConfig:
    """One reward: a callable ``(prompts, completions, **columns) -> list[float | None]``."""

    path: str = "reward_models.ArithmeticVerifier"
    """Dotted path, or ``file.py:name``."""
    name: str | None = None
    """Name in metrics and stored rollouts; by default the last part of the path."""
    weight: Any = 1.0
    """Weight in the sum of rewards: a number, or ``{start: 0.0, end: 1.0, steps: 100}``, which goes in so many equal steps."""
    requires: RequirementConfig | None = None
    """This reward counts only where another one is high enough, as correctness where the format is right."""
    normalize: Literal["none", "group", "batch"] = "none"
    """``group``, ``batch``: for the advantages this reward's values are brought to mean 0 and deviation 1 among those of their prompt, or
    of the step, before they are weighted."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a reward that is a class."""
    timeout: float = field(default=0.0, compare=False)  # a run that is continued may have another one
    """Seconds that one call may take, after which the run ends with an error; 0: any time."""
    retries: int = field(default=0, compare=False)
    """How often a call that fails is repeated, after 1, 2, 4, ... seconds (a minute at most)."""
    threads: int = field(default=1, compare=False)
    """Threads among which a batch is shared out, for rewards that wait for something else; their values may not depend on their batch."""
    cache: Any = field(default=False, compare=False)
    """``true``: values are kept by content, in memory and in ``RUN_DIR/reward-cache``; a path: in that folder, which runs may share."""


@dataclass
class VllmConfig:
    """vLLM as the sampler: an engine in this process, or a server."""

    url: str | None = None
    """A vLLM server, as in ``http://host:8000``; null: an engine inside each training process."""
    weights_dir: str | None = None
    """Folder that the server reads too: the student goes there after each step; null: ``vllm-weights`` in the run's folder."""
    kv_cache_gib: float = 4.0
    """Memory for keys and values of an engine in the process, in GiB."""
    eager: bool = False
    """Start at once, without compilation and CUDA graphs; decoding is slower."""
    sleep: bool = False
    """Give the engine's GPU memory back while the student trains."""
    timeout: float = 600.0
    """Seconds that one request to the server may take."""
    retries: int = 4
    """Times that a request is tried again where the server is away or busy, after 1, 2, 4, ... seconds."""


@dataclass
class RolloutConfig:
    """How the student's answers are sampled and used."""

    prompts_per_step: int = 32
    """Prompts per update step, over all ranks."""
    per_prompt: int = 4
    """Completions sampled for each prompt (the group)."""
    max_new_tokens: int = 64
    """Longest completion in tokens."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_k: int = 0
    """Sample among the k likeliest tokens only; 0: all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that hold this mass; 1: all."""
    min_p: float = 0.0
    """Sample among tokens at least this share as likely as the likeliest; 0: all."""
    min_new_tokens: int = 0
    """No end token is sampled before so many tokens."""
    stop: list[str] = field(default_factory=list)
    """Texts that end an answer beside the model's end tokens; the token that completes one is the answer's last."""
    stop_token_ids: list[int] = field(default_factory=list)
    """Tokens that end an answer beside the model's end tokens."""
    calculator: bool = False
    """``native``: behind ``<<48/2=`` the result is computed and written into the answer, in evaluations too; inserted tokens are no choice
    of the student's, and no term counts them."""
    on_policy_share: float = 1.0
    """λ: share of prompts answered by the student; the rest carry a completion that is not its own."""
    on_policy_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How the share moves over the run, from λ to its ``end``."""
    mixing: Literal["example", "batch"] = "example"
    """Whether λ's coin is tossed for each prompt, or once for the whole batch of a step (GKD's algorithm 1)."""
    completions: Literal["dataset", "teacher"] = "dataset"
    """Whose completions the other rows carry: the dataset's, or the teacher's own, generated once and kept on disk."""
    completions_dir: str | None = None
    """Folder of the teacher's completions, which several runs may share; by default ``RUN_DIR/completions``."""
    completions_temperature: float = 1.0
    """Temperature at which the teacher's completions are sampled; 0: its likeliest token at each place."""
    first_batch: str | None = None
    """File, relative to the run's folder, of the first step's sampled answers, which runs of one process that begin alike may share: the
    first of them writes it (``gkd-rl ablate --share-rollouts``)."""
    max_resamples: int = 0
    """How often, within a step, groups whose answers were all judged alike make room for fresh prompts (DAPO); 0: never."""
    passes: int = 1
    """Passes over each batch of rollouts."""
    updates_per_pass: int = 1
    """Optimiser updates that one pass is cut into."""
    max_staleness: int = 0
    """How many steps old a row may be when it is trained on."""
    overlap: bool = False
    """Sample the next step's answers, with a copy of the student, while this step's are trained on: one step off-policy."""
    buffer_device: Literal["same", "cpu"] = "same"
    """Where rollouts wait for their updates: on the student's device, or in CPU memory, from which micro-batches are fetched one by one."""
    buffer_gib: float = 0.0
    """Memory that one rank's rollouts may take, in GiB; beyond it the run ends with an error. 0: no limit."""
    sampling_rows: int = 512
    """Rows decoded at once at most."""
    sampler: Literal["native", "generate", "vllm"] = "native"
    """``native``: this package's decoding; ``generate``: Hugging Face's, for models that it cannot decode; ``vllm``: see ``vllm``."""
    compile: bool = False
    """``native``: compile the decoding step over a cache of fixed size (half a minute at the start)."""
    vllm: VllmConfig = field(default_factory=VllmConfig)
    """Settings of the sampler ``vllm``."""


@dataclass
class OptimizerConfig:
    """The optimiser and its learning-rate schedule."""

    kind: Literal["adamw", "muon", "adafactor", "deepspeed_cpu_adam"] = "adamw"
    """``muon``: orthogonalised momentum for the matrices within the layers, AdamW for the rest; ZeRO 0 in float32 only.
    ``adafactor``: second moments by rows and columns, no first moment; a fraction of AdamW's memory, ZeRO 0 in float32 only.
    ``deepspeed_cpu_adam``: AdamW by DeepSpeed's operator for states in CPU memory, compiled once per machine; with
    ``engine.offload_optimizer``."""
    lr: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the rate falls from its peak to ``end_share``·lr at ``max_steps``."""
    warmup_steps: int = 0
    """Steps over which the rate rises from 0."""
    end_share: float = 0.0
    """Share of the peak rate that is left at the end."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm; 0: never."""


@dataclass
class EngineConfig:
    """DeepSpeed and the cut into micro-batches."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """ZeRO: 1 shards optimiser states over ranks, 2 gradients too, 3 parameters too."""
    activation_checkpointing: bool = False
    """Keep each layer's input alone of a forward pass, and run the layer again in the backward pass: less memory, a third more work."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """The optimiser's states are in CPU memory, where its step runs too (ZeRO 1 to 3), or on a disk between steps (``nvme``, ZeRO 3)."""
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """Sharded parameters wait in CPU memory or on a disk (ZeRO 3)."""
    nvme_path: str | None = None
    """Folder on the disk of ``nvme``, on each host a local one."""
    offload_while_scoring: bool = False
    """The optimiser's states go to CPU memory while teacher and reference score, to make room for them on the device."""
    micro_batch_tokens: int = 4096
    """Padded tokens of one micro-batch at most (a single longer row still goes, alone)."""
    max_bad_updates: int = 3
    """Updates in a row that are skipped because their loss or gradient is not finite; one more ends the run. 0: the first one does."""
    threads: int = 0
    """CPU threads per process; 0: torch's default."""
    timeout: float = 1800.0
    """Seconds without an answer after which a process counts as lost, and the others stop."""


@dataclass
class EvaluationConfig:
    """How the student is evaluated on held-out examples during and around training."""

    examples: int = 500
    """Held-out examples."""
    every: int = 0
    """Evaluate every so many steps; 0: only before and after."""
    during_examples: int = 200
    """Held-out examples of the evaluations during training."""
    samples: int = 1
    """Completions sampled per example in ``gkd-rl evaluate`` (more than 1: pass@k)."""
    temperature: float = 1.0
    """Temperature of the answers that are sampled (mean reward, pass@k, divergence); accuracy is always greedy."""
    metrics: list[str] | None = None
    """Corpus metrics of the answers, by name or dotted path (docs/tasks.md); by default the task's own."""
    score: str = "accuracy"
    """Figure that ``plateau`` schedules and ``checkpoint.keep_best`` go by, larger is better: ``accuracy``, ``reward`` or a metric."""
    teacher: bool = True
    """Whether the teacher is evaluated too, once, where there is one and its model is in the process."""


@dataclass
class CheckpointConfig:
    """What is kept of the run's state."""

    every: int = 50
    """Steps between checkpoints; one is always written at the end; 0: only that."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_best: bool = False
    """Keep the one with the best validation score (``evaluation.score``) too, among those of evaluated steps (``evaluation.every``)."""


@dataclass
class SftConfig:
    """Supervised fine-tuning of the student on the task's own completions."""

    examples: int = 2000
    """Training examples drawn from the task; repeated over the epochs."""
    epochs: float = 10.0
    """Passes over them."""
    batch_size: int = 64
    """Rows per update over all ranks."""
    lr: float = 2e-3
    """Peak learning rate."""


@dataclass
class AblationConfig:
    """A grid of overrides, each run with each seed."""

    grid: dict[str, Any] = field(default_factory=dict)
    """Configuration key → list of values, or a range: ``{log: [0.01, 1], points: 5}``, ``{linear: [0, 1], points: 5}``; the product of all
    is run."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds; every point of the grid runs with each."""
    parallel: int = 1
    """Runs at once on this machine, which share out its CPU threads where ``engine.threads`` is 0."""


@dataclass
class Config:
    """A whole run."""

    run_dir: str = "runs/run"
    """Folder that receives everything the run leaves."""
    max_steps: int = 100
    """Steps of the run: each samples one batch of rollouts and trains on it."""
    seed: int = 0
    """Seed of data order, sampling and initialisation."""
    resume: str = "never"
    """``never``: refuse a folder that holds a run; ``auto``: continue it from its newest checkpoint; ``new``: set it aside first."""
    data_dir: str | None = None
    """Folder of the task's data files; by default the environment variable GKD_RL_DATA."""
    model: str | None = None
    """Model that ``gkd-rl evaluate`` evaluates; by default the run's final model if there is one, else the student."""
    log_rollouts_every: int = 1
    """Rollouts of every so many steps are written to the run's folder; 0: none."""
    log_top_choices: int = 3
    """With each token, the so many likeliest ones of student and teacher, fewer where these hold 0.999 of the probability; 0: none."""
    log_completions: int = 0
    """Completions shown in the terminal, with prompt, reward and verdict; 0: none."""
    log_completions_every: int = 10
    """Steps from one such showing to the next; the first step has one."""
    trackers: list[str] = field(default_factory=list)
    """Trackers that get the run's figures beside ``metrics.jsonl``: ``tensorboard``, ``wandb``, ``mlflow``, ``trackio`` or another one of
    Accelerate's; by default none."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """How they are started."""
    student: StudentConfig = field(default_factory=StudentConfig)
    """The model that is trained."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The model that is distilled."""
    teachers: dict[str, TeacherConfig] = field(default_factory=dict)
    """Several teachers by name, in the place of ``teacher``."""
    teacher_routing: TeacherRoutingConfig = field(default_factory=TeacherRoutingConfig)
    """Which of them teaches a row."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """Prompts and references."""
    rewards: list[RewardConfig] | None = None
    """Rewards, summed by weight; by default the task's own."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Sampling."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Reward against divergence."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """DeepSpeed."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Held-out evaluation."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """Looking out for reward hacking."""
    sft: SftConfig = field(default_factory=SftConfig)
    """Supervised fine-tuning (``gkd-rl sft``)."""
    ablation: AblationConfig = field(default_factory=AblationConfig)
    """Sweep (``gkd-rl ablate``)."""
