"""A reward that is asked once for each content, with its values in memory and on disk."""

import hashlib
import json
import math
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from reward_models.errors import InputError
from reward_models.loading import Reward

SQL_VARIABLES = 500
"""Keys of one query: SQLite takes a limited number."""


class Cached:
    """`reward`, asked once for each content: prompt, completion and all columns of a row.

    Values are kept in memory (the `most` that were used last) and, with `file`, in an SQLite database that several processes may share.
    The reward must not depend on what else is in its batch, on the time, or on chance.

    Args:
        reward: what is asked for new rows.
        identity: what makes the reward this one, such as its path and options; part of each key.
        file: the database; made with its folder when first needed.
        most: values kept in memory.
    """

    def __init__(self, reward: Reward, identity: Any, file: Path | None = None, most: int = 100_000) -> None:
        self.reward, self.file, self.most = reward, file, most
        self.hits = self.asked = 0
        """rows that were found, and rows that the reward was asked for"""
        self._identity = _digest(identity)
        self._memory: OrderedDict[str, float | None] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one reward for each completion.

        Raises:
            InputError: a column holds what cannot be written as JSON, or the database cannot be used.
        """
        keys = [
            _digest([self._identity, prompts[row], completions[row], {name: column[row] for name, column in columns.items()}])
            for row in range(len(completions))
        ]
        known = self._known(keys)
        first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in known}
        rows = sorted(first.values())
        if rows or not keys:
            chosen = {name: [column[row] for row in rows] for name, column in columns.items()}
            values = list(self.reward(prompts=[prompts[row] for row in rows], completions=[completions[row] for row in rows], **chosen))
            if len(values) != len(rows):
                raise ValueError(f"it returned {len(values)} values for {len(rows)} completions")
            known |= {keys[row]: value for row, value in zip(rows, values, strict=True)}
            self._keep({keys[row]: known[keys[row]] for row in rows if _is_reward(known[keys[row]])})
        self.hits, self.asked = self.hits + len(keys) - len(rows), self.asked + len(rows)
        return [known[key] for key in keys]

    def _known(self, keys: Sequence[str]) -> dict[str, float | None]:
        with self._lock:
            known = {key: self._memory[key] for key in keys if key in self._memory}
            for key in known:
                self._memory.move_to_end(key)
        missing = sorted(set(keys) - set(known))
        if self.file is not None and self.file.exists() and missing:
            found = self._read(missing)
            self._remember(found)
            known |= found
        return known

    def _keep(self, new: Mapping[str, float | None]) -> None:
        self._remember(new)
        if self.file is None or not new:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        rows = [(key, None if value is None else float(value)) for key, value in new.items()]
        try:
            with closing(self._connection()) as base, base:
                base.execute("CREATE TABLE IF NOT EXISTS rewards (key TEXT PRIMARY KEY, value REAL)")
                base.executemany("INSERT OR REPLACE INTO rewards VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise InputError(f"the cache {self.file} cannot be written ({error}); remove it, or name another one") from error

    def _read(self, keys: Sequence[str]) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        try:
            with closing(self._connection()) as base:
                for start in range(0, len(keys), SQL_VARIABLES):
                    some = keys[start : start + SQL_VARIABLES]
                    marks = ",".join("?" * len(some))
                    found |= dict(base.execute(f"SELECT key, value FROM rewards WHERE key IN ({marks})", some))
        except sqlite3.Error as error:
            raise InputError(f"the cache {self.file} cannot be read ({error}); remove it, or name another one") from error
        return found

    def _connection(self) -> sqlite3.Connection:
        """A connection for one batch: the run's folder may be moved between two."""
        assert self.file is not None
        return sqlite3.connect(self.file, timeout=60)

    def _remember(self, new: Mapping[str, float | None]) -> None:
        with self._lock:
            self._memory.update(new)
            while len(self._memory) > self.most:
                self._memory.popitem(last=False)


def _is_reward(value: Any) -> bool:
    """Whether a value may be kept: what is no reward is left for whoever asked to complain about."""
    return value is None or (isinstance(value, (int, float)) and math.isfinite(value))


def _digest(content: Any) -> str:
    try:
        text = json.dumps(content, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"a reward is cached by its rows' content, which is no JSON here ({error}); set cache to false") from error
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
