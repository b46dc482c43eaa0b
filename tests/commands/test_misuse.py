"""Misuse of every kind is one line and exit code 2, whatever the streams, names and limits are."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

LIMITED = (
    "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
    "from segpt.__main__ import main; main()"
)


Done = subprocess.CompletedProcess[bytes]


def segpt(place: Path, *args: Any, code: str = "", **options: Any) -> Done:
    """Run ``segpt`` with names as bytes, so that they need not be text."""
    start = ["-c", code] if code else ["-m", "segpt"]
    return subprocess.run(
        [sys.executable, *start, *args],
        cwd=place,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CI": "1"},
        **(options or {"capture_output": True}),
    )


def one_line(done: Done, *words: bytes) -> None:
    assert done.returncode == 2, done.stderr
    # The first line names the text that is read; GitHub is told of errors in its own way.
    before = (b"::error", b"text: ", b"training text: ")
    lines = [line for line in done.stderr.splitlines() if not line.startswith(before)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(b"segpt: ")
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.slow
def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.segpt")
    one_line(segpt(tmp_path, "inspect", name), rb"\udcff.segpt")
    (tmp_path / name).write_bytes(b"x")
    one_line(segpt(tmp_path, "inspect", name), rb"\udcff.segpt")
    folder = tmp_path / os.fsdecode(b"d\xff")
    folder.mkdir()
    (folder / os.fsdecode(b"train\xff.py")).write_text("print(1)\n")
    for more in ((), ("--json",)):
        done = segpt(tmp_path, "leaderboard", "check-folder", folder.name, *more)
        assert done.returncode == 1, done.stderr
        assert rb"train\udcff.py" in done.stdout
        assert done.stderr == b""


def closed(number: int) -> Any:
    return lambda: os.close(number)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_closed_streams(number: int, tmp_path: Path) -> None:
    done = segpt(
        tmp_path,
        *("inspect", "nowhere.segpt"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=closed(number),
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"segpt: cannot read nowhere.segpt" in done.stderr or number == 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_full_streams(tmp_path: Path) -> None:
    full: IO[bytes]
    with Path("/dev/full").open("wb") as full:
        done = segpt(tmp_path, "inspect", "nowhere", stdout=subprocess.PIPE, stderr=full)
        assert done.returncode == 2
        listed = segpt(
            tmp_path, "leaderboard", "check-folder", ".", stdout=full, stderr=subprocess.PIPE
        )
    one_line(listed, b"No space left")


@pytest.mark.slow
def test_memory_that_ends(tmp_path: Path) -> None:
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(2 << 30)
    done = segpt(
        tmp_path,
        *("data", "prepare", "large.txt", "--tokenizer", "bytes", "--out", "data"),
        code=LIMITED,
    )
    one_line(done, b"memory")
    assert not (tmp_path / "data").exists()


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "word"),
    [
        (f"{BOMB}name: *a29\n", b"aliases"),
        ("model: &m\n  layers: *m\n", b"alias"),
        ('name: "\\uD800"\n', b"surrogate"),
        (f"name: x\ntrain: {{seed: 0x{'f' * 5_000}}}\n", b"digits"),
        (f"name: x\ntrain: {{seed: {'9' * 5_000}}}\n", b"not valid YAML"),
        ("name: x\nabout: [" + "[" * 5_000, b"not valid YAML"),
    ],
    ids=["expands", "holds itself", "surrogate", "hexadecimal", "decimal", "deep"],
)
def test_recipes_that_are_larger_than_they_look(text: str, word: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    one_line(segpt(tmp_path, "train", "--recipe", "a.yaml", "--dry-run"), b"a.yaml", word)


@pytest.mark.slow
def test_a_setting_that_is_larger_than_it_looks(tmp_path: Path) -> None:
    for value in ("{a: &a [*a]}", f"0x{'f' * 5_000}", '"\\uD800"', "a\udcff"):
        setting = f"train.seed={value}"
        one_line(segpt(tmp_path, "train", "--set", setting, "--dry-run"), b"train.seed")
