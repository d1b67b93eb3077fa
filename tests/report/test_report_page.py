"""The page as a file: whole, closed to the network, inert whatever was sampled; and what the command says."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_folders import HOSTILE, rollout, write_answers, write_run

from gkd_rl.cli import main
from gkd_rl.errors import UserError
from gkd_rl.report.chunks import unpacked
from gkd_rl.report.page import write_report


class _Page(HTMLParser):
    """Tags with their attributes, and the texts of scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.policy = ""
        self.within = False
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        (text,) = [text for attributes, text in self.scripts if attributes.get("id") == "data"]
        self.data = json.loads(text)

    def handle_starttag(self, tag, attrs) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.within = tag == "script"
        if self.within:
            self.scripts.append((attributes, ""))
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"] or ""

    def handle_endtag(self, tag) -> None:
        self.within = False

    def handle_data(self, data) -> None:
        if self.within:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)

    def part(self, name: str):
        (text,) = [text for attributes, text in self.scripts if attributes.get("id") == name.removeprefix("#")]
        return unpacked(text)


@pytest.fixture
def page(tmp_path: Path) -> _Page:
    rows = [rollout(1, 2, i, completion=HOSTILE, prompt=HOSTILE, columns={"reference": HOSTILE}) for i in range(4)]
    folder = write_run(tmp_path / "<img src=x>", "task.options={note: '</script><b>'}", rollouts=rows)
    (folder / "watch.jsonl").write_text(
        json.dumps({"step": 9, "found": HOSTILE, "most_rewarded": [{"reward": 1, "completion": HOSTILE}]}) + "\n"
    )
    return _Page(write_report([folder], tmp_path / "page.html"))


def test_hostile_texts_stay_data(page: _Page):
    assert not [tag for tag, _ in page.tags if tag in ("img", "b")]
    assert [attributes for attributes, _ in page.scripts if attributes.get("type") is None] == [{}, {}], "plotly's and the page's own code"
    assert page.data["runs"][0]["watch"][0]["found"] == HOSTILE
    texts = page.part(page.data["runs"][0]["chunks"][0]["texts"])
    assert texts["completion"] == [HOSTILE] * 4 and texts["prompts"] == [HOSTILE]


def test_only_the_pages_own_code_may_run_and_nothing_is_fetched(page: _Page):
    directives = dict(part.strip().split(" ", 1) for part in page.policy.split(";"))
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for attributes, text in page.scripts if not attributes]
    assert directives["script-src"].split() == [f"'sha256-{value}'" for value in hashes]
    assert directives["default-src"] == directives["connect-src"] == "'none'"
    outside = [a for _, a in page.tags for name in ("src", "href") if re.match(r"(https?:)?//", a.get(name) or "")]
    assert not outside


def test_a_finished_run_is_whole(tmp_path: Path):
    folder = write_run(tmp_path / "run", "objective.alpha=0.25")
    (run,) = _Page(write_report([folder], tmp_path / "page.html")).data["runs"]
    assert run["metrics"]["step"] == list(range(1, 31)) and run["metrics"]["values"]["padding_share"] == [0.1] * 30
    assert run["flops"]["flops_teacher"] == 6e10 and run["phases"] == {"sample": 15.0, "teacher": 6.0, "student": 30.0}
    assert run["summary"]["after"]["accuracy"] == 0.6 and run["alpha"] == 0.25 and run["notes"] == []
    assert sum(chunk["rows"] for chunk in run["chunks"]) == 48 and run["tokens"]["7"] == "+"


def test_a_run_that_crashed_is_shown_as_far_as_it_came(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=7, finished=False)
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"step": 8, "lo')
    (run,) = _Page(write_report([folder], tmp_path / "page.html")).data["runs"]
    assert run["summary"] is None and run["metrics"]["step"][-1] == 7 and run["max_steps"] == 30


@pytest.mark.parametrize("name", ["environment.json", "metrics.jsonl", "timings.jsonl", "rollouts.jsonl", "summary.json"])
def test_what_a_run_has_not_left_is_left_out(tmp_path: Path, name: str):
    folder = write_run(tmp_path / "run")
    (folder / name).unlink()
    assert _Page(write_report([folder], tmp_path / "page.html")).data["runs"][0]["name"] == "run"


def test_parts_that_are_elsewhere_are_named_on_the_page(tmp_path: Path):
    folder = write_run(tmp_path / "run", "student.path=/nowhere/model", "task.path=nowhere.Task")
    notes = _Page(write_report([folder], tmp_path / "page.html")).data["runs"][0]["notes"]
    assert [note.partition(":")[0] for note in notes] == ["tokens are shown by their numbers", "the verifier's reading is left out"]
    assert "/nowhere/model" in notes[0] and "nowhere" in notes[1]


