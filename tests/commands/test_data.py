"""``segpt data prepare`` and ``segpt tokenizer train`` on texts of a user's own."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import processes

from .conftest import Segpt

PARAGRAPHS = [f"Paragraph {i} says that {i * i % 97} is\nthe rest of {i}.\n\n" for i in range(300)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with one plain text, as most users have it."""
    (tmp_path / "mine.txt").write_text("".join(PARAGRAPHS))
    return tmp_path


@pytest.mark.slow
def test_files_of_ids_are_described(place: Path, run: Segpt) -> None:
    (place / "train.bin").write_bytes(bytes([3, 0, 1, 0, 255, 1]))
    (row,) = run(place, "data", "inspect", "train.bin", "--ids", "uint16", "--json").json["files"]
    assert row["form"] == "headerless"
    assert [row[name] for name in ("tokens", "first", "smallest", "largest")] == [3, 3, 1, 511]


@pytest.mark.slow
def test_one_plain_text_is_all_it_takes(place: Path, run: Segpt) -> None:
    done = run(place, "data", "prepare", "mine.txt", "--json")
    size = (place / "mine.txt").stat().st_size
    assert done.json["bytes"] + done.json["validation"]["bytes"] == size
    assert done.json["out"] == "runs/data/mine"
    assert 300 < done.json["vocab"] <= 512
    first, second, *_ = done.stderr.splitlines()
    assert first == f"text: mine.txt ({size:,} bytes), 5 % held out"
    assert "the last" in second
    assert "end of a paragraph" in second

    again = run(place, "data", "prepare", "mine.txt", "--resume", "--json")
    assert again.json == done.json
    assert "nothing to do" in again.stderr

    (place / "other.jsonl").write_text(
        "".join(json.dumps({"text": p}) + "\n" for p in [*PARAGRAPHS, PARAGRAPHS[7]])
    )
    second_text = run(
        place, "data", "prepare", "other.jsonl", "--tokenizer", "runs/data/mine", "--json"
    )
    assert second_text.json["vocab"] == done.json["vocab"]
    assert second_text.json["repeated"] + second_text.json["validation"]["repeated"] == 1

    (place / "mine.txt").write_text("".join(PARAGRAPHS[:200]))
    changed = run(place, "data", "prepare", "mine.txt", "--tokenizer", "bytes", "--json")
    assert changed.json["out"] == "runs/data/mine-2"
    assert (place / "runs" / "data" / "mine" / "train" / "manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("mine.txt", "--out", "."), "holds the text itself (mine.txt)"),
        ((".", "--out", "."), "holds the text itself"),
        (("mine.txt", "--out", "mine.txt"), "holds the text itself"),
        (("mine.txt", "--tokenizer", "bytes", "--out", "full"), "holds 'thesis.txt'"),
        (("mine.txt", "--tokenizer", "bytes", "--vocab", "512"), "leave out --vocab"),
        (("mine.txt", "--validation", "a.txt", "--held-out", "0.1"), "leave out --held-out"),
        (("--validation", "mine.txt"), "belongs to a training text"),
        (("mine.txt", "--vocab", "5000"), "yields only"),
        (("mine.txt", "--tokenizer", "nowhere"), "nowhere: no such tokenizer"),
    ],
)
def test_what_would_lose_or_ignore_something_is_refused(
    place: Path, run: Segpt, args: tuple[str, ...], words: str
) -> None:
    (place / "full").mkdir()
    (place / "full" / "thesis.txt").write_text("ten years")
    done = run(place, "data", "prepare", *args)
    assert done.code == 2
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert (place / "full" / "thesis.txt").read_text() == "ten years"
    assert (place / "mine.txt").read_text() == "".join(PARAGRAPHS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [".hidden.txt", "..txt", "caf\udce9 au lait.txt", "builtin-4096.txt"]
)
def test_the_place_of_a_text_has_a_plain_name(place: Path, anew: Segpt, name: str) -> None:
    try:
        (place / name).write_text("".join(PARAGRAPHS))
    except OSError:
        pytest.skip("the file system takes no such names")
    done = anew(place, "data", "prepare", name, "--tokenizer", "bytes", "--json", LC_ALL="C")
    made = Path(done.json["out"])
    assert made.parent == Path("runs/data")
    assert made.name.replace("-", "").replace("my", "").isalnum()
    assert made.name not in ("", "builtin-4096")


@pytest.mark.slow
def test_an_interrupted_preparation_says_how_to_go_on(place: Path, run: Segpt) -> None:
    rows = (json.dumps({"text": f"document {i} of many"}) + "\n" for i in range(60_000))
    (place / "many.jsonl").write_text("".join(rows))
    command = ("data", "prepare", "many.jsonl", "--tokenizer", "bytes", "--out", "made")
    process = processes.Popen(
        ["-m", "segpt", *command],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (place / ".made.unfinished" / "train").is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "To go on, repeat the command: segpt data prepare many.jsonl" in stderr.splitlines()[-1]
    assert not (place / "made").exists()
    done = run(place, *command, "--json")
    assert "going on where an interrupted call stopped" in done.stderr
    assert done.json["documents"] + done.json["validation"]["documents"] == 60_000
    assert not (place / ".made.unfinished").exists()


def test_a_tokenizer_fits_the_text_and_replaces_no_other_file(place: Path, run: Segpt) -> None:
    done = run(place, "tokenizer", "train", "mine.txt", "--json")
    assert Path(done.json["out"]).name == f"tokenizer-{done.json['vocab']}.json"
    assert run(place, "tokenizer", "train", "mine.txt", "--json").json == done.json
    (place / "thesis.json").write_text('{"years": 10}')
    refused = run(place, "tokenizer", "train", "mine.txt", "--out", "thesis.json")
    assert refused.code == 2
    assert "is not what this command writes" in refused.stderr
    assert (place / "thesis.json").read_text() == '{"years": 10}'
