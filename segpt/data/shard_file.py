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
from segpt.values import Shard

from .manifest import AGAIN

MAGIC: Final = 20240520
HEADER: Final = 1024  # bytes
CHUNK: Final = 2**22  # ids looked at together


def shard_path(folder: Path, split: str, index: int) -> Path:
    """The file of a shard by its number."""
    return folder / f"{split}_{index:06}.bin"


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
    """Look at size and header.

    Raises:
        DataError: if the shard is missing or they are not those of it.
    """
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


def verify_shard(shard: Shard, vocab: int) -> None:
    """Hash a shard, and look at every id.

    Raises:
        DataError: if it changed, or an id is outside the vocabulary.
    """
    if sha256_of(shard.path) != shard.sha256:
        raise DataError(f"{shard.path}: its SHA-256 is not the manifest's; {AGAIN}")
    ids = mapped(shard, vocab)
    if any(ids[start : start + CHUNK].max() >= vocab for start in range(0, len(ids), CHUNK)):
        raise DataError(f"{shard.path}: an id outside the vocabulary of {vocab}; {AGAIN}")


def mapped(shard: Shard, vocab: int) -> NDArray[np.integer]:
    """The ids of a shard, memory-mapped."""
    return np.memmap(shard.path, id_type(vocab), "r", offset=HEADER, shape=(shard.tokens,))
