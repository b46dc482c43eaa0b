"""Artifact and Scores to Record: the directory of the leaderboard, its files and its page."""

import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import segpt
from segpt.artifact import container
from segpt.atomic import write_file
from segpt.board.check import check_all
from segpt.board.render import render
from segpt.errors import CheckError, SegptError, SpecError
from segpt.spec.base import decode
from segpt.spec.layout import parameters
from segpt.spec.track import Record, ScoreLine, Track, Tracks, figure

from .files import read_json, write_json

T = TypeVar("T")


def read_tracks(directory: Path) -> tuple[Track, ...]:
    """The tracks in ``directory/tracks.toml``.

    Raises:
        SpecError: naming the file and the key that is wrong.
    """
    path = directory / "tracks.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(
            f"cannot read {path}: {error.strerror}; name the leaderboard's directory with --dir"
        ) from None
    except ValueError as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    return _decode(Tracks, table, path).tracks


def read_records(directory: Path) -> dict[str, Record]:
    """The records in ``directory/records`` by the names of their files, in order.

    Raises:
        SegptError: naming the first file that cannot be read, and why.
    """
    return {path.name: read_record(path) for path in _files(directory)}


def read_record(path: Path) -> Record:
    """One record.

    Raises:
        SegptError: naming the file that cannot be read, and why.
    """
    return _decode(Record, read_json(path, "record"), path)


def score_line(table: Any, path: Path) -> ScoreLine:
    """What ``segpt score --out`` wrote to ``path``, as records hold it.

    Raises:
        SpecError: naming the file, if it is not a score.
    """
    if not isinstance(table, dict) or not isinstance(origin := table.get("origin"), dict):
        raise SpecError(f"{path}: not a score; make one with: segpt score ARTIFACT --out FILE")
    named = table | {
        "model": origin.get("artifact", table.get("model")),
        "text": origin.get("text"),
    }
    kept = {f.name: named[f.name] for f in dataclasses.fields(ScoreLine) if f.name in named}
    return _decode(ScoreLine, kept, path)


def add(
    directory: Path,
    artifact: Path,
    scores: Sequence[Path],
    *,
    name: str,
    track: str,
    authors: Sequence[str],
    date: str,
    recipe: str = "",
) -> Path:
    """Write the record of ``artifact`` and its ``scores``, files of ``segpt score --out``.

    Returns:
        The new file; an existing record is never touched.

    Raises:
        CheckError: with all findings, if there is one about this or any other record.
        SegptError: if a file cannot be read, or the fields of the record are not sound.
    """
    packed = container.load(artifact)
    model = container.unpack(packed)
    lines = tuple(score_line(read_json(path, "score"), path) for path in scores)
    if not lines:
        raise SegptError("a record needs a score; make one with: segpt score ARTIFACT --out FILE")
    record = Record(
        name=name,
        track=track,
        authors=tuple(authors),
        date=date,
        artifact=packed.digest,
        bytes=packed.size,
        parameters=parameters(model.spec),
        bpb=figure(lines).bpb,
        scores=lines,
        origin=dict(model.origin),
        segpt=segpt.__version__,
        recipe=recipe,
    )
    path = directory / "records" / record.file
    if path.exists():
        raise CheckError(f"{path} exists, and records never change; choose another name")
    if findings := check_all(
        read_tracks(directory), read_records(directory) | {record.file: record}
    ):
        raise CheckError("nothing was added: " + "; ".join(findings))
    write_json(path, record)
    return path


def check(directory: Path) -> list[str]:
    """Everything that is wrong with the records, unreadable ones included; empty if sound.

    Raises:
        SpecError: if the tracks cannot be read.
    """
    tracks = read_tracks(directory)
    findings, records = [], {}
    for path in _files(directory):
        try:
            records[path.name] = read_record(path)
        except SegptError as error:
            findings.append(str(error))
    return findings + check_all(tracks, records)


def render_page(directory: Path, *, write: bool) -> bool:
    """Whether ``directory/README.md`` was stale; with ``write`` it no longer is.

    Raises:
        SegptError: if the page, a track or a record cannot be read.
    """
    path = directory / "README.md"
    try:
        old = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SegptError(f"cannot read {path}: {error}") from None
    tracks, records = read_tracks(directory), read_records(directory)
    try:
        new = render(old, tracks, records.values())
    except SegptError as error:
        raise SegptError(f"{path}: {error}") from error
    if write and new != old:
        write_file(path, new.encode())
    return new != old


def _files(directory: Path) -> list[Path]:
    return sorted((directory / "records").glob("*.json"))


def _decode(cls: type[T], value: Any, path: Path) -> T:
    try:
        return decode(cls, value)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
