"""The committed artifacts: unchanged, within size, repacked to the same, and scored the same."""

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from segpt.artifact import frame
from segpt.artifact.container import load, pack, unpack
from segpt.data.text import read_text
from segpt.errors import ArtifactError
from segpt.kernels import use
from segpt.spec.base import fingerprint
from segpt.spec.score import ScoreSpec
from segpt.stages.score import score

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / "artifacts"
MANIFEST: list[dict[str, Any]] = tomllib.loads((DIRECTORY / "manifest.toml").read_text())[
    "artifact"
]
FIXTURE = Path(__file__).with_name("fixture.txt")

each = pytest.mark.parametrize("entry", MANIFEST, ids=lambda e: str(e["file"]))


def inspect(*args: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "segpt", "inspect", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_manifest_lists_every_artifact() -> None:
    listed = {entry["file"] for entry in MANIFEST}
    assert listed == {path.name for path in DIRECTORY.glob("*.segpt")}
    assert sum((DIRECTORY / name).stat().st_size for name in listed) <= 2_000_000


@each
def test_digest_and_size(entry: dict[str, Any]) -> None:
    data = (DIRECTORY / entry["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == entry["digest"]
    assert len(data) == entry["bytes"] <= entry["budget"] <= 512_000


@each
def test_inspect_checks_the_budget(entry: dict[str, Any]) -> None:
    path = DIRECTORY / entry["file"]
    assert inspect(path, "--budget", entry["budget"]).returncode == 0
    over = inspect(path, "--budget", entry["bytes"] - 1)
    assert over.returncode == 1
    assert "1 bytes OVER" in over.stdout


@each
def test_repacks_to_the_same(entry: dict[str, Any]) -> None:
    artifact = load(DIRECTORY / entry["file"])
    model = unpack(artifact)
    assert model.fingerprint == entry["model"]
    assert fingerprint(model.spec) == entry["spec"]
    repacked = pack(model)
    if entry["format"] == frame.FORMAT:
        assert repacked.data == artifact.data
    else:
        assert unpack(repacked) == model


def test_every_format_has_an_artifact() -> None:
    formats = {entry["format"] for entry in MANIFEST}
    assert formats == set(frame.SECTIONS)
    for entry in MANIFEST:
        data = (DIRECTORY / entry["file"]).read_bytes()
        assert frame.split(data).format == entry["format"]


@each
def test_scores_the_same(entry: dict[str, Any]) -> None:
    artifact = load(DIRECTORY / entry["file"])
    use("reference")
    try:
        found = score(artifact, read_text([FIXTURE]), ScoreSpec(stride=64))
    finally:
        use("auto")
    assert found.bytes == FIXTURE.stat().st_size
    assert abs(found.bpb - entry["fixture_bpb"]) <= entry["tolerance"]


@each
def test_a_changed_byte_is_found(entry: dict[str, Any], tmp_path: Path) -> None:
    data = bytearray((DIRECTORY / entry["file"]).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "changed.segpt").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"changed\.segpt"):
        load(tmp_path / "changed.segpt")
