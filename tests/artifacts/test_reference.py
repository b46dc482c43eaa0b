"""The committed artifacts are as their manifest says, and whatever is planted among them shows."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segpt.artifact import frame
from segpt.artifact.container import pack, unpack
from segpt.config.base import decode, fingerprint
from segpt.config.layout import layout
from segpt.config.model import ModelSpec
from segpt.data.text import read_text
from segpt.data.tokenizer import BYTES
from segpt.errors import SpecError
from segpt.leaderboard.reference import MOST_BYTES, MOST_TOGETHER, SCORED, check, read_manifest
from segpt.stages.score import score
from segpt.values import Artifact, Float16Weight, Quantized

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / "artifacts"
FIXTURE = Path(__file__).with_name("fixture.txt")


@pytest.mark.slow
def test_the_committed_artifacts_are_sound() -> None:
    assert check(DIRECTORY, FIXTURE) == []


def test_every_format_that_is_read_has_an_artifact() -> None:
    entries = read_manifest(DIRECTORY)
    assert {entry.format for entry in entries} == set(frame.SECTIONS)
    assert all(entry.bytes <= MOST_BYTES for entry in entries)
    assert sum(entry.bytes for entry in entries) <= MOST_TOGETHER


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """The first of the committed artifacts and what the manifest says of it."""
    place = tmp_path / "artifacts"
    place.mkdir()
    manifest = (DIRECTORY / "manifest.toml").read_text(encoding="utf-8")
    table = re.split(r"(?=^\[\[artifact\]\])", manifest, flags=re.MULTILINE)[1]
    (place / "manifest.toml").write_text(table, encoding="utf-8")
    (file,) = re.findall(r'file = "(.*)"', table)
    shutil.copy(DIRECTORY / file, place)
    return place


def plant_a_byte(place: Path) -> None:
    (path,) = place.glob("*.segpt")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def plant_a_figure(place: Path) -> None:
    edit(place, r"fixture_bpb = \d", "fixture_bpb = 9")


def plant_an_oversize(place: Path) -> None:
    (path,) = place.glob("*.segpt")
    path.write_bytes(path.read_bytes() + bytes(MOST_BYTES))


def plant_a_stray_file(place: Path) -> None:
    (path,) = place.glob("*.segpt")
    shutil.copy(path, place / "stray.segpt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "word"),
    [
        (plant_a_byte, "the contents do not match"),
        (plant_a_figure, "scores "),
        (plant_an_oversize, "bytes, where a file has at most 512,000"),
        (plant_a_stray_file, "stray.segpt: the manifest does not list it"),
    ],
)
def test_plants_among_the_committed(
    committed: Path, plant: Callable[[Path], None], word: str
) -> None:
    plant(committed)
    findings = check(committed, FIXTURE)
    assert any(word in finding for finding in findings), findings


def model(seed: int) -> Quantized:
    """A model of a few thousand bytes."""
    draw = np.random.default_rng(seed)
    feed = {"mixer": None, "feed": {"kind": "dense", "hidden": 4}}
    short: dict[str, Any] = {"vocab": 257, "width": 4, "context": 64, "embed": ["token"]}
    short |= {"layers": [feed], "visits": [{"layer": 0}], "head": {"kind": "head"}}
    spec = decode(ModelSpec, short)
    weights = {
        w.name: Float16Weight(draw.normal(size=w.shape).astype(np.float16)) for w in layout(spec)
    }
    return Quantized(spec=spec, weights=weights, tokenizer=BYTES, origin={"tokens": "0a" * 8})


TEXT = b"A text that takes no time to score.\n"
A, B = "small-1.segpt", "small-2.segpt"


def entry(name: str, artifact: Artifact, text: Path, more: str) -> str:
    found = unpack(artifact)
    return f"""