def test_a_configuration_of_another_version_does_not_keep_a_run_from_being_shown(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + "unheard_of: 3\n")
    page = _Page(write_report([folder], tmp_path / "page.html"))
    assert "unheard_of" in page.data["runs"][0]["notes"][0]
    assert {"key": "unheard_of", "default": None, "values": ["3"], "between": False} in page.data["settings"]


def test_answers_to_held_out_examples_are_packed_and_prompts_are_not_repeated(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    write_answers(folder, [0, 1], [1, 1], HOSTILE)
    page = _Page(write_report([folder], tmp_path / "page.html"))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    before, after = (page.part(page.data["runs"][0]["answers"][when]) for when in ("before", "after"))
    assert [row["right"] for row in before] == [False, True] and before[1]["prompt"] == f"What is 1? {HOSTILE}"
    assert after == [{"example": i, "right": True, "completion": f"after {i} {HOSTILE}"} for i in range(2)]


def test_answers_to_other_held_out_examples_keep_their_prompts(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    write_answers(folder, [0], [1, 0])
    page = _Page(write_report([folder], tmp_path / "page.html"))
    after = page.part(page.data["runs"][0]["answers"]["after"])
    assert "prompt" not in after[0] and after[1]["prompt"] == "What is 1? x" and after[1]["reference"] == "reference 1"


def test_the_same_run_gives_the_same_page(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    one, other = (write_report([folder], tmp_path / name).read_bytes() for name in ("one.html", "other.html"))
    assert one == other


def _damaged(folder: Path) -> Path:
    (folder / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["EMPTY"], "holds no run (there is no config.yaml in it); give the run_dir"),
        (["RUN", "RUN"], "is given twice; name each run once"),
        (["DAMAGED"], "metrics.jsonl, line 2: not a JSON object"),
        (["RUN", "--out", "EMPTY/none/page.html"], "cannot be written (No such file or directory)"),
        (["RUN", "--serve", "--out", "x.html"], "--serve writes none"),
        (["RUN", "--port", "99"], "add --serve"),
        (["RUN", "--serve", "--port", "99999"], "--port 99999 cannot be listened on"),
        ([], "RUN_DIR"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str):
    (tmp_path / "EMPTY").mkdir()
    write_run(tmp_path / "RUN")
    _damaged(write_run(tmp_path / "DAMAGED"))
    with pytest.raises(SystemExit) as left:
        main(["report", *(str(tmp_path / word) if word[0].isupper() else word for word in arguments)])
    error = capsys.readouterr().err
    assert left.value.code == 2 and said in error and error.count("\n") == 1


def test_the_command_writes_into_the_first_runs_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", "seed=4")
    with pytest.raises(SystemExit) as left:
        main(["report", str(one), str(other)])
    assert left.value.code == 0 and "one/report.html" in "".join(capsys.readouterr().out.split())
    page = _Page(one / "report.html")
    assert [run["name"] for run in page.data["runs"]] == ["one", "other"]
    assert [row["key"] for row in page.data["settings"] if row["between"]] == ["seed"]


def test_without_plotly_a_run_ends_as_ever_and_says_what_to_install(tmp_path: Path, monkeypatch, capsys):
    from gkd_rl.report.closing import close_run

    folder = write_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    monkeypatch.setitem(sys.modules, "plotly", None)  # as where it is not installed
    close_run(folder, summary | {"accuracy_before": 0.2, "accuracy_after": 0.6, "accuracy_teacher": 0.9})
    said = capsys.readouterr().out
    assert "pip install 'gkd-rl[report]' && gkd-rl report" in said and "report     " not in said
    assert not (folder / "report.html").exists()
    with pytest.raises(UserError, match=r"draws with plotly, which is not installed; pip install 'gkd-rl\[report\]'"):
        write_report([folder], tmp_path / "page.html")


def test_a_run_ends_with_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from gkd_rl.report.closing import close_run

    folder = write_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    close_run(folder, summary | {"accuracy_before": 0.2, "accuracy_after": 0.6, "accuracy_teacher": 0.9})
    said = capsys.readouterr().out
    assert f"report     {folder / 'report.html'}" in said and "gkd-rl[report]" not in said
    assert _Page(folder / "report.html").data["runs"][0]["summary"] == summary


def test_a_report_over_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be written"):
        write_report([write_run(tmp_path / "run")], tmp_path)
