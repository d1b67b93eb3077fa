"""A teacher's scores of the dataset's completions on disk, so that training on them needs no teacher.

A folder holds ``cache.json`` (whose scores, how many tokens) and shards in safetensors form. A shard is whole or not there, and holds
its own index: a digest of each row's prompt tokens and one of all its tokens. Rows are found by what their tokens are, since an
example's key is its place in the stream of a run and changes from epoch to epoch.

Log-probabilities are kept in fp16. What rounding would do to the tail's mass is undone: its logarithm is kept in fp32.

Shapes: R rows, N valid completion tokens of them all, B sequences, C completion positions, K likeliest tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gkd_rl.errors import UserError
from gkd_rl.objective.numerics import TINY
from gkd_rl.rollout.rows import take
from gkd_rl.teacher.local import Teacher
from gkd_rl.types import Rollouts, TopKScores

DIGEST_BYTES = 16
LOWEST = -65000.0
"""Log-probabilities below are clamped: fp16 holds no more."""


@dataclass(frozen=True)
class CacheHeader:
    """What all rows of a cache have in common."""

    teacher: str
    """path or served name"""
    top_k: int
    form: int = 1


class _Place(NamedTuple):
    file: Path
    start: int
    end: int
    key: int


class TeacherCache:
    """The folder: adds shards, finds rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.header: CacheHeader | None = None
        self._rows: dict[bytes, _Place] = {}
        self._prompts: dict[bytes, _Place] = {}
        self._open: dict[Path, Any] = {}
        if (folder / "cache.json").is_file():
            self.header = _read_header(folder / "cache.json")
            for file in sorted(folder.glob("shard-*.safetensors")):
                self._read_index(file)

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self, header: CacheHeader) -> None:
        """Make the folder, or continue one of the same header. Raises ``UserError`` if it holds other scores."""
        if self.header is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / "cache.json", json.dumps(asdict(header), indent=2))
            self.header = header
        if self.header != header:
            raise UserError(
                f"{self.folder} holds scores of {self.header.teacher} with top_k={self.header.top_k}, not of {header.teacher} with "
                f"top_k={header.top_k}; choose another folder"
            )

    def holds(self, prompt: Sequence[int], completion: Sequence[int]) -> bool:
        """Whether the row is there."""
        return _digests(prompt, completion)[1] in self._rows

    def add(self, rollouts: Rollouts, scores: TopKScores, name: str) -> None:
        """Write a shard ``name`` of all rows: aside first, then renamed."""
        rows = _token_rows(rollouts)
        digests = [_digests(prompt, completion) for prompt, completion in rows]
        mask = rollouts.completion_mask
        kept = scores.logprobs[mask].float()
        counts = torch.tensor([0, *(len(completion) for _, completion in rows)])
        tensors = {
            "ids": scores.ids[mask].int(),
            "logprobs": kept.clamp_min(LOWEST).half(),
            "log_tails": (-torch.expm1(kept.logsumexp(-1).clamp_max(0))).clamp_min(TINY).log(),
            "token_logprobs": scores.token_logprobs[mask].float(),
            "offsets": counts.cumsum(0),
            "keys": torch.tensor([example.key for example in rollouts.examples]),
            "prompts": torch.tensor([list(prompt) for prompt, _ in digests], dtype=torch.uint8),
            "rows": torch.tensor([list(row) for _, row in digests], dtype=torch.uint8),
        }
        file = self.folder / f"shard-{name}.safetensors"
        aside = file.with_name(f".{file.name}.partial")
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, aside)
        os.replace(aside, file)
        self._read_index(file)

    def find(self, prompt: Sequence[int], completion: Sequence[int], key: int) -> dict[str, Tensor]:
        """One row's tensors [C, ...]. Raises ``UserError`` for a row that is not there, or whose tokens are others there."""
        of_prompt, of_row = _digests(prompt, completion)
        if of_row not in self._rows:
            if of_prompt in self._prompts:
                raise UserError(
                    f"teacher.cache {self.folder}: the completion of example {key} has other tokens than when the cache was made (as "
                    f"example {self._prompts[of_prompt].key}); make it anew with gkd-rl cache-teacher"
                )
            raise UserError(
                f"teacher.cache {self.folder}: example {key} is not in it, or its prompt has changed; complete it with gkd-rl cache-teacher"
            )
        file, start, end, _ = self._rows[of_row]
        names = ("ids", "logprobs", "log_tails", "token_logprobs")
        return {name: self._handle(file).get_slice(name)[start:end] for name in names}

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"teacher.cache: {file} cannot be read ({error}); remove it and run gkd-rl cache-teacher again") from None
        return self._open[file]

    def _read_index(self, file: Path) -> None:
        handle = self._handle(file)
        offsets, keys, prompts, rows = (handle.get_tensor(name) for name in ("offsets", "keys", "prompts", "rows"))
        for number, key in enumerate(keys.tolist()):
            place = _Place(file, int(offsets[number]), int(offsets[number + 1]), key)
            self._prompts[bytes(prompts[number].tolist())] = place
            self._rows[bytes(rows[number].tolist())] = place


