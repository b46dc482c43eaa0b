"""The chain of entries: each file names the digest of the one before it, so none can be touched.

Whoever knows the digest of the last file can tell later whether anything before it was changed.
Against a chain that was made wholly anew nothing helps but a digest that was kept elsewhere.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple, NoReturn, TypeVar

from segpt.config.base import decode, readable
from segpt.errors import SpecError

from .entry import ROOT, Chain, Entry, Link

T = TypeVar("T")

INDEX = "chain.json"

_NAME = re.compile(r"([0-9]{4,})-[a-z0-9-]+\.json")


class ChainReading(NamedTuple):
    """What files hold: the entries that can be read, in order, and all that is wrong."""

    links: tuple[Link, ...]
    findings: tuple[str, ...]


class Addition(NamedTuple):
    """A new entry in its place, and the index with it."""

    link: Link
    data: bytes
    chain: Chain


def digest_of(data: bytes) -> str:
    """The SHA-256 by which the next file names this one."""
    return hashlib.sha256(data).hexdigest()


def read(files: Mapping[str, bytes], index: bytes | None) -> ChainReading:
    """Everything about a chain that can be found without its artifacts and texts.

    A file that cannot be read does not keep the others from being checked.

    Args:
        files: the contents of the records directory, by name.
        index: the contents of ``chain.json``, None if there is none.
    """
    links: dict[str, Link] = {}
    findings: list[str] = []
    for name in sorted(files):
        link, finding = _open_link(name, files[name])
        if link is not None:
            links[name] = link
        if finding:
            findings.append(finding)
    numbered = {name: int(match[1]) for name in files if (match := _NAME.fullmatch(name))}
    order = sorted(numbered, key=lambda name: (numbered[name], name))
    findings += _check_numbers(order, numbered)
    findings += _check_order(order, files, links)
    findings += _check_index(order, files, index)
    return ChainReading(tuple(links[name] for name in order if name in links), tuple(findings))


def settled(
    files: Mapping[str, bytes], index: bytes | None, coming: bytes | None
) -> Mapping[str, bytes]:
    """The files with the last entry, if that is in the index and has not got its name yet.

    Args:
        files: the contents of the records directory, by name.
        index: the contents of ``chain.json``, which decides what belongs to the chain.
        coming: an entry that lies beside the others until the index has it.
    """
    if index is None or coming is None:
        return files
    chain, finding = _open(Chain, INDEX, index)
    if finding or chain is None or digest_of(coming) != chain.head:
        return files
    link, _ = _open(Link, "", coming)
    if link is None or link.file in files:
        return files
    return {**files, link.file: coming}


def unfinished(files: Mapping[str, bytes], index: bytes | None) -> str | None:
    """The last entry, if it is the only thing that keeps the chain from being whole.

    That is what versions left behind that wrote the entry before the index, when they were killed
    between the two.
    """
    if not files or not all(_NAME.fullmatch(name) for name in files):
        return None
    last = max(files, key=_number)
    before = {name: data for name, data in files.items() if name != last}
    return None if read(before, index).findings else last


def index_of(files: Mapping[str, bytes]) -> Chain | None:
    """The index of sound files, None if there are none."""
    digests = [digest_of(files[name]) for name in sorted(files, key=_number)]
    return Chain(root=digests[0], head=digests[-1], count=len(digests)) if digests else None


def append(files: Mapping[str, bytes], entry: Entry) -> Addition:
    """The link that holds ``entry`` behind those in ``files``, which are sound.

    Raises:
        SpecError: if the entry cannot be written.
    """
    before = index_of(files)
    link = Link(
        number=1 if before is None else before.count + 1,
        previous=ROOT if before is None else before.head,
        entry=entry,
    )
    try:
        data = readable(link)
    except UnicodeEncodeError:
        raise SpecError(f"{link.file}: holds text that is not Unicode; write it in UTF-8") from None
    after = index_of({**files, link.file: data})
    assert after is not None
    return Addition(link, data, after)


def place_of(files: Mapping[str, bytes], digest: str) -> str | None:
    """The file of this digest; None if the chain does not hold what it once held."""
    return next((name for name, data in files.items() if digest_of(data) == digest), None)


def _number(name: str) -> int:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match[1])


def _open_link(name: str, data: bytes) -> tuple[Link | None, str]:
    if not _NAME.fullmatch(name):
        return None, f"{name}: not an entry of the leaderboard; remove it"
    link, finding = _open(Link, name, data)
    if link is not None and link.file != name:
        return link, f"{name}: a file with this number and name is called {link.file}"
    return link, finding


def _open(cls: type[T], name: str, data: bytes) -> tuple[T | None, str]:
    """What a file holds if it can be told, and what is wrong with it, if anything is."""
    try:
        value = decode(cls, json.loads(data, parse_constant=_refuse))
        written = readable(value)
    except SpecError as error:
        return None, f"{name}: {error}"
    except (ValueError, RecursionError) as error:
        return None, f"{name} is not valid JSON: {error}"
    if written != data:
        return value, f"{name}: not as segpt wrote it; {_difference(written, data)}"
    return value, ""


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")


def _difference(written: bytes, data: bytes) -> str:
    ours, theirs = written.splitlines(keepends=True), data.splitlines(keepends=True)
    pairs: Iterator[tuple[int, tuple[bytes, bytes]]] = enumerate(zip(ours, theirs, strict=False), 1)
    line = next((number for number, (a, b) in pairs if a != b), min(len(ours), len(theirs)) + 1)
    return f"line {line} was changed"


def _check_numbers(order: list[str], numbered: Mapping[str, int]) -> Iterator[str]:
    expected = 1
    for name in order:
        number = numbered[name]
        if number < expected:
            yield f"{name}: there is another entry with the number {number}"
        elif number > expected:
            last = f" to {number - 1}" if number - 1 > expected else ""
            yield f"{name}: the entries before it, {expected}{last}, are missing"
        expected = max(expected, number + 1)


def _check_order(
    order: list[str], files: Mapping[str, bytes], links: Mapping[str, Link]
) -> Iterator[str]:
    previous, before = ROOT, "the beginning"
    for name in order:
        if name in links and links[name].previous != previous:
            yield (
                f"{name}: follows {links[name].previous[:12]!r}, but {before} is "
                f"{previous[:12]!r}; one of the two was changed"
            )
        previous, before = digest_of(files[name]), name


def _check_index(order: list[str], files: Mapping[str, bytes], data: bytes | None) -> Iterator[str]:
    actual = index_of({name: files[name] for name in order})
    if data is None:
        if actual is not None:
            yield f"{INDEX}: missing, and there are {actual.count:,} entries"
        return
    index, finding = _open(Chain, INDEX, data)
    if finding:
        yield finding
    if index is None:
        return
    if actual is None:
        yield f"{INDEX}: says that there are {index.count:,} entries, and there are none"
        return
    for what, said, made in (
        ("entries", f"{index.count:,}", f"{actual.count:,}"),
        ("root", index.root, actual.root),
        ("head", index.head, actual.head),
    ):
        if said != made:
            yield f"{INDEX}: {what}: says {said[:12]}, and the files give {made[:12]}"
