"""What ``--help`` says of each command: what it is for, the keys used most, examples that work."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Help:
    """The help of one command."""

    line: str
    """for the list of commands"""
    purpose: str
    """a paragraph"""
    examples: str
    """one a line, with what it does after ``#``"""
    keys: str = ""
    """keys of the configuration that are used most, one a line"""

    @property
    def description(self) -> str:
        return textwrap.fill(self.purpose, 100)

    @property
    def epilog(self) -> str:
        keys = (
            f"keys used most:\n{self.keys.strip(chr(10))}\nAny key of the configuration can be set: key.sub=value.\n\n" if self.keys else ""
        )
        return f"{keys}examples:\n{self.examples.strip(chr(10))}"


WHOLE = Help(
    line="",
    purpose="Align and compress a language model in one run: (1-α)·reward - α·divergence(teacher ‖ student).",
    examples="""
  gkd-rl init mine.yaml                                         # a commented configuration to begin with
  gkd-rl train configs/arithmetic.yaml                          # align and compress the embedded student
  gkd-rl train configs/gsm8k.yaml data_dir=DATA student.path=A teacher.path=B
  gkd-rl check configs/arithmetic.yaml                          # what is wrong with a run, before it is started
  gkd-rl train configs/paper/t5_xsum.yaml --dry-run             # what a run would take
  gkd-rl ablate configs/ablate_alpha.yaml                       # reward against distillation
  gkd-rl report RUN_DIR                                         # a page of a run, or of several, and their rollouts
  gkd-rl export RUN_DIR --out MODEL                             # a model folder from the newest checkpoint
  gkd-rl grade answers.jsonl --reference-field answer --completion-field completion
  torchrun --nproc_per_node 2 -m gkd_rl train configs/arithmetic.yaml engine.zero_stage=2
""",
)

