"""Rewards behind repetition, threads and a cache: asked as often as needed, with the same values."""

import json
import threading
import time
from pathlib import Path

import pytest

from reward_models import Cached, InputError, Retried, RewardError, Threaded, WeightedSum


class Lengths:
    """A reward that counts its calls and rows; the first `failures` calls raise."""

    def __init__(self, failures: int = 0, error: Exception | None = None) -> None:
        self.failures, self.error = failures, error or ConnectionError("gone")
        self.calls: list[list[str]] = []

    def __call__(self, prompts: list, completions: list, **columns: object) -> list[float | None]:
        self.calls.append(list(completions))
        if len(self.calls) <= self.failures:
            raise self.error
        return [float(len(one)) if one else None for one in completions]


def test_a_reward_that_fails_is_asked_again_with_growing_waits(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    reward = Lengths(failures=3)
    assert Retried(reward, 3, seconds=20.0)(["p"], ["abc"]) == [3.0]
    assert waits == [20.0, 40.0, 60.0] and len(reward.calls) == 4
    with pytest.raises(RewardError, match=r"reward 'r' failed \(ConnectionError: gone\)"):
        WeightedSum([("r", Retried(Lengths(failures=3), 2, seconds=0.0), 1.0)])(["p"], ["abc"])


def test_bad_input_is_not_tried_again():
    reward = Lengths(failures=1, error=InputError("no column"))
    with pytest.raises(InputError, match="no column"):
        Retried(reward, 5)(["p"], ["abc"])
    assert len(reward.calls) == 1


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 9])
def test_threads_share_out_a_batch_and_keep_its_order(rows: int):
    reward, texts = Lengths(), ["x" * number for number in range(rows)]
    columns: list[tuple] = []

    def with_columns(prompts: list, completions: list, level: list) -> list[float | None]:
        columns.extend(zip(prompts, completions, level, strict=True))
        return reward(prompts, completions)

    found = Threaded(with_columns, 4)([f"p{i}" for i in range(rows)], texts, level=list(range(rows)))
    assert found == [float(number) or None for number in range(rows)]
    assert sorted(columns, key=lambda row: row[2]) == [(f"p{i}", texts[i], i) for i in range(rows)]
    assert max(len(call) for call in reward.calls) == -(-rows // 4)


def test_threads_work_at_the_same_time():
    together = threading.Barrier(4, timeout=20)

    def waiting(prompts: list, completions: list) -> list[float | None]:
        together.wait()  # breaks unless all four parts are under way at once
        return [1.0] * len(completions)

    assert Threaded(waiting, 4)(["p"] * 8, ["c"] * 8) == [1.0] * 8


def test_a_part_with_too_few_values_is_not_passed_over():
    with pytest.raises(RewardError, match="it returned 1 values for 2 completions"):
        WeightedSum([("r", Threaded(lambda **columns: [1.0], 2), 1.0)])(["p"] * 4, ["c"] * 4)


def test_each_content_is_asked_for_once():
    reward = Lengths()
    cached = Cached(reward, "r")
    assert cached(["p"] * 4, ["ab", "abc", "ab", ""], level=[1, 1, 1, 1]) == [2.0, 3.0, 2.0, None]
    assert reward.calls == [["ab", "abc", ""]]
    assert cached(["p"] * 3, ["", "abc", "new"], level=[1, 1, 1]) == [None, 3.0, 3.0]
    assert reward.calls[1:] == [["new"]]
    assert (cached.hits, cached.asked) == (3, 4)
    chat = [{"role": "assistant", "content": "ab"}]
    for prompts, completions, columns in (
        (["q"], ["ab"], {"level": [1]}),
        (["p"], ["ab"], {"level": [2]}),
        (["p"], ["ab"], {"stage": [1]}),
        (["p"], [chat], {"level": [1]}),
    ):
        before = len(reward.calls)
        cached(prompts, completions, **columns)
        assert len(reward.calls) == before + 1
    cached(["p"], ["ab"], level=[1])
    assert len(reward.calls) == 6


def test_memory_forgets_what_was_used_longest_ago():
    reward = Lengths()
    cached = Cached(reward, "r", most=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        cached(["p"], [text])
    assert reward.calls == [["a"], ["b"], ["c"], ["b"]]


def test_values_are_on_disk_for_another_process_but_not_for_another_reward(tmp_path: Path):
    file = tmp_path / "cache" / "r.sqlite"
    texts = [str(number) * 3 for number in range(1200)]
    assert Cached(Lengths(), "r", file)(["p"] * 1200, texts) == [float(len(text)) for text in texts]
    again = Lengths()
    assert Cached(again, "r", file, most=3)(["p"] * 1200, texts) == [float(len(text)) for text in texts]
    assert again.calls == []
    other = Lengths()
    Cached(other, "other options", file)(["p"], texts[:1])
    assert other.calls == [texts[:1]]


def test_a_folder_that_is_moved_meanwhile_does_no_harm(tmp_path: Path):
    folder = tmp_path / "run"
    cached = Cached(Lengths(), "r", folder / "r.sqlite", most=0)
    cached(["p"], ["a"])
    folder.rename(tmp_path / "run.1")
    assert cached(["p"], ["a"]) == [1.0]
    assert (folder / "r.sqlite").is_file()


def test_what_is_no_reward_is_complained_about_and_not_kept(tmp_path: Path):
    values = iter([float("nan"), 2.0])
    cached = Cached(lambda **columns: [next(values)], "r", tmp_path / "r.sqlite")
    with pytest.raises(RewardError, match="returned nan for row 0"):
        WeightedSum([("r", cached, 1.0)])(["p"], ["a"])
    assert cached(["p"], ["a"]) == [2.0]


def test_a_cache_that_cannot_work_is_refused(tmp_path: Path):
    (tmp_path / "r.sqlite").write_text("no database " * 100)
    with pytest.raises(InputError, match=r"the cache .*r\.sqlite cannot be read .*remove it, or name another one"):
        Cached(Lengths(), "r", tmp_path / "r.sqlite")(["p"], ["a"])
    with pytest.raises(InputError, match=r"no JSON here .*set cache to false"):
        Cached(Lengths(), "r")(["p"], ["a"], column=[{1, 2}])
    odd = json.loads('"\\ud800"')
    assert Cached(Lengths(), "r")(["p"], [odd]) == [1.0]
