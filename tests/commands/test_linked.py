"""``segpt data link``: from files of ids of another program to a score."""

import struct
from pathlib import Path

import numpy as np
import pytest

from .conftest import RECIPE, Segpt

pytestmark = pytest.mark.slow


def shard(path: Path, stream: list[int]) -> None:
    head = struct.pack("<256i", 20240520, 1, len(stream), *[0] * 253)
    path.write_bytes(head + np.array(stream, "<u2").tobytes())


def documents(count: int, first: int) -> list[int]:
    """Ids of the tokenizer of bytes."""
    texts = [f"Document {i}. {i} in the cube is {i * 7 % 97}. " * 6 for i in range(first, count)]
    return [i for text in texts for i in (256, *text.encode())]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    stream = documents(60, 0)
    shard(tmp_path / "fineweb_train_000001.bin", stream[:7000])
    shard(tmp_path / "fineweb_train_000002.bin", stream[7000:])
    shard(tmp_path / "fineweb_val_000000.bin", documents(1005, 1000))
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path


def test_from_files_of_ids_to_a_score(place: Path, run: Segpt) -> None:
    refused = run(place, "data", "link", "--train", "fineweb_train_*.bin")
    assert refused.code == 2
    assert "--tokenizer" in refused.stderr

    link = ("data", "link", "--train", "fineweb_train_*.bin", "--tokenizer", "bytes", "--json")
    linked = run(place, *link).json
    assert linked["documents"] == 60
    assert linked["tokens"] == len(documents(60, 0)) == linked["bytes"] + 60
    assert linked["validation"]["documents"] == 5
    assert run(place, *link).json == linked
    steps = ("--set", "train.length.count=4", "--set", "train.save_every=2", "--json")
    assert run(place, "train", "--recipe", "tiny.yaml", *steps).code == 0
    assert run(place, "quantize", "--bits", "6").code == 0
    score = run(place, "score", "runs/tiny", "--json").json
    assert score["bytes"] == linked["validation"]["bytes"]

    checked = run(place, "data", "check", f"{linked['out']}/train", f"{linked['out']}/validation")
    assert checked.code == 0
    path = place / "fineweb_train_000002.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    changed = run(place, "train", "--recipe", "tiny.yaml", "--out", "runs/other")
    assert changed.code == 2
    assert "fineweb_train_000002.bin: its SHA-256" in changed.stderr
    assert len(changed.stderr.strip().splitlines()[-1].split("segpt data link")) == 2


def test_the_first_file_is_chosen(place: Path, run: Segpt) -> None:
    link = ("data", "link", "--train", "fineweb_train_*.bin", "--tokenizer", "bytes", "--json")
    rotated = run(place, *link, "--begin-shard", "4", "--validation", "fineweb_val_*.bin")
    assert "from fineweb_train_000002.bin on" in rotated.stderr
    assert rotated.json["tokens"] == len(documents(60, 0))
    shared = run(place, *link, "--validation", "fineweb_val_*.bin", "--start", "5")
    assert shared.code == 2
    assert "no --start" in shared.stderr
