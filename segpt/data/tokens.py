"""Tokenized text on disk: shards in the layout of the field, and a manifest that proves them.

A directory of tokens holds ``manifest.json``, ``documents.bin`` (the sorted hashes of the
documents as little-endian uint64) and shards ``<split>_000000.bin``, ``..1.bin`` and so on. A
shard is 256 little-endian int32 (magic, version, count, zeros) and ``count`` ids: uint16 under
version 1, uint32 under version 2, which a vocabulary above 65536 needs. Documents follow each
other without a gap, each after a start id, and may cross from one shard into the next.
"""

import hashlib
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

from segpt import __version__
from segpt.atomic import new_directory
from segpt.errors import DataError
from segpt.values import Shard, Text, Tokenizer, Tokens

from . import manifest as manifests
from .manifest import AGAIN, LIMIT, NAME, SPLIT, Manifest, Part, encoding
from .text import Report, document_digest
from .tokenizer import load

MAGIC: Final = 20240520
HEADER: Final = 1024  # bytes
CHUNK: Final = 2**22  # ids looked at together

_OURS = re.compile(rf"{NAME}|documents\.bin|{SPLIT.pattern}_\d{{6}}\.bin")


def write_tokens(
    text: Text,
    tokenizer: Tokenizer,
    out: Path,
    *,
    split: str,
    report: Report | None = None,
    shard_tokens: int = 100_000_000,
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
    if not SPLIT.fullmatch(split):
        raise DataError(f"{split!r} cannot name a split; use letters, digits, '_', '.' and '-'")
    if not 1 <= shard_tokens < LIMIT:
        raise DataError(f"a shard takes 1 to {LIMIT - 1} tokens, not {shard_tokens}")
    if _is_occupied(out):
        raise DataError(f"{out}: holds other things than tokens; choose a new directory")
    codec = load(tokenizer)
    hashes = array("Q")
    bytes_read, digest = 0, hashlib.sha256()
    with new_directory(out) as folder:
        with _Writer(folder, split, tokenizer.vocab, shard_tokens) as writer:
            for document in text:
                writer.append(np.array([codec.start], dtype=np.uint32))
                writer.append(codec.encode(document))
                whole = document_digest(document)
                digest.update(whole)
                hashes.append(int.from_bytes(whole[:8], "big"))
                bytes_read += len(document)
                if report:
                    report(bytes_read)
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
            documents=Part(count=len(hashes), sha256=_sha256(documents)),
            shards=tuple(writer.shards),
        )
        manifests.write(folder, manifest)
    return read_tokens(out, verify=False)


def read_tokens(path: Path, *, verify: bool = True) -> Tokens:
    """Open a directory of tokens.

    Args:
        path: A directory that :func:`write_tokens` made.
        verify: Also hash every shard and look at every id, which reads them whole; without it,
            sizes and headers are checked.

    Raises:
        DataError: naming the first file that is missing, damaged or not what the manifest says.
    """
    path = Path(path)
    manifest, tokenizer = manifests.read(path)
    shards = tuple(
        Shard(_shard_path(path, manifest.split, i), part.count, part.sha256)
        for i, part in enumerate(manifest.shards)
    )
    for shard in shards:
        _check_shard(shard, tokenizer.vocab)
        if verify:
            _verify_shard(shard, tokenizer.vocab)
    return Tokens(
        tokenizer=tokenizer,
        split=manifest.split,
        count=manifest.count,
        bytes=manifest.bytes,
        documents=_read_documents(path / "documents.bin", manifest.documents),
        shards=shards,
        digest=manifest.digest,
    )


def overlap(a: Tokens, b: Tokens) -> NDArray[np.uint64]:
    """The hashes of the documents that are in both, once each, sorted."""
    return np.intersect1d(a.documents, b.documents)


