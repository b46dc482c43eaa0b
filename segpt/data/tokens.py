"""Tokenized text on disk: shards in the layout of the field, and a manifest that proves them.

A directory of tokens holds ``manifest.json``, ``documents.bin`` (the sorted hashes of the
documents as little-endian uint64) and shards ``<split>_000000.bin``, ``..1.bin`` and so on, each as
:mod:`segpt.data.shard_file` has it. Documents follow each other without a gap, each after a start
id, and may cross from one shard into the next.
"""

import hashlib
import json
import re
import shutil
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

from segpt import __version__
from segpt.atomic import new_directory, write_file
from segpt.errors import DataError
from segpt.values import Text, Tokenizer, Tokens

from . import manifest as manifests
from .manifest import AGAIN, LIMIT, NAME, SPLIT, Manifest, Part, encoding
from .shard_file import (
    HEADER,
    check_shard,
    header_of,
    id_type,
    mapped,
    sha256_of,
    shard_path,
    shards_of,
    verify_shard,
)
from .text import Report, document_digest
from .tokenizer import load

SHARD: Final = 100_000_000  # ids of a shard, unless it is the last

_BEGUN = "begun.json"

_OURS = re.compile(rf"{NAME}|{_BEGUN}|documents\.bin|{SPLIT.pattern}_\d{{6}}\.bin")


def write_tokens(
    text: Text,
    tokenizer: Tokenizer,
    out: Path,
    *,
    split: str,
    report: Report | None = None,
    shard_tokens: int = SHARD,
) -> Tokens:
    """Tokenize ``text`` into the directory ``out``, which appears whole or not at all.

    Memory holds one document and 8 bytes for each one before it.

    Args:
        text: The documents.
        tokenizer: What to tokenize with.
        out: The directory; tokens that are there already are replaced.
        split: Names the shards, for example ``train``.
        report: Called after each document with the bytes of text tokenized so far.
        shard_tokens: How many ids a shard takes at most.

    Raises:
        DataError: if the text is empty or cannot be tokenized, or ``out`` holds anything else.
    """
    out = Path(out).resolve()
    if out.exists() and not (out.is_dir() and (is_tokens(out) or not any(out.iterdir()))):
        raise DataError(f"{out}: holds other things than tokens; choose a new directory")
    with new_directory(out, replaces=is_tokens) as folder:
        _write(text, tokenizer, folder, split, report, shard_tokens)
    return read_tokens(out, verify=False)


def continue_tokens(
    text: Text,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    split: str,
    report: Report | None = None,
    shard_tokens: int = SHARD,
    limit: int | None = None,
) -> Tokens:
    """Tokenize ``text`` into ``folder``, from the last shard on that an interrupted call finished.

    The folder holds no whole tokens before the call returns, and then the same as
    :func:`write_tokens` makes of this text; the text, ``shard_tokens`` and ``limit`` must be those
    of the call before, the tokenizer is looked at. With a ``limit``, the document in which so many
    tokens are reached is the last.

    Raises:
        DataError: if the text is empty or cannot be tokenized.
    """
    if (folder / NAME).is_file():
        try:
            tokens = read_tokens(folder)
        except DataError:  # stopped while it was being written
            tokens = None
        if tokens is not None and (tokens.tokenizer, tokens.split) == (tokenizer, split):
            (folder / _BEGUN).unlink(missing_ok=True)
            return tokens
    begun = _Begun.read(folder, split, tokenizer)
    if not begun.shards:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    _write(text, tokenizer, folder, split, report, shard_tokens, begun, limit)
    (folder / _BEGUN).unlink(missing_ok=True)
    return read_tokens(folder, verify=False)


@dataclass(frozen=True)
class _Begun:
    """How far an interrupted call came.

    Attributes:
        shards: those that are finished.
        document: which document the last of them ends in.
        ids: how many ids of this document are in them, its start included.
    """

    shards: tuple[Part, ...] = ()
    document: int = 0
    ids: int = 0

    @staticmethod
    def read(folder: Path, split: str, tokenizer: Tokenizer) -> "_Begun":
        """What lies in ``folder``, or nothing if it is damaged or of another tokenizer."""
        try:
            table = json.loads((folder / _BEGUN).read_bytes())
            shards = tuple(Part(count=int(n), sha256=str(digest)) for n, digest in table["shards"])
            whole = all(
                sha256_of(shard_path(folder, split, i)) == part.sha256
                for i, part in enumerate(shards)
            )
            if whole and table["tokenizer"] == tokenizer.fingerprint:
                return _Begun(shards, int(table["document"]), int(table["ids"]))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            pass
        return _Begun()

    def write(self, folder: Path, tokenizer: Tokenizer) -> None:
        table = {
            "tokenizer": tokenizer.fingerprint,
            "shards": [(part.count, part.sha256) for part in self.shards],
            "document": self.document,
            "ids": self.ids,
        }
        write_file(folder / _BEGUN, json.dumps(table).encode())


