"""``segpt compress`` and ``segpt decompress``: the file comes back, or nothing is written."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segpt.artifact.container import load, pack, unpack

Run = Callable[..., Any]
TEXT = "Document 7. the sum of 7 is 0. the cube of 7 is 7. naïve 🙂\r\n".encode()


def refused(done: Any, *words: str) -> None:
    assert done.code == 2, (done.stdout, done.stderr)
    lines = [x for x in done.stderr.splitlines() if x.startswith("segpt:")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture
def packed(line: Any, workplace: Path) -> Path:
    """The artifact of the tiny line."""
    place: Path = workplace / line["pack"]["out"]
    return place


@pytest.mark.slow
def test_a_file_comes_back(line: Any, packed: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    made = run(tmp_path, "compress", "a.txt", "--artifact", packed, "--json").json
    data = (tmp_path / "a.txt.segz").read_bytes()
    assert made["out"] == "a.txt.segz"
    assert (made["bytes_in"], made["bytes_out"]) == (len(TEXT), len(data))
    assert made["bpb"] == 8 * len(data) / len(TEXT)
    # The end of a code is cut where what follows does not matter, by chance a few bits early.
    assert -8 < 8 * made["payload"] - made["ideal_bits"] <= 16
    assert made["artifact"] == line["pack"]["digest"]
    assert made["spec"]["policy"] == {"kind": "frozen"}
    done = run(
        tmp_path, "decompress", "a.txt.segz", "--artifact", packed, "--out", "b", "--json"
    ).json
    assert (done["bytes_in"], done["bytes_out"]) == (len(data), len(TEXT))
    assert done["bpb"] == made["bpb"]
    assert (tmp_path / "b").read_bytes() == TEXT


@pytest.mark.slow
def test_the_newest_artifact_and_a_policy_in_plain_words(
    line: Any, workplace: Path, run: Run
) -> None:
    file = workplace / "plain.bin"
    file.write_bytes(bytes(range(90)))
    done = run(workplace, "compress", "plain.bin", "--ttt", "sgd", "--set", "adapt.rate=0.02")
    assert done.code == 0, done.stderr
    assert "bits per byte" in done.stdout
    assert line["pack"]["digest"] in done.stdout
    file.unlink()
    done = run(workplace, "decompress", "plain.bin.segz")
    assert done.code == 0, done.stderr
    assert file.read_bytes() == bytes(range(90))
    assert "\r" not in done.stdout + done.stderr


def test_an_empty_file_comes_back(packed: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty").write_bytes(b"")
    made = run(tmp_path, "compress", "empty", "--artifact", packed, "--json").json
    assert made["bpb"] is None
    assert made["bytes_in"] == 0
    done = run(tmp_path, "decompress", "empty.segz", "--artifact", packed, "--out", "again")
    assert done.code == 0, done.stderr
    assert (tmp_path / "again").read_bytes() == b""


@pytest.mark.slow
def test_nothing_is_overwritten_unless_forced(packed: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "a").write_bytes(TEXT[:9])
    (tmp_path / "a.segz").write_bytes(b"precious")
    args = ("compress", "a", "--artifact", packed)
    refused(run(tmp_path, *args), "a.segz exists already", "--force")
    assert (tmp_path / "a.segz").read_bytes() == b"precious"
    assert run(tmp_path, *args, "--force").code == 0
    args = ("decompress", "a.segz", "--artifact", packed)
    refused(run(tmp_path, *args), "a exists already", "--out")
    (tmp_path / "a").write_bytes(b"old")
    assert run(tmp_path, *args, "--force").code == 0
    assert (tmp_path / "a").read_bytes() == TEXT[:9]
    refused(run(tmp_path, *args, "--force", "--out", "."), "exists already; choose another --out")


@pytest.mark.slow
def test_damage_and_other_artifacts_write_nothing(
    line: Any, packed: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "a").write_bytes(TEXT[:20])
    assert run(tmp_path, "compress", "a", "--artifact", packed).code == 0
    whole = (tmp_path / "a.segz").read_bytes()
    (tmp_path / "a").unlink()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "a.segz").write_bytes(damaged)
    refused(run(tmp_path, "decompress", "a.segz", "--artifact", packed), "a.segz", "damaged")
    (tmp_path / "a.segz").write_bytes(whole)
    other = pack(dataclasses.replace(unpack(load(packed)), origin={"of": "another run"}))
    (tmp_path / "other.segpt").write_bytes(other.data)
    done = run(tmp_path, "decompress", "a.segz", "--artifact", "other.segpt")
    refused(done, other.digest, line["pack"]["digest"], "--artifact")
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("compress", "nowhere"), ("nowhere",)),
        (("compress", "."), ("directory",)),
        (("compress", "file", "--artifact", "nowhere.segpt"), ("nowhere.segpt",)),
        (("compress", "file", "--artifact", "file"), ("not an artifact",)),
        (("compress", "file"), ("segpt pack",)),
        (("decompress", "nowhere.segz"), ("nowhere.segz",)),
        (("decompress", "file"), (".segz", "--out")),
    ],
)
def test_bad_input(tmp_path: Path, run: Run, args: Any, words: Any) -> None:
    (tmp_path / "file").write_bytes(b"something")
    refused(run(tmp_path, *args), *words)


def test_files_that_are_not_compressed_are_named(packed: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.segz").write_bytes(b"PK\x03\x04" * 50)
    done = run(tmp_path, "decompress", "a.segz", "--artifact", packed)
    refused(done, "a.segz", "not a compressed file", "segpt compress")
    assert not (tmp_path / "a").exists()
