"""Checks of tokenizers, ends of answers, and lengths. No model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import GenerationConfig

from gkd_rl.build import check_context
from gkd_rl.config.teachers import model_of, teacher_configs
from gkd_rl.errors import UserError
from gkd_rl.models.tokenizers import completion_tokens, prompt_tokens, vocabulary_size
from gkd_rl.preflight.finding import Finding, worst
from gkd_rl.preflight.trial import Trial
from gkd_rl.rollout.calculator import require_marks
from gkd_rl.rollout.stopping import generation_ends
from gkd_rl.tasks.fitting import uses_completions
from gkd_rl.teacher.build import check_taught, check_teaching
from gkd_rl.types import Example

_QUESTION, _ANSWER = "How many?", "There are 42."


def tokenizers(trial: Trial) -> Finding:
    """Whether student and teachers mean the same by a token, and servers and caches of teachers answer."""
    tokenizer, rows = trial.tokenizer, getattr(trial.settings.get_text_config(decoder=True), "vocab_size", None)
    tokens = vocabulary_size(tokenizer)
    if rows is not None and rows < tokens:
        raise UserError(
            f"student.path: the tokenizer has {tokens:,} tokens, and the model embeds {rows:,}; save the tokenizer it belongs to"
        )
    if trial.config.rollout.calculator:
        require_marks(tokenizer, trial.config.student.path)
    check_teaching(trial.config, tokenizer)
    check_taught(trial.config, trial.held_out)
    named = teacher_configs(trial.config)
    compared = [key for key, one in named.items() if model_of(one)[0] is not None and not one.other_tokenizer]
    spans = [key for key, one in named.items() if one.other_tokenizer]
    alike = f", the same for {' and '.join(compared)}" if compared else ""
    others = f", compared on texts with {' and '.join(spans)}" if spans else ""
    return Finding("pass", f"{tokens:,} tokens, EOS {tokenizer.eos_token!r}{alike}{others}")


def ends(trial: Trial) -> Finding:
    """Whether what closes an answer ends it: the tokenizer's EOS, and, where prompts are chats, the template's last token."""
    return _ends(trial, chat=not isinstance(trial.held_out[0].prompt, str))


def configured_ends(trial: Trial) -> Finding:
    """The same without reading the task's data: prompts are what ``task.prompt_format`` says."""
    return _ends(trial, chat=trial.config.task.prompt_format == "chat")


def _ends(trial: Trial, chat: bool) -> Finding:
    tokenizer, settings = trial.tokenizer, _generation(trial)
    assert isinstance(tokenizer.eos_token_id, int)
    named = generation_ends(settings)
    ending = {tokenizer.eos_token_id, *named, *trial.config.rollout.stop_token_ids}
    words = ", ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(sorted(ending)))
    if chat:
        return _template_end(trial, ending, words)
    if named and tokenizer.eos_token_id not in named:
        theirs = ", ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(named))
        detail = (
            f"the model's own settings end answers at {theirs}, its tokenizer at {tokenizer.eos_token!r}: base and chat model mixed up?"
        )
        return Finding("warn", detail, "set eos_token of the tokenizer to what the model was trained to end with")
    return Finding("pass", f"answers end at {words}")


def _generation(trial: Trial) -> GenerationConfig:
    """The generation settings that the model will have once it is loaded."""
    try:
        return GenerationConfig.from_pretrained(trial.source)
    except OSError:
        return GenerationConfig.from_model_config(trial.settings)


def _template_end(trial: Trial, ending: set[int], words: str) -> Finding:
    """What the template puts behind an answer has to end it."""
    tokenizer, fix = trial.tokenizer, "use the template of the model's own family, or name its end in rollout.stop_token_ids"
    if tokenizer.chat_template is None:
        raise UserError("task.prompt_format is 'chat' but the student's tokenizer has no chat template; use 'plain'")
    chat = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    _, answer, behind = str(tokenizer.apply_chat_template(chat, tokenize=False)).rpartition(_ANSWER)
    if not answer:
        return Finding("fail", "the chat template leaves an answer out, or changes it", fix)
    ids = list(tokenizer(behind, add_special_tokens=False)["input_ids"])
    closing = next((token for token in ids if token in ending), None)
    if closing is None and not any(stop in behind for stop in trial.config.rollout.stop):
        what = f"with {behind!r}" if behind.strip() else "with nothing"
        return Finding("fail", f"the chat template closes an answer {what}, and answers end at {words} only", fix)
    learned = uses_completions(trial.config) and closing not in (None, tokenizer.eos_token_id)
    if learned:
        detail = f"the template closes an answer with {behind!r}, the data set's completions are closed with EOS {tokenizer.eos_token!r}"
        return Finding("warn", detail, "set eos_token of the tokenizer to the template's end")
    return Finding("pass", f"the template closes an answer with {behind!r}; answers end at {words}")


def prompt_lengths(trial: Trial) -> Finding:
    """Prompts, and completions that are learned from, against their limits and the student's window."""
    check_context(trial.config, trial.settings)
    settings, tokenizer = trial.config.task, trial.tokenizer
    findings = [
        _against(
            [(example, len(prompt_tokens(tokenizer, example.prompt))) for example in (*trial.training, *trial.held_out)],
            "prompts",
            f"task.max_prompt_tokens={settings.max_prompt_tokens}",
            settings.max_prompt_tokens,
            settings.long_prompts,
        )
    ]
    if uses_completions(trial.config):
        limit = trial.config.rollout.max_new_tokens
        measured = [(example, len(completion_tokens(tokenizer, example, None))) for example in trial.training]
        findings.append(_against(measured, "completions", f"rollout.max_new_tokens={limit}", limit, settings.long_completions))
    return worst(findings)


def _against(measured: Sequence[tuple[Example, int]], what: str, limit_is: str, limit: int, when_longer: str) -> Finding:
    """Share of the rows over ``limit``, and the longest; what ``when_longer`` makes of them decides how bad that is."""
    example, longest = max(measured, key=lambda pair: pair[1])
    empty = [one.key for one, length in measured if length == 0]
    if empty:
        return Finding("fail", f"the {what.removesuffix('s')} of example {empty[0]} is empty", "remove the row or give it text")
    over = sum(length > limit for _, length in measured)
    detail = (
        f"{over} of {len(measured):,} {what} ({over / len(measured):.1%}) over {limit_is}, the longest {longest:,} (example {example.key})"
    )
    if not over:
        return Finding("pass", detail)
    if when_longer == "error":
        return Finding("fail", detail, f"raise it, shorten or remove the rows, or set task.long_{what}=drop")
    return Finding("warn", f"{detail}: {'left out' if when_longer == 'drop' else 'cut'}", "raise it, if these rows matter")
