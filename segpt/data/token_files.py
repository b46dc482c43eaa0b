"""Files of ids that other programs write, opened where they lie: memory-mapped, never copied.

Known are the shards of modded-nanogpt and Parameter Golf, those of llm.c, arrays of numpy, and
files of ids without any header, whose type has to be declared.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from segpt.errors import DataError

from .shard_file import CHUNK, HEADER, MAGIC

LLM_C: Final = 20240801
ID_TYPES: Final = ("uint16", "uint32", "int32", "int64")

_NAMES: Final = {MAGIC: "modded-nanogpt", LLM_C: "llm.c"}
_TYPES: Final = {(MAGIC, 1): "<u2", (MAGIC, 2): "<u4", (LLM_C, 1): "<u2", (LLM_C, 7): "<u4"}
_AGAIN: Final = "fetch it again, or write it anew"


@dataclass(frozen=True, eq=False)
class TokenFile:
    """A file of ids: its form, where they begin, and the ids (tokens,), memory-mapped."""

    path: Path
    form: str
    offset: int
    ids: NDArray[np.integer] = field(repr=False)

    def span(self) -> tuple[int, int]:
        """The smallest and the largest id; reads the file once, a part at a time.

        Raises:
            DataError: if an id is negative.
        """
        least, most = 2**63 - 1, 0
        for begin in range(0, len(self.ids), CHUNK):
            part = self.ids[begin : begin + CHUNK]
            least, most = min(least, int(part.min())), max(most, int(part.max()))
        if least < 0:
            raise DataError(f"{self.path}: holds the negative id {least}; {_AGAIN}")
        return least, most


def open_token_file(path: Path, id_type: str | None = None) -> TokenFile:
    """Open a file of ids in whatever form it is.

    Args:
        path: the file, whose name ends in ``.bin`` or ``.npy``.
        id_type: one of ``ID_TYPES``, for a file without a header.

    Raises:
        DataError: naming the file, if it is missing, empty, damaged or of no known form.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error
    if not size:
        raise DataError(f"{path}: is empty; {_AGAIN}")
    if path.suffix == ".npy":
        return _array(path)
    magic, version, count = np.frombuffer(head.ljust(12, b"\0"), "<i4").tolist()
    if magic in _NAMES and id_type is None:
        return _shard(path, size, magic, version, count)
    if int(np.frombuffer(head.ljust(12, b"\0"), ">i4")[0]) in _NAMES and id_type is None:
        raise DataError(f"{path}: its numbers are big-endian; write it anew as little-endian")
    if id_type is None:
        raise DataError(
            f"{path}: has no header that is known; declare what its ids are, one of "
            f"{', '.join(ID_TYPES)}"
        )
    return _headerless(path, size, id_type)


def _shard(path: Path, size: int, magic: int, version: int, count: int) -> TokenFile:
    name = _TYPES.get((magic, version))
    if name is None:
        raise DataError(f"{path}: version {version} of {_NAMES[magic]} is not known; {_AGAIN}")
    dtype = np.dtype(name)
    if count < 1 or size != HEADER + count * dtype.itemsize:
        raise DataError(f"{path}: {size:,} bytes are not {count:,} tokens; {_AGAIN}")
    ids = np.memmap(path, dtype, "r", offset=HEADER, shape=(count,))
    return TokenFile(path, _NAMES[magic], HEADER, ids)


def _headerless(path: Path, size: int, id_type: str) -> TokenFile:
    if id_type not in ID_TYPES:
        raise DataError(f"{id_type!r} is no type of ids; choose one of {', '.join(ID_TYPES)}")
    dtype = np.dtype(id_type).newbyteorder("<")
    if size % dtype.itemsize:
        raise DataError(f"{path}: {size:,} bytes are no whole number of {id_type}; {_AGAIN}")
    return TokenFile(path, "headerless", 0, np.memmap(path, dtype, "r"))


def _array(path: Path) -> TokenFile:
    try:
        ids = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: not an array of numpy ({error}); {_AGAIN}") from error
    if ids.ndim != 1 or ids.dtype.kind not in "ui" or not math.prod(ids.shape):
        raise DataError(
            f"{path}: an array of {ids.dtype} {ids.shape} is no row of ids; save whole numbers "
            "in one dimension"
        )
    return TokenFile(path, "numpy", int(ids.offset), ids)
