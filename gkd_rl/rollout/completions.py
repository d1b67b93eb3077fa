"""The teacher's own completions of prompts: sampled once, kept on disk, given out as off-policy rows (SeqKD, supervised KD, ImitKD).

A completion depends on the prompt, its place among the prompt's completions and the settings alone: a store that was lost, or that
another number of ranks made, comes back the same. Each rank appends to a file of its own and reads them all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.models.tokenizers import prompt_tokens
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.sampler import Sampler, given_rollouts
from gkd_rl.run_folder import write_atomically
from gkd_rl.types import Example, Rollouts

Key = tuple[str, int]
"""(digest of the prompt's tokens, place)"""


class TeacherCompletions:
    """A store of what the teacher answers.

    Args:
        model: the student, whose tokenizer (the teacher's too) the rows are made with.
        sampler: samples from the teacher.
        params: how it samples.
        seed: of its sampling.
        folder: where completions are kept.
        settings: what completions depend on beside the prompt; a folder made with others is refused.
        rank: of this process.
    """

    def __init__(
        self,
        model: LanguageModel,
        sampler: Sampler,
        params: SamplingParams,
        seed: int,
        folder: Path,
        settings: Mapping[str, Any],
        rank: int,
    ) -> None:
        self.model, self.sampler, self.params, self.seed = model, sampler, params, seed
        self.path = folder / f"rank-{rank}.jsonl"
        self.known: dict[Key, tuple[list[int], bool]] = {}
        self._open(folder, settings)

    def rollouts(self, examples: Sequence[Example], per_prompt: int, version: int) -> Rollouts:
        """``per_prompt`` completions of every example as off-policy rows; those that are not known yet are sampled now, and kept."""
        digests = [_digest(prompt_tokens(self.model.tokenizer, example.prompt)) for example in examples]
        missing = {d: e for d, e in zip(digests, examples, strict=True) if any((d, place) not in self.known for place in range(per_prompt))}
        if missing:
            self._sample(missing, per_prompt)
        keys = [(digest, place) for digest in digests for place in range(per_prompt)]
        rows = [example for example in examples for _ in range(per_prompt)]
        return given_rollouts(self.model, rows, [self.known[key][0] for key in keys], [self.known[key][1] for key in keys], version)

    def _sample(self, missing: Mapping[str, Example], per_prompt: int) -> None:
        asked = [replace(example, key=int(digest, 16)) for digest, example in missing.items()]
        found = self.sampler.sample(asked, per_prompt, self.params, self.seed)
        counts = found.completion_mask.sum(1).tolist()
        with self.path.open("a", encoding="utf-8") as file:
            for row, (count, ended) in enumerate(zip(counts, found.ended.tolist(), strict=True)):
                key = (list(missing)[row // per_prompt], row % per_prompt)
                tokens = found.completion_ids[row, :count].tolist()
                self.known[key] = tokens, ended
                file.write(json.dumps({"prompt": key[0], "place": key[1], "tokens": tokens, "ended": ended}) + "\n")

    def _open(self, folder: Path, settings: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        made_with = folder / "settings.json"
        if made_with.exists() and (before := json.loads(made_with.read_text())) != dict(settings):
            key = next(k for k in (*settings, *before) if settings.get(k) != before.get(k))
            raise UserError(
                f"rollout.completions_dir {folder} holds completions made with {key}={before.get(key)}, not {settings.get(key)}; choose "
                "another folder"
            )
        write_atomically(made_with, json.dumps(settings))
        for path in sorted(folder.glob("rank-*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the last line of a run that was killed; its row is sampled again
                self.known[row["prompt"], row["place"]] = row["tokens"], row["ended"]
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a") as file:
                file.write("\n")


def _digest(tokens: Sequence[int]) -> str:
    """15 hex digits: as a number it fits a signed 64-bit group number."""
    return hashlib.blake2b(repr(list(tokens)).encode(), digest_size=8).hexdigest()[:15]
