"""Tensors of a safetensors file, read with bounds and without any code of the file."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt.errors import CheckpointError

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
LARGEST_HEADER: Final = 100 << 20
_SIZES: Final = {"F32": 4, "F16": 2, "BF16": 2}


class StoredTensor(NamedTuple):
    """Where a tensor lies: in which file, of which type and shape, from which byte."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int

    def floats(self) -> NDArray[np.float32]:
        """Its values, exactly, as float32 of ``shape``."""
        count = int(np.prod(self.shape, dtype=np.int64))
        kind = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[self.dtype]
        raw = np.fromfile(self.path, kind, count, offset=self.begin)
        if self.dtype == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32).reshape(self.shape)


def tensors(directory: Path) -> dict[str, StoredTensor]:
    """What the safetensors files of a model directory hold, without their values.

    Raises:
        CheckpointError: naming what is missing or damaged.
    """
    index = directory / INDEX
    if not index.is_file():
        return _of_file(directory / SINGLE)
    try:
        if index.stat().st_size > LARGEST_HEADER:
            raise CheckpointError(f"{index} is too large to be an index")
        places = json.loads(index.read_bytes())["weight_map"]
        files = sorted({str(name) for name in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged: {error!r}; fetch it again") from None
    every: dict[str, StoredTensor] = {}
    for name in files:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which is not a file beside it")
        for tensor, place in _of_file(directory / name).items():
            if places.get(tensor) != name:
                raise CheckpointError(f"{index} does not say that {name} holds {tensor!r}")
            every[tensor] = place
    if missing := sorted(set(places) - set(every)):
        raise CheckpointError(f"{directory / str(places[missing[0]])} lacks {missing[0]!r}")
    return every


def _of_file(path: Path) -> dict[str, StoredTensor]:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing; a model needs its weights as safetensors (files of pickles are "
            "not read: they can run code)"
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise CheckpointError(f"{path} is damaged: its header is cut off; fetch it again")
        try:
            table = json.loads(file.read(length))
            return _placed(path, table, 8 + length, size)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: {error!r}; fetch it again") from None


def _placed(
    path: Path, table: Mapping[str, object], offset: int, size: int
) -> dict[str, StoredTensor]:
    every = {}
    for name, about in table.items():
        if name == "__metadata__":
            continue
        if not isinstance(about, dict):
            raise TypeError(name)
        dtype, shape = str(about["dtype"]), tuple(about["shape"])
        begin, end = about["data_offsets"]
        if dtype not in _SIZES:
            raise CheckpointError(
                f"{path}: {name!r} is of type {dtype}; known: {', '.join(_SIZES)}"
            )
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise ValueError(f"the place of {name}")
        count = _SIZES[dtype]
        for side in shape:
            count *= side
        if end - begin != count or offset + end > size:
            raise ValueError(f"the place of {name}")
        every[name] = StoredTensor(path, dtype, shape, offset + begin)
    return every
