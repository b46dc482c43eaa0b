"""Artifacts and Scores to records, and texts to baselines."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segpt
from segpt.artifact import container
from segpt.artifact.reader import open_artifact
from segpt.config.layout import parameters
from segpt.data.text import text_digest
from segpt.errors import CheckError, SegptError, SpecError
from segpt.stages.json_files import read_json
from segpt.stages.pack import read_artifact
from segpt.values import Artifact

from .compressors import compressed
from .derive import keep_documents
from .entry import Baseline, Record, Run, ScoreLine, figure
from .store import Added, append_entry, decode_file, read_tracks, track_of
from .track_text import text_of


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
    return decode_file(ScoreLine, kept, path)


@dataclass(frozen=True)
class Description:
    """What a record says of itself that its files do not: fields as in :class:`Record`."""

    name: str
    track: str
    authors: Sequence[str]
    date: str
    about: str = ""
    recipe: str = ""


def add(
    directory: Path,
    artifacts: Sequence[Path],
    scores: Sequence[Path],
    description: Description,
) -> Added:
    """Append the record of ``artifacts`` and their ``scores``, files of ``segpt score --out``.

    Several artifacts are runs that differ in their seed; the first is the one that is submitted.

    Raises:
        CheckError: with all findings, if there is one about this or any other entry.
        SegptError: if a file cannot be read, or the fields of the record are not sound.
    """
    packed = [container.load(path) for path in artifacts]
    if not packed:
        raise SegptError("a record needs an artifact; make one with: segpt pack")
    runs = _runs(packed, artifacts, scores)
    header = open_artifact(packed[0]).header
    record = Record(
        name=description.name,
        track=description.track,
        authors=tuple(description.authors),
        date=description.date,
        about=description.about,
        bytes=max(run.bytes for run in runs),
        parameters=parameters(header.model),
        bpb=figure(runs).bpb,
        runs=runs,
        origin=dict(header.origin),
        sections={section.name: section.bytes for section in container.sections(packed[0])},
        segpt=segpt.__version__,
        recipe=description.recipe,
    )
    listed = [read_artifact(path) for path in artifacts]
    added = append_entry(directory, record)
    for artifact in listed:
        keep_documents(directory, artifact)
    return added


def add_baseline(
    directory: Path, program: str, *, track: str, name: str, date: str, text: Path | None = None
) -> Added:
    """Append what ``program`` makes of the text of a track, or of ``text`` where it names none.

    Raises:
        CheckError: with all findings, if there is one about this or any other entry.
        SegptError: if there is no such program, or the text is not at hand.
    """
    rules = track_of(read_tracks(directory), track)
    track_text = text_of(directory, rules, text)
    if track_text is None:
        raise SegptError(f"the text of {track} is not here; give it with --text")
    size = compressed(track_text, program)
    baseline = Baseline(
        name=name,
        track=track,
        date=date,
        program=program,
        version=size.version,
        text=text_digest(track_text),
        bytes=size.bytes,
        compressed=size.compressed,
    )
    return append_entry(directory, baseline)


def _runs(
    packed: Sequence[Artifact], artifacts: Sequence[Path], scores: Sequence[Path]
) -> tuple[Run, ...]:
    """Each artifact with its scores, which name it by its digest."""
    lines = {path: score_line(read_json(path, "score"), path) for path in scores}
    digests = [artifact.digest for artifact in packed]
    if len(packed) == 1:  # a score of something else is found when the record is checked
        of_digest = {digests[0]: [*lines.values()]}
    else:
        of_digest = {}
        for path, line in lines.items():
            if line.model not in digests:
                raise CheckError(
                    f"{path}: is of model {line.model[:12]!r}, none of the artifacts; score the "
                    "packed files themselves"
                )
            of_digest.setdefault(line.model, []).append(line)
    runs = []
    for path, artifact in zip(artifacts, packed, strict=True):
        if artifact.digest not in of_digest or not of_digest[artifact.digest]:
            raise SegptError(
                f"a record needs a score of {path}; make one with: segpt score {path} --out FILE"
            )
        seed = open_artifact(artifact).header.origin.get("seed", "")
        runs.append(
            Run(
                artifact=artifact.digest,
                bytes=artifact.size,
                seed=int(seed) if seed.isdecimal() else None,
                scores=tuple(of_digest[artifact.digest]),
            )
        )
    return tuple(runs)
