"""What is named where something else belongs: a line says what it is, and what to do instead."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Command = Callable[..., Result]


@pytest.fixture
def place(workplace: Path, line: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the whole line was run; nothing may be changed there."""
    assert line["score"]["bpb"]
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("CI", "1")
    return workplace


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("pack runs/tiny", ("is a run and not a quantized model", "segpt quantize runs/tiny")),
        ("pack runs/tiny/step-00000030", ("is a checkpoint and not", "segpt quantize runs/tiny/")),
        ("pack train.jsonl", ("train.jsonl is a file and not a quantized model",)),
        ("quantize runs/tiny.segpt", ("is a file and not a checkpoint", "name a run")),
        ("quantize runs/tiny-quantized", ("is a quantized model and not a checkpoint",)),
        ("train --data train.jsonl", ("a file", "segpt data prepare train.jsonl")),
        ("train --resume runs/nowhere", ("runs/nowhere does not exist", "segpt runs")),
        ("train --set train.batch=0", ("batch must be at least 1, got 0",)),
        ("score train.jsonl", ("train.jsonl is a text", "segpt score MODEL train.jsonl")),
        ("sample train.jsonl", ("train.jsonl is a text",)),
    ],
)
def test_what_is_named_is_said_with_the_remedy(
    place: Path, segpt: Command, arguments: str, words: tuple[str, ...]
) -> None:
    before = sorted(str(p) for p in place.rglob("*"))
    result = segpt(*arguments.split())
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("segpt: ")]
    for word in words:
        assert word in line
    assert sorted(str(p) for p in place.rglob("*")) == before


def test_over_budget_the_remedy_names_the_budget(place: Path, segpt: Command) -> None:
    assert place.is_dir()
    result = segpt("pack", "runs/tiny-quantized", "--budget", "100", "--out", "small.segpt")
    assert result.exit_code == 1
    assert "quantize with --budget 100," in result.stderr


@pytest.mark.parametrize("arguments", [(), ("data",), ("leaderboard",)])
def test_without_a_command_the_commands_are_listed(
    segpt: Command, arguments: tuple[str, ...]
) -> None:
    result = segpt(*arguments)
    lines = (result.stderr or result.stdout).splitlines()
    assert lines[0].startswith("Usage: ")
    assert "Commands:" in lines
    assert max(map(len, lines)) < 100


def test_a_score_names_its_text_and_runs_finds_the_score(
    workplace: Path, line: dict[str, Any], tmp_path: Path, segpt: Command, monkeypatch: Any
) -> None:
    assert line["score"]["text"] == "held.jsonl"
    shutil.copytree(workplace / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    result = segpt("score", "--out", "runs/tiny/score.json")
    assert result.exit_code == 0, result.output
    assert " bits per byte on held.jsonl (" in result.stdout.splitlines()[0]
    rows = json.loads(segpt("runs", "--json").stdout)["rows"]
    (row,) = [row for row in rows if row["path"] == "runs/tiny.segpt"]
    assert row["bpb"] == line["score"]["bpb"]
    assert row["bpb_of"] == "held.jsonl"
    states = {row["path"]: row["state"] for row in rows if row["kind"] == "checkpoint"}
    assert len(states) > 1
    assert set(states.values()) == {"finished"}


def test_a_prepared_directory_stands_for_its_held_out_part(
    workplace: Path, line: dict[str, Any], tmp_path: Path, segpt: Command, monkeypatch: Any
) -> None:
    """In a score, and where a record on one's own text is verified."""
    shutil.copytree(workplace / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    score = json.loads(segpt("score", "runs/tiny.segpt", line["data"]["out"], "--json").stdout)
    assert score["bpb"] == line["score"]["bpb"]
    board = tmp_path / "my board"
    board.mkdir()
    (board / "tracks.toml").write_text('[[tracks]]\nname = "mine"\nabout = "mine"\n')
    assert segpt("score", "--out", "s.json").exit_code == 0
    names = ("--track", "mine", "--name", "first", "--author", "me", "--dir", board)
    added = segpt("leaderboard", "add", "runs/tiny.segpt", "--score", "s.json", *names)
    assert added.exit_code == 0, added.output
    remedy = shlex.split(added.stdout.rpartition("render the pages: segpt ")[2])
    missing = segpt(*remedy)
    assert missing.exit_code == 2
    markers = re.findall("<!-- .*? -->", missing.stderr)
    (board / "README.md").write_text("\n".join(["# Mine", *markers, ""]))
    assert segpt(*remedy).exit_code == 0
    assert "first" in (board / "README.md").read_text()
    verify = ("leaderboard", "verify", "first", "--dir", board, "--text", line["data"]["out"])
    verified = segpt(*verify)
    assert verified.exit_code == 0, verified.output