class Stream:
    """Ids in a row, wherever they lie: memory-mapped shards or arrays."""

    def __init__(self, parts: Sequence[NDArray[np.integer]], vocab: int) -> None:
        self.vocab = vocab
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._parts else 0

    def slice(self, start: int, stop: int) -> NDArray[np.int64]:
        """The ids ``[start, stop)`` as a new int64 array (stop - start,).

        Raises:
            IndexError: if they are not all there.
            DataError: if one of them is outside the vocabulary.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"ids [{start}, {stop}) of {len(self)}")
        found = np.empty(stop - start, dtype=np.int64)
        filled = 0
        index = int(np.searchsorted(self._ends, start, side="right"))
        while filled < len(found):
            part = self._parts[index]
            begin = start + filled - (int(self._ends[index]) - len(part))
            piece = part[begin : begin + len(found) - filled]
            found[filled : filled + len(piece)] = piece
            filled, index = filled + len(piece), index + 1
        if found.size and not 0 <= found.min() <= found.max() < self.vocab:
            raise DataError(f"an id outside the vocabulary of {self.vocab}; {AGAIN}")
        return found


def ids(tokens: Tokens) -> Stream:
    """The ids of ``tokens``, memory-mapped."""
    vocab = tokens.tokenizer.vocab
    return Stream([_mapped(shard, vocab) for shard in tokens.shards], vocab)


class _Writer:
    """Appends ids to one shard after the other."""

    def __init__(self, folder: Path, split: str, vocab: int, limit: int) -> None:
        self.shards: list[Part] = []
        self._folder, self._split, self._vocab, self._limit = folder, split, vocab, limit
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

    def append(self, ids: NDArray[np.uint32]) -> None:
        if ids.size and ids.max() >= self._vocab:
            raise DataError(f"the tokenizer made id {ids.max()} of a vocabulary of {self._vocab}")
        while ids.size:
            if self._file is None:
                self._file = self._path.open("w+b")
                self._file.write(bytes(HEADER))
            taken, ids = np.split(ids, [self._limit - self._count])
            self._file.write(taken.astype(_dtype(self._vocab)).tobytes())
            self._count += len(taken)
            if self._count == self._limit:
                self._close()

    @property
    def _path(self) -> Path:
        return _shard_path(self._folder, self._split, len(self.shards))

    def _close(self) -> None:
        if self._file is None:
            return
        with self._file as file:
            file.seek(0)
            file.write(_header(self._count, self._vocab))
        self.shards.append(Part(count=self._count, sha256=_sha256(self._path)))
        self._file, self._count = None, 0


def _is_occupied(path: Path) -> bool:
    """Whether replacing ``path`` would destroy anything but tokens, whole or damaged."""
    if not path.is_dir():
        return path.exists()
    return not all(_OURS.fullmatch(entry.name) for entry in path.iterdir())


def _shard_path(folder: Path, split: str, index: int) -> Path:
    return folder / f"{split}_{index:06}.bin"


def _dtype(vocab: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u2" if vocab <= 2**16 else "<u4")


def _header(count: int, vocab: int) -> bytes:
    header = np.zeros(HEADER // 4, dtype="<i4")
    header[:3] = MAGIC, _dtype(vocab).itemsize // 2, count
    return header.tobytes()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_documents(path: Path, part: Part) -> NDArray[np.uint64]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); {AGAIN}") from error
    if len(data) != 8 * part.count or hashlib.sha256(data).hexdigest() != part.sha256:
        raise DataError(f"{path}: changed since it was written; {AGAIN}")
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)


def _check_shard(shard: Shard, vocab: int) -> None:
    try:
        size = shard.path.stat().st_size
        with shard.path.open("rb") as file:
            header = file.read(HEADER)
    except OSError as error:
        raise DataError(f"{shard.path}: cannot be read ({error}); {AGAIN}") from error
    if header != _header(shard.tokens, vocab):
        found = np.frombuffer(header[:12].ljust(12, b"\0"), dtype="<i4").tolist()
        raise DataError(
            f"{shard.path}: not a shard of {shard.tokens} tokens (magic, version and count are "
            f"{found}); {AGAIN}"
        )
    if size != HEADER + shard.tokens * _dtype(vocab).itemsize:
        raise DataError(f"{shard.path}: {size} bytes are not {shard.tokens} tokens; {AGAIN}")


def _verify_shard(shard: Shard, vocab: int) -> None:
    if _sha256(shard.path) != shard.sha256:
        raise DataError(f"{shard.path}: its SHA-256 is not the manifest's; {AGAIN}")
    ids = _mapped(shard, vocab)
    if any(ids[start : start + CHUNK].max() >= vocab for start in range(0, len(ids), CHUNK)):
        raise DataError(f"{shard.path}: an id outside the vocabulary of {vocab}; {AGAIN}")


def _mapped(shard: Shard, vocab: int) -> NDArray[np.integer]:
    return np.memmap(shard.path, _dtype(vocab), "r", offset=HEADER, shape=(shard.tokens,))
