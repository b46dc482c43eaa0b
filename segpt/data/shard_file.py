"""One shard of tokens on disk: its name, its header, its ids, and whether it is what it should be.

A shard is 256 little-endian int32 (magic, version, count, zeros) and ``count`` ids: uint16 under
version 1, uint32 under version 2, which a vocabulary above 65536 needs.
"""

import hashlib
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from segpt.errors import DataError
from segpt.values import IdLayout, Shard

from .manifest import AGAIN, Manifest

MAGIC: Final = 20240520
HEADER: Final = 1024  # bytes
CHUNK: Final = 2**22  # ids looked at together
LINK_AGAIN: Final = "put it back, or run `segpt data link` again"


def shard_path(folder: Path, split: str, index: int) -> Path:
    """The file of a shard by its number."""
    return folder / f"{split}_{index:06}.bin"


def shards_of(folder: Path, manifest: Manifest) -> tuple[Shard, ...]:
    """The shards of a manifest: in its folder, or where its sources are."""
    if not manifest.sources:
        return tuple(
            Shard(shard_path(folder, manifest.split, i), part.count, part.sha256)
            for i, part in enumerate(manifest.shards)
        )
    return tuple(
        Shard(Path(s.path), part.count, part.sha256, IdLayout(s.ids, s.offset, s.size, s.mtime))
        for part, s in zip(manifest.shards, manifest.sources, strict=True)
    )


def id_type(vocab: int) -> np.dtype[np.unsignedinteger]:
    """How an id of a vocabulary is stored."""
    return np.dtype("<u2" if vocab <= 2**16 else "<u4")


def header_of(count: int, vocab: int) -> bytes:
    """The header of a shard of ``count`` ids."""
    header = np.zeros(HEADER // 4, dtype="<i4")
    header[:3] = MAGIC, id_type(vocab).itemsize // 2, count
    return header.tobytes()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_shard(shard: Shard, vocab: int) -> None:
    """Look at size and header; of a linked file, at its size.

    Raises:
        DataError: if the shard is missing or they are not those of it.
    """
    if shard.link is not None:
        _state(shard, shard.link)
        return
    try:
        size = shard.path.stat().st_size
        with shard.path.open("rb") as file:
            header = file.read(HEADER)
    except OSError as error:
        raise DataError(f"{shard.path}: cannot be read ({error}); {AGAIN}") from error
    if header != header_of(shard.tokens, vocab):
        numbers = np.frombuffer(header[:12].ljust(12, b"\0"), dtype="<i4").tolist()
        raise DataError(
            f"{shard.path}: not a shard of {shard.tokens} tokens (magic, version and count are "
            f"{numbers}); {AGAIN}"
        )
    if size != HEADER + shard.tokens * id_type(vocab).itemsize:
        raise DataError(f"{shard.path}: {size} bytes are not {shard.tokens} tokens; {AGAIN}")


def verify_shard(shard: Shard, vocab: int, *, rehash: bool = False) -> None:
    """Hash a shard, and look at every id; of a linked file, where its time changed.

    Args:
        shard: The shard, whose size and header are right.
        vocab: What its ids are below.
        rehash: Look into a linked file too whose time is as it was.

    Raises:
        DataError: if it changed, or an id is outside the vocabulary.
    """
    again = AGAIN if shard.link is None else LINK_AGAIN
    if shard.link is not None and not rehash and _state(shard, shard.link) == shard.link.mtime:
        return
    if sha256_of(shard.path) != shard.sha256:
        raise DataError(f"{shard.path}: its SHA-256 is not the manifest's; {again}")
    ids = mapped(shard, vocab)
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        if part.min() < 0 or part.max() >= vocab:
            raise DataError(f"{shard.path}: an id outside the vocabulary of {vocab}; {again}")


def mapped(shard: Shard, vocab: int) -> NDArray[np.integer]:
    """The ids of a shard, memory-mapped, (tokens,)."""
    if (link := shard.link) is not None:
        return np.memmap(shard.path, link.ids, "r", offset=link.offset, shape=(shard.tokens,))
    return np.memmap(shard.path, id_type(vocab), "r", offset=HEADER, shape=(shard.tokens,))


def _state(shard: Shard, link: IdLayout) -> int:
    """When a linked file was changed last, if it has the size that it had."""
    try:
        state = shard.path.stat()
    except OSError as error:
        raise DataError(
            f"{shard.path}: a linked file cannot be read ({error.strerror}); {LINK_AGAIN}"
        ) from error
    if not shard.path.is_file() or state.st_size != link.size:
        raise DataError(
            f"{shard.path}: has {state.st_size:,} bytes, and had {link.size:,} when it was linked; "
            f"{LINK_AGAIN}"
        )
    return state.st_mtime_ns
