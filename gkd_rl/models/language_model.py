"""``LanguageModel``: causal and encoder-decoder models behind one interface. Nothing above this folder asks which one it holds.

Shapes: B sequences, P prompt positions (left-padded), C completion positions (right-padded), H hidden, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from gkd_rl.errors import UserError
from gkd_rl.models.cache import decoder_cache, encoder_decoder_cache, fix, has_one_mask
from gkd_rl.models.compiled import compiled_step
from gkd_rl.models.decoding import DecodingState
from gkd_rl.models.heads import head_of
from gkd_rl.models.lean_step import LeanDecoder, can_be_lean
from gkd_rl.models.linears import packed, quicken
from gkd_rl.models.quantized import Quantized
from gkd_rl.models.source import resolve
from gkd_rl.models.tokenizers import load_tokenizer, vocabulary_size
from gkd_rl.objective.head import logits_of
from gkd_rl.types import Head

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

ONE_MASK_FAMILIES = frozenset(
    {"gemma", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo", "olmo2", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm"}
)
"""Families known to take a ready mask [B, 1, 1, T] for one new token; others make their own from [B, T] at every step."""

HEAD_TOLERANCE = 0.03
"""Largest gap, as a share of the largest logit, that rounding (of bfloat16) may leave between our logits and the model's own."""


