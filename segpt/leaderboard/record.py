"""Artifacts and Scores to entries: the directory of the leaderboard, its chain and its pages."""

import dataclasses
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import segpt
from segpt.artifact import container
from segpt.artifact.reader import open_artifact
from segpt.atomic import write_file
from segpt.config.base import decode, nearest, readable
from segpt.config.layout import parameters
from segpt.data.corpus import builtin
from segpt.data.text import read_text, text_digest
from segpt.errors import CheckError, SegptError, SpecError
from segpt.locks import locked
from segpt.stages.json_files import read_json
from segpt.stages.pack import read_artifact
from segpt.stages.prepare import as_text, open_splits
from segpt.values import Artifact, Text

from . import page, render
from .chain import INDEX, append, digest_of, index_of, place_of, read, settled, unfinished
from .check import check_all
from .compressors import compressed
from .derive import keep_documents
from .ranking import Advance, Row, standings
from .track import Baseline, Chain, Entry, Link, Record, Run, ScoreLine, Track, Tracks, figure

T = TypeVar("T")

COMING = ".coming"  # an entry until the index has it
WAIT = 60.0  # seconds for another process that adds an entry

_TRIES = 20  # to read while others write

BUILTIN = "builtin"  # the source of a track whose text comes with Python


class Board(NamedTuple):
    """A leaderboard of which nothing is damaged; ``chain`` is None while it is empty."""

    tracks: tuple[Track, ...]
    links: tuple[Link, ...]
    chain: Chain | None

    def standings(self) -> dict[str, list[Row]]:
        return standings(self.tracks, self.links)


class Checked(NamedTuple):
    """All that is wrong with a leaderboard, and what its chain amounts to as it is."""

    findings: tuple[str, ...]
    chain: Chain | None


class Added(NamedTuple):
    """A new file, what it holds, and whether that advances its track."""

    path: Path
    link: Link
    advance: Advance | None


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
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    return _decode(Tracks, table, path).tracks


def track_of(tracks: Sequence[Track], name: str) -> Track:
    """The track of a name.

    Raises:
        SpecError: naming the nearest, if there is none.
    """
    by_name = {track.name: track for track in tracks}
    if name not in by_name:
        raise SpecError(f"unknown track {name!r}; {nearest(name, by_name)}")
    return by_name[name]


def read_board(directory: Path) -> Board:
    """Tracks and entries, if the chain is whole.

    Raises:
        CheckError: with everything that is wrong with the chain.
        SpecError: if the tracks cannot be read.
    """
    tracks = read_tracks(directory)
    files, index = _files(directory)
    links, findings = read(files, index)
    if findings:
        raise CheckError(f"{directory}: {_told(findings, files, index)}")
    return Board(tracks, links, index_of(files))


def check(directory: Path, head: str | None = None) -> Checked:
    """Everything that is wrong with the chain and with each entry; no model is needed.

    Args:
        directory: the leaderboard.
        head: the digest of an entry that was seen before, which the chain must still hold.

    Raises:
        SpecError: if the tracks cannot be read.
    """
    tracks = read_tracks(directory)
    files, index = _files(directory)
    links, findings = read(files, index)
    found = [*findings, *check_all(tracks, links)]
    if head is not None and place_of(files, head) is None:
        found.append(f"{head}: no entry has this digest; the chain was made anew since it was seen")
    known = {name: data for name, data in files.items() if name in {link.file for link in links}}
    return Checked(tuple(found), index_of(known))


def text_of(directory: Path, track: Track, given: Path | None = None) -> Text | None:
    """The text of a track, if it is at hand.

    Args:
        directory: the leaderboard, where :attr:`Track.source` may name a file.
        track: whose text is wanted.
        given: a file or directory that holds it instead, or a prepared text that held it out.

    Raises:
        DataError: if the file cannot be read.
        CheckError: if it holds another text than the track's.
    """
    if given is not None:
        prepared = (given / "validation" / "manifest.json").is_file()
        text = as_text(open_splits(given)[1]) if prepared else read_text([given])
    elif track.source == BUILTIN:
        text = builtin("validation")
    elif track.source and (directory / track.source).is_file():
        text = read_text([directory / track.source])
    else:
        return None
    if track.text is not None and (digest := text_digest(text)) != track.text:
        raise CheckError(
            f"{text.name}: its digest is {digest[:12]}, and the text of {track.name} has "
            f"{track.text[:12]}; give that with --text"
        )
    return text


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
    artifacts: Sequence[Path],
    scores: Sequence[Path],
    *,
    name: str,
    track: str,
    authors: Sequence[str],
    date: str,
    about: str = "",
    recipe: str = "",
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
        name=name,
        track=track,
        authors=tuple(authors),
        date=date,
        about=about,
        bytes=max(run.bytes for run in runs),
        parameters=parameters(header.model),
        bpb=figure(runs).bpb,
        runs=runs,
        origin=dict(header.origin),
        sections={section.name: section.bytes for section in container.sections(packed[0])},
        segpt=segpt.__version__,
        recipe=recipe,
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
    found = text_of(directory, rules, text)
    if found is None:
        raise SegptError(f"the text of {track} is not here; give it with --text")
    size = compressed(found, program)
    baseline = Baseline(
        name=name,
        track=track,
        date=date,
        program=program,
        version=size.version,
        text=text_digest(found),
        bytes=size.bytes,
        compressed=size.compressed,
    )
    return append_entry(directory, baseline)


