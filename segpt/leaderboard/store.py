"""The directory of a leaderboard: its tracks and chain, read, checked, added to and repaired."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from segpt.atomic import write_file
from segpt.config.base import decode, nearest, readable
from segpt.errors import CheckError, SpecError
from segpt.locks import locked

from .chain import INDEX, append, digest_of, index_of, place_of, read, settled, unfinished
from .check import check_all
from .entry import Chain, Entry, Link
from .ranking import Advance, Standing, standings
from .track import Track, Tracks

T = TypeVar("T")

COMING = ".coming"  # an entry until the index has it
WAIT = 60.0  # seconds for another process that adds an entry

_TRIES = 20  # to read while others write


class Board(NamedTuple):
    """A leaderboard of which nothing is damaged; ``chain`` is None while it is empty."""

    tracks: tuple[Track, ...]
    links: tuple[Link, ...]
    chain: Chain | None

    def standings(self) -> dict[str, list[Standing]]:
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
    return decode_file(Tracks, table, path).tracks


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
    links, broken = read(files, index)
    findings = [*broken, *check_all(tracks, links)]
    if head is not None and place_of(files, head) is None:
        findings.append(
            f"{head}: no entry has this digest; the chain was made anew since it was seen"
        )
    known = {name: data for name, data in files.items() if name in {link.file for link in links}}
    return Checked(tuple(findings), index_of(known))


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


def decode_file(cls: type[T], value: Any, path: Path) -> T:
    """What a file holds, as a spec; what is wrong with it is said with the path."""
    try:
        return decode(cls, value)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