def _write(
    text: Text,
    tokenizer: Tokenizer,
    folder: Path,
    split: str,
    report: Report | None,
    shard_tokens: int,
    begun: _Begun | None = None,
    limit: int | None = None,
) -> None:
    """Fill ``folder``; with ``begun``, after its shards, and so that a later call can go on."""
    if not SPLIT.fullmatch(split):
        raise DataError(f"{split!r} cannot name a split; use letters, digits, '_', '.' and '-'")
    if not 1 <= shard_tokens < LIMIT:
        raise DataError(f"a shard takes 1 to {LIMIT - 1} tokens, not {shard_tokens}")
    codec = load(tokenizer)
    hashes = array("Q")
    bytes_read, digest = 0, hashlib.sha256()
    with _Writer(folder, split, tokenizer, shard_tokens, begun) as writer:
        for number, document in enumerate(text):
            if begun is None or number >= begun.document:
                start = np.array([codec.start], dtype=np.uint32)
                ids = np.concatenate([start, codec.encode(document)])
                writer.append(number, ids)
            whole = document_digest(document)
            digest.update(whole)
            hashes.append(int.from_bytes(whole[:8], "big"))
            bytes_read += len(document)
            if report:
                report(bytes_read)
            done = begun is None or number >= begun.document
            if limit is not None and done and writer.total >= limit:
                break
    if not hashes:
        raise DataError(f"{text.name}: no documents; give a text that is not empty")
    documents = folder / "documents.bin"
    documents.write_bytes(np.sort(np.array(hashes, dtype=np.uint64)).astype("<u8").tobytes())
    manifest = Manifest(
        segpt=__version__,
        text=text.name,
        split=split,
        tokenizer=encoding(tokenizer),
        count=sum(shard.count for shard in writer.shards),
        bytes=bytes_read,
        text_digest=digest.hexdigest(),
        documents=Part(count=len(hashes), sha256=sha256_of(documents)),
        shards=tuple(writer.shards),
    )
    manifests.write(folder, manifest)


def read_tokens(path: Path, *, verify: bool = True, rehash: bool = False) -> Tokens:
    """Open a directory of tokens.

    Args:
        path: A directory that :func:`write_tokens` made, or :func:`segpt.data.linked.link_tokens`.
        verify: Also hash every shard and look at every id, which reads them whole; without it,
            sizes and headers are checked.
        rehash: Hash linked files too that have the size and time that they had.

    Raises:
        DataError: naming the first file that is missing, damaged or not what the manifest says.
    """
    path = Path(path)
    manifest, tokenizer = manifests.read(path)
    shards = shards_of(path, manifest)
    for shard in shards:
        check_shard(shard, tokenizer.vocab)
        if verify:
            verify_shard(shard, tokenizer.vocab, rehash=rehash)
    return Tokens(
        tokenizer=tokenizer,
        split=manifest.split,
        count=manifest.count,
        bytes=manifest.bytes,
        documents=_read_documents(path / "documents.bin", manifest.documents),
        shards=shards,
        digest=manifest.digest,
        text=manifest.text,
        text_digest=manifest.text_digest,
        folder=path,
        comparable=not manifest.sources or load(tokenizer).lossless,
    )


def overlap(a: Tokens, b: Tokens) -> NDArray[np.uint64]:
    """The hashes of the documents that are in both, once each, sorted, (documents,).

    Raises:
        DataError: if one of them does not tell the documents, and another tokenizer made the other.
    """
    same = (a.tokenizer, a.comparable) == (b.tokenizer, b.comparable)
    if not (same or (a.comparable and b.comparable)):
        blind, other = (b, a) if a.comparable else (a, b)
        raise DataError(
            f"{blind.text}: the tokenizer of these linked files loses text, so their documents "
            f"cannot be compared with those of {other.text}; prepare the text itself"
        )
    return np.intersect1d(a.documents, b.documents)