class LanguageModel(ABC):
    """A Hugging Face model with its tokenizer; see ``load_language_model``."""

    def __init__(self, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary_size(tokenizer)

    def compile_decoding(self) -> None:
        """Have ``advance`` run compiled; see ``compiled_step``. Raises ``UserError`` for a family of which this is not known to work."""
        raise UserError(f"rollout.compile: {type(self.module).__name__} cannot be compiled for decoding here; set it to false")

    @property
    def head(self) -> Head:
        """The output projection, cut to the tokenizer's vocabulary."""
        return head_of(self.module, self.vocabulary)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def parameters(self) -> int:
        """Number of distinct parameters (also where ZeRO-3 has sharded them)."""
        return sum(map(_size, self.module.parameters()))

    @property
    def trained_parameters(self) -> int:
        """Number of those that are trained."""
        return sum(_size(p) for p in self.module.parameters() if p.requires_grad)

    one_sequence = False
    """Whether a row is one sequence of prompt and completion to the model, so that their padding is shared."""

    @abstractmethod
    def completion_hidden(self, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
        """[B, C, H]: the state from which each completion token is predicted."""

    @abstractmethod
    def begin(self, prompt_ids: Tensor, prompt_mask: Tensor, room: int) -> tuple[Tensor, DecodingState]:
        """Read the prompts; return the state [B, H] that predicts the first completion token, and what decoding carries on.

        ``room``: tokens that may be appended.
        """

    @abstractmethod
    def advance(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Append ``tokens`` [B]; return the state [B, H] that predicts the next ones."""

    @contextmanager
    def many_steps(self, rows: int) -> Iterator[None]:
        """Within, ``advance`` runs as fast as it can for about ``rows`` sequences; weights may not change meanwhile.

        Where it gains by that, linear layers have a packed copy of their weights.
        """
        with packed(self.module, rows, spared=self.module.get_output_embeddings()):
            yield

    @abstractmethod
    def generation_inputs(self, prompt_ids: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor, int]:
        """Prompts as ``generate`` wants them: ids and mask [B, P], and how many columns of its output stand before the completion."""


def _size(parameter: Tensor) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


class CausalLanguageModel(LanguageModel):
    """Decoder-only models: one sequence of prompt and completion."""

    _compiled: Callable[..., Any] | None = None
    _lean: LeanDecoder | None = None

    def compile_decoding(self):
        if not self._takes_ready_masks() or not has_one_mask(decoder_cache(self.module.config, 0)):
            super().compile_decoding()
        self._compiled = compiled_step(self.module.base_model)

    one_sequence = True

    def completion_hidden(self, prompt_ids, prompt_mask, completion_ids, completion_mask):
        # With all padding at the end rows are no wider than their prompt and completion together, and no mask is needed: nothing that
        # comes later is attended to.
        ids, mask = _right_padded(torch.cat([prompt_ids, completion_ids], dim=1), torch.cat([prompt_mask, completion_mask], dim=1))
        width = int(mask.sum(dim=1).max()) if len(mask) else mask.shape[1]
        hidden = self.module.base_model(input_ids=ids[:, :width], use_cache=False).last_hidden_state
        places = prompt_mask.sum(dim=1, keepdim=True) - 1 + torch.arange(completion_ids.shape[1], device=ids.device)
        return hidden.take_along_dim(places.clamp(max=width - 1)[..., None], dim=1)

    def begin(self, prompt_ids, prompt_mask, room):
        cache = decoder_cache(self.module.config, room)
        positions = _positions(prompt_mask)
        hidden = self.module.base_model(
            input_ids=prompt_ids,
            attention_mask=prompt_mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        rows, length = prompt_mask.shape
        mask = torch.cat([prompt_mask, prompt_mask.new_ones(rows, room)], dim=1)
        return hidden, DecodingState(cache, mask, positions[:, -1:] + 1, length, not bool(prompt_mask.all()))

    @contextmanager
    def many_steps(self, rows):
        if self._compiled is not None or not self._takes_ready_masks() or not can_be_lean(cast(PreTrainedModel, self.module.base_model)):
            with super().many_steps(rows):
                yield
            return
        self._lean = LeanDecoder(self.module.base_model, rows)
        try:
            yield
        finally:
            self._lean = None

    def advance(self, tokens, state):
        hidden = (self._lean if self._lean is not None and has_one_mask(state.cache) else self._step)(tokens, state)
        state.position = state.position + 1
        return hidden

    def _step(self, tokens: Tensor, state: DecodingState) -> Tensor:
        if self._compiled is not None and not state.capacity:
            state.capacity = fix(state.cache, state.mask.shape[1] - state.length)
            state.mask = nn.functional.pad(state.mask, (0, state.capacity - state.mask.shape[1]))
        state.length += 1
        return (self._compiled or self.module.base_model)(
            input_ids=tokens[:, None],
            attention_mask=self._mask(state),
            position_ids=state.position,
            past_key_values=state.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

    def generation_inputs(self, prompt_ids, prompt_mask):
        return prompt_ids, prompt_mask, prompt_ids.shape[1]

    def _mask(self, state: DecodingState) -> Tensor | None:
        """What one new token may attend to. Making the mask anew costs more than a small model's step; None saves it altogether."""
        if state.capacity:
            written = torch.arange(state.capacity, device=state.mask.device) < state.length
            return (state.mask & written)[:, None, None, :]
        mask = state.mask[:, : state.length]
        if not self._takes_ready_masks() or not has_one_mask(state.cache):
            return mask.long()
        return mask[:, None, None, :] if state.padded else None

    def _takes_ready_masks(self) -> bool:
        config = self.module.config
        return config.model_type in ONE_MASK_FAMILIES and config._attn_implementation == "sdpa"


class EncoderDecoderLanguageModel(LanguageModel):
    """Encoder-decoder models: the prompt is encoded, the completion decoded after the decoder's start token."""

    def completion_hidden(self, prompt_ids, prompt_mask, completion_ids, completion_mask):
        encoded, mask = self._encode(prompt_ids, prompt_mask)
        return self.module.get_decoder()(
            input_ids=torch.cat([self._start(len(completion_ids)), completion_ids[:, :-1]], dim=1),
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask.long(),
            use_cache=False,
        ).last_hidden_state

    def begin(self, prompt_ids, prompt_mask, room):
        encoded, mask = self._encode(prompt_ids, prompt_mask)
        position = torch.zeros(len(prompt_ids), 1, dtype=torch.long, device=prompt_ids.device)
        state = DecodingState(encoder_decoder_cache(room + 1), mask, position, encoded=encoded)
        return self.advance(self._start(len(prompt_ids))[:, 0], state), state

    def advance(self, tokens, state):
        hidden = self.module.get_decoder()(
            input_ids=tokens[:, None],
            encoder_hidden_states=state.encoded,
            encoder_attention_mask=state.mask.long(),
            past_key_values=state.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        state.position = state.position + 1
        return hidden

    def generation_inputs(self, prompt_ids, prompt_mask):
        return *_right_padded(prompt_ids, prompt_mask), 1

    def _encode(self, prompt_ids: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The prompts' states [B, P, H] and mask [B, P], padding moved to the right."""
        ids, mask = _right_padded(prompt_ids, prompt_mask)
        return self.module.get_encoder()(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask

    def _start(self, rows: int) -> Tensor:
        start = self.module.config.decoder_start_token_id
        if start is None:
            raise UserError(f"{self.module.name_or_path}: its config.json names no decoder_start_token_id; set it there")
        return torch.full((rows, 1), start, dtype=torch.long, device=self.device)


def _right_padded(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, P] with the padding moved to the right: encoders count positions from the first column."""
    order = mask.long().argsort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def _positions(mask: Tensor) -> Tensor:
    """Positions count from the first unmasked token, so that left padding changes nothing."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def load_language_model(
    path: str, where: str, dtype: str = "float32", trust_remote_code: bool = False, quantized: Quantized | None = None
) -> LanguageModel:
    """Load the model and tokenizer at ``path``; ``where`` is the configuration key, for the errors' text.

    Raises ``UserError`` where there is no such model, where its head cannot be reproduced, or where its tokenizer lacks an EOS.
    """
    source = resolve(path, where)
    options = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        family = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        loading = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loading |= {} if quantized is None else quantized.loading(DTYPES[dtype])
        found = family.from_pretrained(source, dtype=DTYPES[dtype], use_safetensors=True, **loading, **options)
        module, loaded = found  # pyright: ignore[reportGeneralTypeIssues]
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{where}: {path} could not be loaded: {str(error).strip().splitlines()[0]}") from None
    _require_all_weights(loaded, path, where)
    tokenizer = load_tokenizer(source, where, trust_remote_code)
    try:
        return wrap(module, tokenizer)
    except AssertionError as error:  # bitsandbytes' own, of shapes that it has no kernel for; met at the first forward
        if quantized is None:
            raise
        raise UserError(f"{where}: {path} cannot be had in {quantized.kind} here: {error}; set quantize to none") from None


def _require_all_weights(loaded: Mapping[str, Any], path: str, where: str) -> None:
    """Transformers draws weights that a checkpoint lacks, or has in another shape, at random."""
    misfits = [*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])]
    if misfits:
        raise UserError(
            f"{where}: the weights of {path} do not fit its config.json: {len(misfits)} are missing or of another shape, the first of "
            f"them {min(misfits)}; give the checkpoint of a language model"
        )


def wrap(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    """A ``LanguageModel`` over a loaded model, its head proved against the model's own logits."""
    tokens = vocabulary_size(tokenizer)
    rows: int = module.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportAssignmentType, reportIndexIssue]
    if rows < tokens:
        raise UserError(f"{module.name_or_path}: the tokenizer has {tokens} tokens, but the model embeds only {rows}")
    cls = EncoderDecoderLanguageModel if module.config.is_encoder_decoder else CausalLanguageModel
    quicken(module)
    model = cls(module.eval(), tokenizer)
    _prove_head(model)
    return model


@torch.no_grad()
def _prove_head(model: LanguageModel) -> None:
    """Families scale, cap or shift their logits in ways of their own; one that ``Head`` cannot express is refused, not trained wrongly."""
    token = torch.tensor([[model.tokenizer.eos_token_id]], device=model.device)
    mask = torch.ones_like(token, dtype=torch.bool)
    ours, _ = model.begin(token, mask, 0)
    extra = {"decoder_input_ids": model._start(1)} if isinstance(model, EncoderDecoderLanguageModel) else {}
    theirs = model.module(input_ids=token, attention_mask=mask.long(), **extra).logits[:, -1, : model.vocabulary].float()
    gap = (logits_of(ours, model.head).float() - theirs).abs().max()
    if gap > HEAD_TOLERANCE * theirs.abs().max():
        raise UserError(f"{type(model.module).__name__} forms its logits in a way this version cannot reproduce")


def encode_prompts(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Left-pad token lists into ids [B, P] and mask [B, P] on the model's device."""
    width = max((len(p) for p in prompts), default=1)
    ids = torch.full((len(prompts), width), int(model.tokenizer.pad_token_id))  # pyright: ignore[reportArgumentType]
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = True
    return ids.to(model.device), mask.to(model.device)
