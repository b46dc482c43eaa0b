"""Sizes of tiles as data: for each generation of GPUs the candidates, of which the first is used.

Nothing is tuned while a model runs, so that two runs on one device launch the same programs. The
candidates are compiled ahead of time and checked (``bench/kernel_builds.py``); ``make gpu``
measures them on a device and says where another than the first is faster.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

ALL_REGISTERS = 255  # that a thread can have
ANY = 0  # the generation of a device that has no candidates of its own


class Tile(NamedTuple):
    """How a kernel divides its work.

    Attributes:
        sizes: of a tile along its axes, by the name of the ``tl.constexpr`` parameter.
        warps: of 32 threads each, that a program has.
        stages: how many iterations of a loop over products load ahead.
        registers: what a thread may have at most; None leaves it to the assembler, which sometimes
            spills a few of them so that more programs run side by side.
    """

    sizes: Mapping[str, int]
    warps: int
    stages: int
    registers: int | None = None


# By generation, 90 for sm_90; ANY is there always, for generations that are not.
Tiles = Mapping[int, Sequence[Tile]]

_asked: ContextVar[tuple[int, int] | None] = ContextVar("_asked", default=None)


@contextmanager
def compiled_for(architecture: int, candidate: int = 0) -> Iterator[None]:
    """Choose the candidates of a generation, whatever the device; the last where there are fewer.

    For compiling ahead of time, and for measuring a candidate that is not the first.
    """
    token = _asked.set((architecture, candidate))
    try:
        yield
    finally:
        _asked.reset(token)


def tile_for(tiles: Tiles, tensor: Tensor) -> Tile:
    """The tile to use on the device of a tensor of any shape."""
    asked = _asked.get()
    architecture, candidate = (_architecture(tensor.device), 0) if asked is None else asked
    candidates = tiles.get(architecture, tiles[ANY])
    return candidates[min(candidate, len(candidates) - 1)]


@cache
def _architecture(device: torch.device) -> int:
    """The generation of a device as its kernels are compiled for, 90 for sm_90."""
    if device.type != "cuda":
        return ANY
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