COMMANDS = {
    "init": Help(
        line="write a commented configuration to begin with",
        purpose="Write a configuration with a word on each setting that matters. For arithmetic it runs as it is, with the "
        "embedded student and teacher; for gsm8k and custom it says where your models and rows go. A file that is there "
        "is left alone.",
        examples="""
  gkd-rl init mine.yaml                                         # the embedded task and models
  gkd-rl init mine.yaml --task gsm8k --student MODEL --teacher MODEL
  gkd-rl init mine.yaml --task custom --student MODEL           # your own rows
""",
    ),
    "train": Help(
        line="train a student on reward and teacher at once",
        purpose="Train a student on its own samples: each is judged once by the rewards and once by the teacher, and one "
        "objective turns both into a gradient. Everything goes to run_dir: figures, rollouts, checkpoints, the final "
        "model, a report. A run that was cut off goes on to the last digit with resume=auto.",
        keys="""
  run_dir, max_steps, seed, resume=never|auto|new       the run and its folder
  objective.alpha=0.5                                   weight of the teacher against the reward, 0 to 1
  objective.divergence.kind=gjsd|forward_kl|reverse_kl  with objective.divergence.beta
  rollout.prompts_per_step, rollout.per_prompt          prompts of a step, answers to each
  engine.zero_stage=0..3                                DeepSpeed ZeRO
  task.path, task.options, task.prompt_format           where prompts come from (docs/tasks.md)
  trackers=[tensorboard], log_completions=2             what is shown and tracked (docs/training.md)
""",
        examples="""
  gkd-rl train configs/arithmetic.yaml                          # some minutes on two CPU cores
  gkd-rl train configs/arithmetic.yaml run_dir=runs/mine objective.alpha=0.25 max_steps=200
  gkd-rl train configs/arithmetic.yaml resume=auto              # go on with what was cut off
  gkd-rl train configs/paper/qwen_gsm8k_one_node.yaml --dry-run --ranks 8 --flops-per-second 4e14
""",
    ),
    "evaluate": Help(
        line="evaluate a model on held-out examples",
        purpose="Evaluate a model on the task's held-out examples: accuracy of greedy answers with its 95% interval, and of "
        "sampled ones mean reward, divergence to the teacher, pass@k and the task's metrics. Nothing is trained or "
        "written.",
        keys="""
  model=PATH                  the model (default: the run's final model if there is one, else the student)
  evaluation.examples=500     held-out examples
  evaluation.samples=8        samples per example, for pass@k
""",
        examples="""
  gkd-rl evaluate configs/arithmetic.yaml model=embedded:arithmetic-student
  gkd-rl evaluate configs/arithmetic.yaml evaluation.samples=8 evaluation.examples=200
  gkd-rl evaluate configs/arithmetic.yaml --json                # one object, for scripts
""",
    ),
    "check": Help(
        line="look for what is wrong with a run before it is started",
        purpose="Check a run from its configuration to one update of each term: files, data, folders, disk, memory, tokenizers, "
        "ends of answers, lengths, rewards, models, gradients. A line for each, with what to do about it; the exit status"
        " is 1 where one failed.",
        keys="""
  those of train
""",
        examples="""
  gkd-rl check configs/arithmetic.yaml                          # a minute for small models
  gkd-rl check configs/arithmetic.yaml --quick                  # what loads neither student nor teacher
  gkd-rl check configs/arithmetic.yaml --json --ranks 8 engine.zero_stage=2
""",
    ),
    "sft": Help(
        line="fine-tune the student on the task's own solutions first",
        purpose="Fine-tune the student on the completions that the task has of its own, so that its samples are worth the "
        "teacher's feedback: the same loop, with cross-entropy as its only term. The model goes to RUN_DIR/model, to be "
        "the student.path of train.",
        keys="""
  sft.examples=2000, sft.epochs=10                      rows of the task, passes over them
  sft.batch_size=64, sft.lr=2e-3                        rows of an update, its peak learning rate
""",
        examples="""
  gkd-rl sft configs/arithmetic.yaml run_dir=runs/sft sft.examples=4000
  gkd-rl train configs/arithmetic.yaml run_dir=runs/after student.path=runs/sft/model
""",
    ),
    "ablate": Help(
        line="run a grid of settings with several seeds",
        purpose="Run every combination of ablation.grid with every seed and compare them: means and paired bootstrap intervals "
        "over seeds and examples, the frontier of score and divergence, the best setting as a configuration. What is "
        "finished is not run again; the exit status is 1 where a run failed.",
        keys="""
  ablation.grid={objective.alpha: [0, 0.5, 1]}          key → values, or {log: [0.01, 1], points: 5}
  ablation.seeds=[0,1,2]                                with each seed
  ablation.parallel=4                                   runs at once
""",
        examples="""
  gkd-rl ablate configs/ablate_alpha.yaml                       # reward against distillation
  gkd-rl ablate configs/ablate_alpha.yaml 'ablation.grid={objective.alpha: {linear: [0, 1], points: 5}}' ablation.seeds=[0]
  gkd-rl ablate configs/compare_methods.yaml ablation.parallel=2
""",
    ),
    "cache-teacher": Help(
        line="keep the teacher's scores of the dataset's completions on disk",
        purpose="Score the dataset's completions once and keep the teacher's likeliest tokens on disk, so that later runs without"
        " on-policy rows need no teacher: they name the folder as teacher.cache.",
        keys="""
  teacher.path, or teacher.url and teacher.served_model  whose scores
  teacher.top_k=64                                       log-probabilities kept per token
  task.train_examples                                    of how many examples (default: all)
""",
        examples="""
  gkd-rl cache-teacher configs/arithmetic.yaml --out runs/scores teacher.top_k=16 task.train_examples=2000
  gkd-rl cache-teacher configs/gsm8k.yaml --out runs/scores data_dir=DATA student.path=A teacher.path=B teacher.top_k=64
""",
    ),
    "reward-model": Help(
        line="train a reward model on preference pairs",
        purpose="Train a sequence classifier on pairs of a chosen and a rejected answer (Bradley-Terry, by TRL), from a "
        "checkpoint or from scratch, and say how often it ranks held-out pairs right. Runs then name its folder in "
        "rewards.",
        keys="""
  preferences.train=FILE, preferences.held_out=FILE      rows with prompt, chosen, rejected (JSONL, CSV, TSV, Parquet)
  preferences.kind=scored, preferences.min_gap           pairs are made of answers with scores
  model.path=CHECKPOINT                                  default: from scratch, of model.type and model.config
  training.epochs, training.batch_size, training.lr      passes, pairs of an update, peak learning rate
""",
        examples="""
  gkd-rl reward-model configs/reward_model_mlqe.yaml data_dir=DATA
  gkd-rl reward-model configs/reward_model_mlqe.yaml model.path=CHECKPOINT training.lr=1e-5 run_dir=runs/judge
""",
    ),
    "export": Help(
        line="make a model folder from a checkpoint of a run",
        purpose="Write the student of a checkpoint as a folder that from_pretrained loads, at any ZeRO stage and number of ranks;"
        " an adapter is merged.",
        examples="""
  gkd-rl export RUN_DIR --out MODEL                              # the newest finished checkpoint
  gkd-rl export RUN_DIR/checkpoints/step-00000100 --out MODEL
  gkd-rl export RUN_DIR --out MODEL --student FOLDER             # the model that the run began with has moved
""",
    ),
    "report": Help(
        line="one page of one or several runs: settings, curves, evaluation, every rollout",
        purpose="Write one HTML file that needs no network: what was run, curves, evaluation, costs, and the rollouts token by "
        "token. Several runs are compared.",
        examples="""
  gkd-rl report RUN_DIR                                          # RUN_DIR/report.html
  gkd-rl report RUN_DIR OTHER_RUN_DIR --out both.html            # two runs side by side
  gkd-rl report RUN_DIR --serve                                  # follow a run that is going on
""",
    ),
    "grade": Help(
        line="grade answers in a file against references",
        purpose="Grade the answers in FILE (JSONL, CSV or Parquet) by their final number, or by another verifier, with the share "
        "that is right and its 95% interval.",
        examples="""
  gkd-rl grade answers.jsonl --reference-field answer --completion-field completion
  gkd-rl grade answers.csv --prompt-field question --json        # rows of one question: pass@k
  gkd-rl grade answers.jsonl --option tolerance=0.01 --out judged.jsonl
""",
    ),
    "completion": Help(
        line="print a script with which the shell completes commands, options, files and keys",
        purpose="Print a completion script for the shell: commands, options, YAML files, and the keys of the configuration with "
        "their choices (objective.divergence.kind=...).",
        examples="""
  gkd-rl completion bash > ~/.local/share/bash-completion/completions/gkd-rl
  gkd-rl completion zsh > ~/.zfunc/_gkd-rl                       # a folder of fpath
  gkd-rl completion fish > ~/.config/fish/completions/gkd-rl.fish
""",
    ),
}
