"""``segpt report`` on the run that the line left behind, part by part."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def left(line: dict[str, Any], workplace: Path, tmp_path: Path) -> Path:
    """A directory with the ``runs`` of the line, and the score with test-time training in it."""
    assert line["train"]["steps"] == 30
    shutil.copytree(workplace / "runs", tmp_path / "runs")
    return tmp_path


def test_the_newest_run_is_shown_with_what_lies_beside_it(left: Path, run: Run) -> None:
    done = run(left, "report", "--json").json
    assert done.keys() == {"out", "bytes", "png", "missing", "notices"}
    assert done["out"] == str(Path("runs") / "tiny" / "report.html")
    assert done["png"] is None
    assert list(done["missing"]) == ["score", "ttt", "samples"]
    data = (left / done["out"]).read_bytes()
    assert len(data) == done["bytes"] <= 500_000
    text = data.decode()
    for title in ("Bits per byte", "Learning rates", "Bits per weight, by layer", "Bytes by role"):
        assert f"<strong>{title}</strong>" in text
    assert not re.search(r"https?://", text)


@pytest.mark.slow
def test_the_commands_that_it_names_add_what_is_missing(left: Path, run: Run) -> None:
    missing = run(left, "report", "--json").json["missing"]
    for part in ("score", "ttt"):
        words = missing[part].split()
        assert words[0] == "segpt"
        assert run(left, *words[1:]).code == 0
    program, _, target = missing["samples"].partition(" > ")
    words = program.replace("'The '", "The").split()
    (left / target).write_text(run(left, *words[1:], "--tokens", "4").stdout)
    done = run(left, "report")
    assert done.code == 0
    assert "missing" not in done.stdout
    text = (left / "runs" / "tiny" / "report.html").read_text()
    assert "Bits per byte as the text goes by" in text
    assert "What learning on the way saves" in text
    assert "Not there yet" not in text


@pytest.mark.slow
def test_the_page_and_the_picture_go_where_they_are_asked_for(left: Path, run: Run) -> None:
    args = ("runs/tiny", "--out", "new/page.html", "--png", "new/curves.png")
    done = run(left, "report", *args)
    assert done.code == 0, done.stderr
    assert done.stdout.startswith("new/page.html shows the run")
    assert "ttt is missing; to add it: segpt score runs/tiny.segpt --ttt --out " in done.stdout
    assert (left / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")
    first = (left / "new" / "page.html").read_bytes()
    assert run(left, "report", *args).code == 0
    assert (left / "new" / "page.html").read_bytes() == first
    assert not (left / "runs" / "tiny" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("given", [(), ("nowhere",), ("runs",), ("runs/tiny.segpt",)])
def test_what_is_no_run_is_bad_input(
    left: Path, tmp_path: Path, run: Run, given: tuple[str, ...]
) -> None:
    place = left
    if not given:
        place = tmp_path / "empty"
        place.mkdir()
    done = run(place, "report", *given)
    assert done.code == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("segpt: ")


def test_a_damaged_file_is_named(left: Path, run: Run) -> None:
    (left / "runs" / "tiny" / "metrics.jsonl").write_text("{}\n{}\n")
    done = run(left, "report")
    assert done.code == 2
    assert "metrics.jsonl is not what segpt writes in line 1: 'step' is missing" in done.stderr
    assert not (left / "runs" / "tiny" / "report.html").exists()