class CachedTeacher:
    """Dataset rows from a cache, sampled rows from a ``live`` teacher of the same form."""

    head = None

    def __init__(self, cache: TeacherCache, top_k: int, live: Teacher | None) -> None:
        self.cache = cache
        self.top_k = top_k
        self.live = live

    def score(self, rollouts: Rollouts) -> TopKScores:
        """Scores of all rows. Raises ``UserError`` for a dataset row that the cache does not hold."""
        mask, device = rollouts.completion_mask, rollouts.completion_ids.device
        ids = torch.zeros(*mask.shape, self.top_k, dtype=torch.long, device=device)
        logprobs, own = torch.zeros(ids.shape, device=device), torch.zeros(mask.shape, device=device)
        tokens = _token_rows(rollouts)
        for row in (~rollouts.on_policy).nonzero()[:, 0].tolist():
            prompt, completion = tokens[row]
            found = self.cache.find(prompt, completion, rollouts.examples[row].key)
            places = slice(len(completion))
            top_ids, top_logprobs = _restored(found, self.top_k)
            ids[row, places], logprobs[row, places], own[row, places] = (
                value.to(device) for value in (top_ids, top_logprobs, found["token_logprobs"])
            )
        sampled = rollouts.on_policy.nonzero()[:, 0]
        if len(sampled):
            assert self.live is not None, "validate asks for a teacher of sampled rows"
            part = self.live.score(take(rollouts, sampled))
            assert isinstance(part, TopKScores), "validate asks for top_k"
            width = part.ids.shape[1]
            ids[sampled, :width], logprobs[sampled, :width], own[sampled, :width] = part.ids, part.logprobs, part.token_logprobs
        return TopKScores(ids, logprobs, own)


def open_cache(folder: str, top_k: int, teacher: str | None) -> TeacherCache:
    """The cache to train on. Raises ``UserError`` if there is none, or it holds fewer tokens or another teacher's scores."""
    cache = TeacherCache(Path(folder))
    if cache.header is None:
        raise UserError(f"teacher.cache: {folder} holds no cache; make one with gkd-rl cache-teacher CONFIG --out {folder}")
    if cache.header.top_k < top_k:
        raise UserError(
            f"teacher.cache: {folder} holds {cache.header.top_k} log-probabilities per token, fewer than teacher.top_k={top_k}; lower it, "
            "or make the cache anew"
        )
    if teacher is not None and cache.header.teacher != teacher:
        raise UserError(
            f"teacher.cache: {folder} holds scores of {cache.header.teacher}, not of {teacher}; set teacher.path to that, or make it anew"
        )
    return cache


def _restored(found: Mapping[str, Tensor], top_k: int) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities [C, k] of the k likeliest tokens, the mass of all kept ones being what it was before rounding."""
    kept = found["logprobs"].float()
    log_mass = torch.log1p(-found["log_tails"].exp().clamp_max(1 - 1e-7))[:, None]
    kept = kept + log_mass - kept.logsumexp(-1, keepdim=True)
    top = kept.topk(top_k, dim=-1)
    return found["ids"].long().gather(-1, top.indices), top.values


def _token_rows(rollouts: Rollouts) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion ids of each row, without padding."""
    prompts, completions = (
        [row[kept].tolist() for row, kept in zip(ids.cpu(), mask.cpu(), strict=True)]
        for ids, mask in ((rollouts.prompt_ids, rollouts.prompt_mask), (rollouts.completion_ids, rollouts.completion_mask))
    )
    return list(zip(prompts, completions, strict=True))


def _digests(prompt: Sequence[int], completion: Sequence[int]) -> tuple[bytes, bytes]:
    """Of the prompt, and of prompt and completion."""
    first, both = (repr(part).encode() for part in (list(prompt), (list(prompt), list(completion))))
    return hashlib.blake2b(first, digest_size=DIGEST_BYTES).digest(), hashlib.blake2b(both, digest_size=DIGEST_BYTES).digest()


def _read_header(file: Path) -> CacheHeader:
    try:
        return CacheHeader(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"teacher.cache: {file} cannot be read ({error}); make the cache anew in another folder") from None


def _write(file: Path, text: str) -> None:
    aside = file.with_name(f".{file.name}.partial")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, file)
