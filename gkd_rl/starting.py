"""``gkd-rl init``: a configuration to begin with, the settings that matter with a word on each. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from gkd_rl.errors import UserError

TASKS = {
    "arithmetic": (
        """\
  path: gkd_rl.tasks.arithmetic.ArithmeticTask       # made-up word problems; needs no data
  options: {levels: [1, 2, 3]}
  max_prompt_tokens: 160
""",
        "reward_models.ArithmeticVerifier",
        48,
    ),
    "gsm8k": (
        """\
  path: gkd_rl.tasks.gsm8k.Gsm8kTask                 # DATA_DIR/gsm8k/train.jsonl and test.jsonl
  prompt_format: chat                                # or plain
  max_prompt_tokens: 512
""",
        "reward_models.ArithmeticVerifier",
        320,
    ),
    "custom": (
        """\
  path: gkd_rl.tasks.custom.CustomTask               # JSONL, CSV, Parquet or a hub data set: docs/tasks.md
  options: {train: train.jsonl, held_out_rows: 200, prompt: prompt, reference: answer}
  prompt_format: chat                                # or plain
  max_prompt_tokens: 512
""",
        "reward_models.ArithmeticVerifier",
        256,
    ),
}
"""Task → its section, its reward, and the longest answer in tokens."""

TEMPLATE = """\
# gkd-rl check FILE      what can be found wrong before it is started
# gkd-rl train FILE      key=value lays settings over the file
run_dir: {run_dir}
max_steps: {steps}
seed: 0
resume: never                    # auto: go on from the newest checkpoint; new: set a run in the folder aside first

student: {{path: "{student}"}}
teacher: {{path: "{teacher}"}}   # both have one tokenizer; another one: teacher.other_tokenizer

task:
{task}
rewards:                         # any callable (prompts, completions, **columns) -> list[float | None]: docs/rewards.md
  - {{name: correct, path: {reward}, weight: 1.0}}

rollout:
  prompts_per_step: {prompts}
  per_prompt: {group}                 # answers to each prompt; advantages compare them where there are several
  max_new_tokens: {tokens}
  passes: {passes}                     # passes over each batch: sampling and the teacher's pass are paid once for all
  updates_per_pass: {updates}

objective:                       # (1-alpha)·reward - alpha·divergence(teacher || student)
  alpha: {alpha}
  # alpha_schedule: {{kind: linear, end: 0.1}}         # from the teacher to the reward
  divergence: {{kind: gjsd, beta: 0.5, rescale: true}} # beta 0: forward KL, 1: reverse KL
  advantage: {{kind: {advantage}}}

optimizer: {{lr: {lr}, schedule: linear, warmup_steps: 5}}
engine: {{zero_stage: 0, micro_batch_tokens: 8192}}    # more processes: torchrun --nproc_per_node N -m gkd_rl train FILE
evaluation: {{examples: 500, every: 25, during_examples: 200}}
checkpoint: {{every: 50, keep: 2}}
watch: {{action: warn}}            # reward hacking: warn, raise_alpha, stop or off
# student.lora, teachers, teacher.url, rollout.sampler=vllm, ...: docs/configuration
"""


def write_start(path: Path, task: str, student: str | None, teacher: str | None) -> None:
    """Write a commented configuration for ``task`` to ``path``.

    Raises ``UserError`` where there is a file, or where a task with real text has no models named: the embedded ones know arithmetic only.
    """
    if path.exists():
        raise UserError(f"{path} is there already; name another file, or remove it")
    if task != "arithmetic" and (student is None or teacher is None):
        raise UserError(f"the embedded models know the embedded arithmetic only; for --task {task} give --student and --teacher")
    section, reward, tokens = TASKS[task]
    small = student is None
    numbers = (
        {"prompts": 128, "group": 1, "passes": 3, "updates": 4, "alpha": 0.9, "advantage": "batch", "lr": "1.5e-3", "steps": 130}
        if small
        else {"prompts": 32, "group": 8, "passes": 1, "updates": 1, "alpha": 0.5, "advantage": "dr_grpo", "lr": "1.0e-6", "steps": 500}
    )
    text = TEMPLATE.format(
        run_dir=f"runs/{path.stem}",
        student=student or "embedded:arithmetic-student",
        teacher=teacher or "embedded:arithmetic-teacher",
        task=section,
        reward=reward,
        tokens=tokens,
        **numbers,
    )
    try:
        path.write_text(text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
