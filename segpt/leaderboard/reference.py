"""Reference artifacts against their manifest: bytes, growth, repacking and score."""

import hashlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from segpt.artifact import container, frame
from segpt.config.base import decode, fingerprint
from segpt.config.score import ScoreSpec
from segpt.data.text import read_text
from segpt.errors import SegptError, SpecError
from segpt.kernels import use
from segpt.stages.open_model import OpenedModel, open_model
from segpt.stages.score import score
from segpt.values import Artifact, Quantized

from .manifest import ReferenceArtifact, References

MOST_BYTES = 512_000  # of one file
MOST_TOGETHER = 2_000_000
MOST_GROWTH = 0.005  # of an artifact over the one that it replaces
SCORED = ScoreSpec(stride=64)
BESIDE = ("README.md", "manifest.toml")  # what the directory holds but artifacts


def read_manifest(directory: Path) -> tuple[ReferenceArtifact, ...]:
    """The artifacts that ``directory/manifest.toml`` lists.

    Raises:
        SpecError: naming the file and the key that is wrong.
    """
    path = directory / "manifest.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    try:
        return decode(References, table).artifact
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def check(directory: Path, fixture: Path) -> list[str]:
    """Everything in ``directory`` that is not as its manifest says; empty if all is.

    Scores of the text ``fixture`` are computed with the reference kernels.

    Raises:
        SpecError: if the manifest itself cannot be read.
    """
    entries = read_manifest(directory)
    listed = {entry.file: entry for entry in entries}
    findings = list(_check_directory(directory, set(listed)))
    for entry in entries:
        own = _check(directory, entry, listed, fixture)
        findings += [f"{entry.file}: {finding}" for finding in own]
    return findings


def _check_directory(directory: Path, listed: set[str]) -> Iterator[str]:
    together = 0
    for path in sorted(directory.iterdir()):
        if path.name not in listed and path.name not in BESIDE:
            yield f"{path.name}: the manifest does not list it; list it, or take it away"
        if path.is_file():
            size = path.stat().st_size
            together += size if path.name not in BESIDE else 0
            if size > MOST_BYTES:
                yield f"{path.name}: {size:,} bytes, where a file has at most {MOST_BYTES:,}"
    if together > MOST_TOGETHER:
        yield f"{together:,} bytes in all, where artifacts take at most {MOST_TOGETHER:,}"


def _check(
    directory: Path, entry: ReferenceArtifact, listed: dict[str, ReferenceArtifact], fixture: Path
) -> Iterator[str]:
    try:
        data = (directory / entry.file).read_bytes()
    except OSError as error:
        yield f"cannot be read: {error.strerror}"
        return
    if (digest := hashlib.sha256(data).hexdigest()) != entry.digest:
        yield f"its SHA-256 is {digest}, not {entry.digest}"
    if len(data) != entry.bytes:
        yield f"{len(data):,} bytes, where the manifest says {entry.bytes:,}"
    yield from _check_size(len(data), entry, listed)
    try:
        artifact = Artifact(data)
        opened = open_model(artifact)
        assert isinstance(opened.source, Quantized)
        yield from _check_model(artifact, opened.source, entry)
        yield from _check_score(opened, entry, fixture)
    except SegptError as error:
        yield str(error)


def _check_size(
    size: int, entry: ReferenceArtifact, listed: dict[str, ReferenceArtifact]
) -> Iterator[str]:
    if size > entry.budget:
        yield f"{size:,} bytes, {size - entry.budget:,} over its budget of {entry.budget:,}"
    asked = [int(number) for number in re.findall(r"--budget (\d+)", entry.made_by)]
    for number in asked:
        if number != entry.budget:
            yield f"made for a budget of {number:,}, where the manifest says {entry.budget:,}"
    if entry.replaces is None:
        if not asked:
            yield "made_by shows no --budget, and no artifact before it has the same"
        return
    before = listed[entry.replaces]
    if size > before.bytes * (1 + MOST_GROWTH):
        yield (
            f"{size:,} bytes, {size / before.bytes - 1:.2%} more than the {before.bytes:,} of "
            f"{before.file}, which it replaces; {MOST_GROWTH:.1%} is the most"
        )
    if entry.budget != before.budget:
        yield (
            f"has a budget of {entry.budget:,} and replaces {before.file}, which has "
            f"{before.budget:,}"
        )


def _check_model(artifact: Artifact, model: Quantized, entry: ReferenceArtifact) -> Iterator[str]:
    version = frame.split(artifact.data).format
    if version != entry.format:
        yield f"format {version}, where the manifest says {entry.format}"
    fingerprints = {
        "spec": fingerprint(model.spec),
        "model": model.fingerprint,
        "tokens": model.origin.get("tokens"),
    }
    for name, value in fingerprints.items():
        if value != (expected := getattr(entry, name)):
            yield f"the fingerprint of its {name} is {value}, not {expected}"
    if version == frame.FORMAT:
        if container.pack(model, container.lanes_of(artifact)) != artifact:
            yield "packed again it is another file"
    elif container.unpack(container.pack(model)) != model:
        yield f"packed as format {frame.FORMAT} it is another model"


def _check_score(opened: OpenedModel, entry: ReferenceArtifact, fixture: Path) -> Iterator[str]:
    with use("reference"):
        bpb = score(opened, read_text([fixture]), SCORED).bpb
    if not abs(bpb - entry.fixture_bpb) <= entry.tolerance:
        yield (
            f"scores {bpb:.6f} bits per byte on {fixture.name}, where the manifest says "
            f"{entry.fixture_bpb:.6f} within {entry.tolerance:g}"
        )