class Stream:
    """Ids in a row, wherever they lie: memory-mapped shards or arrays."""

    def __init__(self, parts: Sequence[NDArray[np.integer]], vocab: int) -> None:
        self.vocab = vocab
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._parts else 0

    def upto(self, stop: int) -> "Stream":
        """The first ``stop`` ids, or all of them if there are fewer."""
        begins = (int(end) - len(part) for end, part in zip(self._ends, self._parts, strict=True))
        parts = zip(self._parts, begins, strict=True)
        return Stream([part[: stop - begin] for part, begin in parts if begin < stop], self.vocab)

    def slice(self, start: int, stop: int) -> NDArray[np.int64]:
        """The ids ``[start, stop)`` as a new int64 array (stop - start,).

        Raises:
            IndexError: if they are not all there.
            DataError: if one of them is outside the vocabulary.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"ids [{start}, {stop}) of {len(self)}")
        copied = np.empty(stop - start, dtype=np.int64)
        filled = 0
        index = int(np.searchsorted(self._ends, start, side="right"))
        while filled < len(copied):
            part = self._parts[index]
            begin = start + filled - (int(self._ends[index]) - len(part))
            piece = part[begin : begin + len(copied) - filled]
            copied[filled : filled + len(piece)] = piece
            filled, index = filled + len(piece), index + 1
        if copied.size and not 0 <= copied.min() <= copied.max() < self.vocab:
            raise DataError(f"an id outside the vocabulary of {self.vocab}; {AGAIN}")
        return copied


@dataclass(frozen=True)
class HeldTokens(Tokens):
    """A tokenized text in memory, without shards: ``held`` are its ids (count,)."""

    held: NDArray[np.uint32] = field(kw_only=True, repr=False, compare=False)


def ids(tokens: Tokens) -> Stream:
    """The ids of ``tokens``, memory-mapped unless they are in memory."""
    vocab = tokens.tokenizer.vocab
    if isinstance(tokens, HeldTokens):
        return Stream([tokens.held], vocab)
    return Stream([mapped(shard, vocab) for shard in tokens.shards], vocab)


class _Writer:
    """Appends documents to one shard after the other, and notes where each shard ends."""

    def __init__(
        self, folder: Path, split: str, tokenizer: Tokenizer, limit: int, begun: _Begun | None
    ) -> None:
        self.shards = list(begun.shards) if begun else []
        self._folder, self._split, self._limit = folder, split, limit
        self._tokenizer, self._vocab, self._begun = tokenizer, tokenizer.vocab, begun
        self._file: BinaryIO | None = None
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def append(self, number: int, ids: NDArray[np.uint32]) -> None:
        """Append the ids of a document, as far as they are not in the shards that were begun."""
        if ids.max() >= self._vocab:
            raise DataError(f"the tokenizer made id {ids.max()} of a vocabulary of {self._vocab}")
        begun = self._begun
        written = begun.ids if begun and number == begun.document else 0
        while written < len(ids):
            if self._file is None:
                self._file = self._path.open("w+b")
                self._file.write(bytes(HEADER))
            taken = ids[written : written + self._limit - self._count]
            self._file.write(taken.astype(id_type(self._vocab)).tobytes())
            self._count += len(taken)
            written += len(taken)
            if self._count == self._limit:
                self._close()
                if begun is not None:
                    _Begun(tuple(self.shards), number, written).write(self._folder, self._tokenizer)

    @property
    def total(self) -> int:
        """How many ids are in all shards so far."""
        return sum(shard.count for shard in self.shards) + self._count

    @property
    def _path(self) -> Path:
        return shard_path(self._folder, self._split, len(self.shards))

    def _close(self) -> None:
        if self._file is None:
            return
        with self._file as file:
            file.seek(0)
            file.write(header_of(self._count, self._vocab))
        self.shards.append(Part(count=self._count, sha256=sha256_of(self._path)))
        self._file, self._count = None, 0


def is_tokens(path: Path) -> bool:
    """Whether a directory holds tokens with our manifest, whole or damaged, and nothing else.

    Shards alone tell nothing: other programs write them too.
    """
    if not (path / NAME).is_file():
        return False
    if not all(_OURS.fullmatch(entry.name) and entry.is_file() for entry in path.iterdir()):
        return False
    with (path / NAME).open("rb") as file:
        return re.match(rb'\{\s*"kind": "manifest"', file.read(64)) is not None


def _read_documents(path: Path, part: Part) -> NDArray[np.uint64]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); {AGAIN}") from error
    if len(data) != 8 * part.count or hashlib.sha256(data).hexdigest() != part.sha256:
        raise DataError(f"{path}: changed since it was written; {AGAIN}")
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)