[[artifact]]
file = "{name}"
format = {frame.FORMAT}
digest = "{artifact.digest}"
bytes = {artifact.size}
budget = 9_000
spec = "{fingerprint(found.spec)}"
model = "{found.fingerprint}"
tokens = "{found.origin["tokens"]}"
fixture_bpb = {score(artifact, read_text([text]), SCORED).bpb:.6f}
tolerance = 1e-4
{more}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A sound directory of two small artifacts, the second in place of the first."""
    place = tmp_path / "artifacts"
    place.mkdir()
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT)
    first, second = pack(model(1)), pack(model(2))
    (place / A).write_bytes(first.data)
    (place / B).write_bytes(second.data)
    (place / "manifest.toml").write_text(
        entry(A, first, text, 'made_by = "segpt pack --budget 9000"')
        + entry(B, second, text, f'replaces = "{A}"\nmade_by = "by hand"')
    )
    return place


def edit(place: Path, old: str, new: str) -> None:
    """Replace the last thing of its kind that the manifest says."""
    manifest = place / "manifest.toml"
    text = manifest.read_text(encoding="utf-8")
    *_, last = re.finditer(old, text)
    manifest.write_text(text[: last.start()] + new + text[last.end() :], encoding="utf-8")


def finds(place: Path, *words: str) -> None:
    """The check names the fault."""
    findings = check(place, place.with_name("text.txt"))
    for word in words:
        assert any(word in finding for finding in findings), findings


def test_two_small_artifacts_are_sound(small: Path) -> None:
    assert check(small, small.with_name("text.txt")) == []


@pytest.mark.slow
@pytest.mark.parametrize("file", [A, B])
def test_any_one_changed_byte(small: Path, file: str) -> None:
    whole = (small / file).read_bytes()
    for where in np.random.default_rng(7).choice(len(whole), 24, replace=False).tolist():
        data = bytearray(whole)
        data[where] ^= 1 << where % 8
        (small / file).write_bytes(data)
        finds(small, f"{file}: its SHA-256 is")


def test_a_changed_model_whose_digests_are_made_to_fit(small: Path) -> None:
    changed = pack(model(3))
    (small / B).write_bytes(changed.data)
    edit(small, r'digest = "\w+"', f'digest = "{changed.digest}"')
    edit(small, r"bytes = \d+", f"bytes = {changed.size}")
    finds(small, "the fingerprint of its model is", f"{B}: scores ")
    edit(small, r'model = "\w+"', f'model = "{unpack(changed).fingerprint}"')
    finds(small, f"{B}: scores ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (r"format = \d", "format = 1", f"format {frame.FORMAT}, where the manifest says 1"),
        (r'digest = "\w{4}', 'digest = "0000', "its SHA-256 is"),
        (r"bytes = \d", "bytes = 1", "bytes, where the manifest says 1"),
        (r"budget = 9_000", "budget = 9_001", f"has a budget of 9,001 and replaces {A}"),
        (r"budget = 9_000", "budget = 9", "over its budget of 9"),
        (r'spec = "\w{4}', 'spec = "0000', "the fingerprint of its spec is"),
        (r'model = "\w{4}', 'model = "0000', "the fingerprint of its model is"),
        (r'tokens = "\w{4}', 'tokens = "0000', "the fingerprint of its tokens is"),
        (r"fixture_bpb = \d", "fixture_bpb = 99", "scores "),
        (r"--budget 9000", "--budget 9001", "made for a budget of 9,001"),
        (r"\nreplaces[^\n]*", "", f"{B}: made_by shows no --budget"),
    ],
)
def test_a_changed_figure_of_the_manifest(small: Path, old: str, new: str, word: str) -> None:
    edit(small, old, new)
    finds(small, word)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (r"tolerance = 1e-4", "tolerance = 0.5", "at most 0.001"),
        (r"tolerance = 1e-4", "tolerance = nan", "finite"),
        (r"fixture_bpb = .*", "fixture_bpb = -1.0", "positive"),
        (r'digest = "\w+"', 'digest = "x"', "64 hexadecimal digits"),
        (r'replaces = "[\w.-]+"', 'replaces = "other.segpt"', "is not listed before it"),
        (r'replaces = "[\w.-]+"', f'replaces = "{B}"', "is not listed before it"),
        (r'replaces = "[\w.-]+"', "replacs = 1", "unknown key 'replacs'"),
        (r'file = "[\w.-]+"', f'file = "{A}"', f"{A} is listed twice"),
        (r'file = "[\w.-]+"', 'file = "../x.segpt"', "is named NAME.segpt"),
        (r"budget = 9_000", "budget = 1.5", "expected a whole number"),
        (r"budget = 9_000\n", "", "missing key 'budget'"),
        (r"budget = 9_000", "budget = ", "not valid TOML"),
    ],
)
def test_a_manifest_that_makes_no_sense(small: Path, old: str, new: str, words: str) -> None:
    edit(small, old, new)
    with pytest.raises(SpecError, match=r"manifest\.toml") as caught:
        check(small, FIXTURE)
    assert words in str(caught.value)


def test_one_artifact_has_one_successor(small: Path) -> None:
    manifest = small / "manifest.toml"
    text = manifest.read_text(encoding="utf-8")
    again = text[text.rindex("[[artifact]]") :].replace(f'file = "{B}"', 'file = "c.segpt"')
    manifest.write_text(f"{text}\n{again}", encoding="utf-8")
    with pytest.raises(SpecError, match=f"{A} is replaced twice"):
        check(small, FIXTURE)


def add(path: Path) -> None:
    path.write_bytes(b"\0")


@pytest.mark.slow
@pytest.mark.parametrize(
    "plant", [add, Path.mkdir, lambda path: path.symlink_to(path.with_name(A))]
)
@pytest.mark.parametrize("name", ["stray.segpt", "model.pt", ".hidden", f"{A}.documents"])
def test_a_stray_file(small: Path, plant: Callable[[Path], None], name: str) -> None:
    plant(small / name)
    finds(small, f"{name}: the manifest does not list it")


def test_too_much_in_all(small: Path) -> None:
    for index in range(4):
        (small / f"stray-{index}.bin").write_bytes(bytes(MOST_BYTES))
    finds(small, "bytes in all, where artifacts take at most 2,000,000")


@pytest.mark.parametrize(("share", "grown"), [(0.0049, False), (0.0051, True)])
def test_growth_over_the_artifact_before(small: Path, share: float, grown: bool) -> None:
    size = (small / A).stat().st_size
    (small / B).write_bytes(bytes(int(size * (1 + share)) + grown))
    findings = check(small, small.with_name("text.txt"))
    assert grown == any(f"of {A}, which it replaces" in finding for finding in findings)


def test_files_that_are_gone(small: Path) -> None:
    (small / A).unlink()
    finds(small, f"{A}: cannot be read: No such file")
    (small / "manifest.toml").unlink()
    with pytest.raises(SpecError, match=r"cannot read .*manifest\.toml"):
        check(small, FIXTURE)


def test_a_listed_file_that_is_no_artifact(small: Path) -> None:
    (small / A).write_bytes(b"PK\x03\x04")
    finds(small, "its SHA-256 is", f"{A}: not an artifact: this looks like a pickle")
