"""`segpt inspect --budget`: a line per file, exit codes, annotations in continuous integration."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "tests" / "artifact" / "format-1.segpt"
SIZE = SMALL.stat().st_size


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a sound artifact under several names, and files that are none."""
    for name in ("a.segpt", "b.segpt", "odd, name: 100%.segpt"):
        (tmp_path / name).write_bytes(SMALL.read_bytes())
    damaged = bytearray(SMALL.read_bytes())
    damaged[SIZE // 2] ^= 1
    (tmp_path / "damaged.segpt").write_bytes(damaged)
    (tmp_path / "empty.segpt").write_bytes(b"")
    (tmp_path / "folder.segpt").mkdir()
    return tmp_path


def annotations(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("::")]


def test_one_line_for_each_file(place: Path, run: Run) -> None:
    done = run(place, "inspect", "--budget", SIZE, "a.segpt", "b.segpt")
    assert (done.code, done.stderr) == (0, "")
    line = f"{SIZE:,} bytes, 0 bytes below the budget of {SIZE:,}"
    assert done.stdout == f"a.segpt: {line}\nb.segpt: {line}\n"


def test_the_exit_code_is_1_when_any_is_over(place: Path, run: Run) -> None:
    done = run(place, "inspect", "a.segpt", "b.segpt", "--budget", SIZE - 1)
    assert done.code == 1
    over = f"{SIZE:,} bytes, 1 bytes OVER the budget of {SIZE - 1:,}"
    assert done.stdout == f"a.segpt: {over}\nb.segpt: {over}\n"
    assert annotations(done.stderr) == [
        f"::error file=a.segpt::{over}",
        f"::error file=b.segpt::{over}",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [SIZE, SIZE - 1])
@pytest.mark.parametrize("broken", ["damaged.segpt", "empty.segpt", "folder.segpt", "gone.segpt"])
def test_a_broken_file_is_reported_and_the_others_are_checked(
    place: Path, run: Run, broken: str, budget: int
) -> None:
    done = run(place, "inspect", "a.segpt", broken, "b.segpt", "--budget", budget)
    assert done.code == 2
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["a.segpt", "b.segpt"]
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("segpt: "))
    assert broken in said
    over = 2 if budget < SIZE else 0
    assert len(annotations(done.stderr)) == 1 + over
    assert sum(f"file={broken}::" in line for line in annotations(done.stderr)) == 1


def test_only_broken_files(place: Path, run: Run) -> None:
    done = run(place, "inspect", "damaged.segpt", "empty.segpt", "--budget", 9)
    assert (done.code, done.stdout) == (2, "")
    assert run(place, "inspect", "damaged.segpt", "--budget", 9).code == 2


def test_annotations_are_of_continuous_integration_only(place: Path, run: Run) -> None:
    done = run(place, "inspect", "a.segpt", "damaged.segpt", "--budget", 1, CI="")
    assert done.code == 2
    assert "::" not in done.stdout + done.stderr


def test_annotations_are_escaped(place: Path, run: Run) -> None:
    done = run(place, "inspect", "odd, name: 100%.segpt", "--budget", 1)
    (line,) = annotations(done.stderr)
    assert line.startswith("::error file=odd%2C name%3A 100%25.segpt::1,018 bytes, ")
    assert "::1,018 bytes, 1,017 bytes OVER" in line


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="names of files that only POSIX has")
@pytest.mark.parametrize(
    ("odd", "shown"),
    [
        (b"two\nlines.segpt", "two\\nlines.segpt"),
        (b"two\r\n::error::x.segpt", "two\\r\\n::error::x.segpt"),
        (b"\x1b[2Jclear.segpt", "\\x1b[2Jclear.segpt"),
        (b"latin-\xe9.segpt", "latin-?.segpt"),
    ],
)
@pytest.mark.parametrize("content", [SMALL.read_bytes(), b"broken"])
def test_names_cannot_forge_lines(tmp_path: Path, odd: bytes, shown: str, content: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + odd
    Path(os.fsdecode(path)).write_bytes(content)
    (tmp_path / "a.segpt").write_bytes(SMALL.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "segpt", "inspect", odd, "a.segpt", "--budget", "1"],
        cwd=tmp_path,
        env=os.environ | {"CI": "true"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == (2 if content == b"broken" else 1), done.stderr
    if content == b"broken":  # what a message says has spaces for line breaks
        shown = shown.replace("\\n", " ").replace("?", "\\udce9")
    lines = (done.stdout + done.stderr).decode().splitlines()
    assert len(lines) == 4  # a line and an annotation for each of the two
    assert any(shown in line for line in lines if not line.startswith("::"))
    forged = [line for line in lines if line.startswith("::error::")]
    assert not forged


def test_json_of_one_file_and_of_several(place: Path, run: Run) -> None:
    one = run(place, "inspect", "a.segpt", "--json").json
    assert one["bytes"] == sum(one["sections"].values()) == SIZE
    assert one["format"] == 1
    assert {"file", "roles", "parameters", "digest", "spec", "model", "origin"} <= one.keys()
    several = run(place, "inspect", "a.segpt", "damaged.segpt", "--budget", SIZE - 1, "--json")
    assert several.code == 2
    first, second = json.loads(several.stdout)["files"]
    assert first == one | {"budget": SIZE - 1, "over": 1}
    assert second.keys() == {"file", "error"}
    assert "SHA-256" in second["error"]
    assert len(annotations(several.stderr)) == 2
    assert run(place, "inspect", "a.segpt", "--budget", 1, "--json").code == 1


def test_a_table_for_each_of_several_files(place: Path, run: Run) -> None:
    done = run(place, "inspect", "a.segpt", "b.segpt")
    assert done.code == 0
    assert done.stdout.count("bits per weight") == 2