def append_entry(directory: Path, entry: Entry | Callable[[Board], Entry]) -> Added:
    """Append an entry to the chain, unless that or anything before it is unsound.

    The entry lies beside the others until one rename, that of the index, makes it part of the
    chain; it gets its name then. So whatever ends the process, the chain is sound.

    Args:
        directory: the leaderboard.
        entry: the entry, or what makes it of the board as it is when nobody else writes.

    Raises:
        CheckError: with all findings, if there is one.
        SpecError: if the tracks cannot be read, or the entry cannot be written.
        SegptError: if another process does not stop writing, or the disk refuses.
    """
    tracks = read_tracks(directory)
    with locked(directory / INDEX, wait=WAIT):
        _finish(directory)
        files, index = _files(directory)
        links, findings = read(files, index)
        if not findings:
            made = entry(Board(tracks, links, index_of(files))) if callable(entry) else entry
            link, data, chain = append(files, made)
            findings = tuple(check_all(tracks, [*links, link]))
        if findings:
            raise CheckError(f"nothing was added: {_told(findings, files, index)}")
        write_file(directory / "records" / COMING, data)
        write_file(directory / INDEX, readable(chain))
        _finish(directory)
    rows = standings(tracks, [*links, link])[made.track]
    advance = next((row.advance for row in rows if row.link.number == link.number), None)
    return Added(directory / "records" / link.file, link, advance)


def repair(directory: Path) -> tuple[str, ...]:
    """Complete an unfinished last entry, or drop it; no other entry is ever touched.

    Returns:
        What was done, in words; nothing if the chain was whole.

    Raises:
        CheckError: with all findings, if something else is wrong.
        SegptError: if another process does not stop writing, or the disk refuses.
    """
    tracks = read_tracks(directory)
    with locked(directory / INDEX, wait=WAIT):
        done = _finish(directory)
        files, index = _files(directory)
        links, findings = read(files, index)
        last = unfinished(files, index) if findings else None
        if last is None:
            if findings:
                raise CheckError(
                    "nothing was repaired, for no interrupted writing explains this: "
                    + "; ".join(findings)
                )
            return tuple(done)
        chain = index_of(files)
        assert chain is not None
        findings = (*read(files, readable(chain)).findings, *check_all(tracks, links))
        if findings:
            aside = directory / "records" / f".{last}.dropped"
            (directory / "records" / last).replace(aside)
            done.append(f"dropped {last}, which is {aside} now: {'; '.join(findings)}")
        else:
            write_file(directory / INDEX, readable(chain))
            done.append(f"completed {last}: {INDEX} names it now")
    return tuple(done)


def _told(findings: Sequence[str], files: Mapping[str, bytes], index: bytes | None) -> str:
    """Findings in words, with the remedy if there is one."""
    remedy = "; to mend that: segpt leaderboard repair" if unfinished(files, index) else ""
    return "; ".join(findings) + remedy


def _finish(directory: Path) -> list[str]:
    """Give the last entry its name if the index has it, or drop it if it never came so far."""
    coming = directory / "records" / COMING
    if not coming.is_file():
        return []
    files, _ = _files(directory)
    data = coming.read_bytes()
    names = [name for name, content in files.items() if content == data]
    if names:
        coming.replace(directory / "records" / names[0])
        return [f"completed {names[0]}, which {INDEX} named already"]
    coming.unlink()
    return [f"dropped an entry that {INDEX} never named, SHA-256 {digest_of(data)}"]


def render_pages(directory: Path, *, write: bool) -> dict[Path, bool]:
    """``README.md`` and ``index.html``, and whether each was stale; with ``write`` none is left.

    Raises:
        SegptError: if a page or a track cannot be read.
        CheckError: if the chain is broken.
    """
    board = read_board(directory)
    readme, index = directory / "README.md", directory / "index.html"
    try:
        old = readme.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SegptError(
            f"cannot read {readme}: it does not exist; write one with a line {render.OPENING} and "
            f"a line {render.CLOSING}, between which the tables go"
        ) from None
    except OSError as error:
        raise SegptError(f"cannot read {readme}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SegptError(f"cannot read {readme}: it is not UTF-8") from None
    try:
        rendered = render.render(old, board.tracks, board.links)
    except SegptError as error:
        raise SegptError(f"{readme}: {error}") from error
    pages = {
        readme: rendered.encode(),
        index: page.render(board.tracks, board.links, board.chain).encode(),
    }
    stale = {path: not path.is_file() or path.read_bytes() != new for path, new in pages.items()}
    for path, new in pages.items():
        if write and stale[path]:
            write_file(path, new)
    return stale


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


def _files(directory: Path) -> tuple[Mapping[str, bytes], bytes | None]:
    """The entries in ``records``, and the index of the chain, both from one moment."""
    for _ in range(_TRIES):
        index = _content(directory / INDEX)
        coming = _content(directory / "records" / COMING)
        files = _entries(directory / "records")
        if _content(directory / INDEX) == index:
            break
    return settled(files, index, coming), index


def _entries(records: Path) -> dict[str, bytes]:
    """Everything in a directory but hidden files, which are temporaries or somebody's system's."""
    places = sorted(records.iterdir()) if records.is_dir() else []
    shown = [place for place in places if not place.name.startswith(".")]
    return {place.name: _content(place) or b"" for place in shown}


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _decode(cls: type[T], value: Any, path: Path) -> T:
    try:
        return decode(cls, value)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
