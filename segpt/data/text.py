"""Documents as bytes, streamed from files."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import fstat, stat_result
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpt.errors import DataError
from segpt.values import Text

from .compression import ERRORS, reason
from .documents import AGAIN, Document, documents
from .selection import ALL, LeftOut, Selection
from .sources import Notice, find, shown

UNLISTED = "unchecked: no document list"  # what a score says where trained_on is None

Report = Callable[[int], None]


def read_text(
    paths: Sequence[Path],
    *,
    field: str = "text",
    selection: Selection = ALL,
    report: Report | None = None,
    notice: Notice | None = None,
) -> Text:
    """The documents of files and directories, read as they are asked for.

    A ``.txt`` file is one document, or several between lines ``<|endoftext|>``, in any encoding.
    A ``.jsonl`` or ``.ndjson`` file has one object per line, a ``.json`` file a list of objects,
    one, or several one after another, and a ``.parquet`` file one row per document, with the
    document in ``field``. Any of them may be compressed (``.gz``, ``.bz2``, ``.xz``, ``.zst``),
    and a directory stands for such files below it, as :func:`segpt.data.sources.find` says. A text
    that is there twice is read once, and documents that are null or empty are left out.

    Args:
        paths: Files and directories.
        field: The name of the key or column that holds the text, or a path of them with dots.
        selection: Which documents are kept.
        report: Called after each document with the bytes of the files consumed so far, of
            :func:`total_bytes`.
        notice: Called with a line about what is left out; once, however often the text is read.

    Raises:
        DataError: if a path is missing or of an unknown kind; on reading, if a file is damaged or
            changes meanwhile, or there is no document at all.
    """
    files = find(paths, notice)
    states = [path.stat() for path in files]
    first = shown(Path(files[0].name))
    name = first if len(files) == 1 else f"{first} and {len(files) - 1} more"
    silent = notice is None

    def read() -> Iterator[bytes]:
        nonlocal silent
        consumed, tally = 0, _Tally(name, selection)
        for path, state in zip(files, states, strict=True):
            for document, position in _documents(path, state, field, selection):
                if (kept := tally.kept(document)) is not None:
                    yield kept
                if report:
                    report(consumed + position)
            consumed += state.st_size
        tally.check()
        if notice and not silent:
            for line in tally.lines():
                notice(line)
        silent = True

    return Text(name, read)


class _Tally:
    """How many documents of a text are kept, and why others are not."""

    def __init__(self, name: str, selection: Selection) -> None:
        self._name, self._selection = name, selection
        self._kept, self._null, self._empty, self._others = 0, 0, 0, 0

    def kept(self, document: Document) -> bytes | None:
        """The document if it is kept; counted in any case."""
        if document is None:
            self._null += 1
        elif isinstance(document, LeftOut):
            self._others += 1
        elif not document:
            self._empty += 1
        elif self._selection.long_enough(document):
            self._kept += 1
            return document
        else:
            self._others += 1
        return None

    @property
    def _whole(self) -> int:
        return self._kept + self._null + self._empty + self._others

    def check(self) -> None:
        """Refuse a text of which nothing is kept."""
        if self._kept:
            return
        if self._others:
            raise DataError(
                f"{self._name}: none of its {self._whole:,} documents is kept by "
                f"{self._selection}; ask for less, or look at the names and values of its fields"
            )
        raise DataError(f"{self._name}: no text in it; give files with at least one document")

    def lines(self) -> list[str]:
        """What is left out, for people."""
        lines = []
        if without := self._null + self._empty:
            lines.append(
                f"{self._name}: {without:,} of {self._whole:,} documents hold no text "
                f"({self._null:,} null, {self._empty:,} empty) and are left out"
            )
        if self._selection:
            lines.append(
                f"{self._name}: {self._kept:,} of {self._whole:,} documents are kept by "
                f"{self._selection}"
            )
        return lines


def total_bytes(paths: Sequence[Path]) -> int:
    """The size of the files that :func:`read_text` reads, as they are on the disk.

    Raises:
        DataError: if a path is missing or of an unknown kind.
    """
    return sum(path.stat().st_size for path in find(paths))


def document_digest(document: bytes) -> bytes:
    """The SHA-256 of a document."""
    return hashlib.sha256(document).digest()


def document_hash(document: bytes) -> int:
    """The first 8 bytes of the document's SHA-256, as its hexadecimal form is read."""
    return int.from_bytes(document_digest(document)[:8], "big")


def trained_on(
    documents: Iterable[bytes], hashes: NDArray[np.uint64] | None
) -> tuple[int, int] | None:
    """How many documents are among the hashes of those that a model saw, and how many there are.

    Returns:
        None where no list of hashes is at hand, or one that names no document: it proves nothing.
    """
    if hashes is None or not len(hashes):
        return None
    own = np.array([document_hash(document) for document in documents], np.uint64)
    return int(np.isin(own, hashes).sum()), len(own)


def text_digest(documents: Iterable[bytes]) -> str:
    """SHA-256 over the SHA-256 of each document, in hexadecimal."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document_digest(document))
    return digest.hexdigest()


def _documents(
    path: Path, state: stat_result, field: str, selection: Selection
) -> Iterator[tuple[Document, int]]:
    """Each document of a file, and how much of the file was read to get it."""
    try:
        with path.open("rb") as file:
            _check_unchanged(path, state, fstat(file.fileno()))
            for document in documents(path, file, field, selection):
                yield document, file.tell()
            _check_unchanged(path, state, fstat(file.fileno()))
    except ERRORS as error:
        raise DataError(f"{shown(path)}: cannot be read ({reason(error)}); {AGAIN}") from error
    except MemoryError as error:
        raise DataError(
            f"{shown(path)}: a document does not fit into memory; cut it into several"
        ) from error


def _check_unchanged(path: Path, before: stat_result, now: stat_result) -> None:
    """A text is read several times, and has to be the same each time."""
    if (before.st_size, before.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
        raise DataError(
            f"{shown(path)}: changed while it was being read; try again when nothing writes to it"
        )
