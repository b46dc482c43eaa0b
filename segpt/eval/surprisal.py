"""The nats of targets in windows of one shape, as learning and validation need them."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.kernels import token_nats
from segpt.kernels.cross_entropy import POSITIONS
from segpt.model.model import Model
from segpt.model.overlap import Overlap

from .windows import Indices, Spans

LEAST_SHARED = 1.5  # times as many tokens in windows as there are make sharing them pay


def window_nats(model: Model, ids: NDArray[np.uint32], windows: Spans) -> Tensor:
    """The nats of each scored target, (windows, targets) in float32, for windows of one shape.

    The softmax runs over the whole vocabulary, and only where a target is scored.
    """
    length, scored = windows.shapes[0].tolist()
    hidden = window_hidden(model, ids, windows.begin, length, scored)
    return position_nats(
        model, hidden, gather(ids, windows.end - scored + 1, scored).to(hidden.device)
    )


def window_hidden(
    model: Model, ids: NDArray[np.uint32], begin: Indices, length: int, last: int
) -> Tensor:
    """The final stream (windows, last, width) of windows of ``length`` tokens.

    Where windows overlap, their tokens run once up to the first attention.
    """
    where, device = _places(ids, begin, length), model.table.weight.device
    private = model.private_prefix
    overlap = None if private is None else Overlap.of(torch.from_numpy(where), private)
    if overlap is None or len(overlap.positions) * LEAST_SHARED > where.size:
        return model.hidden(_ids(ids, where).to(device), last=last).x
    tokens = _ids(ids, overlap.positions.numpy())[None].to(device)
    overlap = Overlap(*(t.to(device) for t in overlap))
    return model.hidden(tokens, last=last, overlap=overlap).x


def position_nats(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """-log p(target), (batch, time), from the final stream, with few logits at a time."""
    nats = token_nats(hidden.flatten(0, 1), model.readout(), targets.flatten())
    return nats.view(targets.shape)


def gather(ids: NDArray[np.uint32], begin: Indices, length: int) -> Tensor:
    """The tokens from each of ``begin`` on, (begins, length) in int64; past the end the last."""
    return _ids(ids, _places(ids, begin, length))


def _places(ids: NDArray[np.uint32], begin: Indices, length: int) -> Indices:
    """Where these tokens are, (begins, length)."""
    return np.minimum(begin[:, None] + np.arange(length), len(ids) - 1)


def _ids(ids: NDArray[np.uint32], where: Indices) -> Tensor:
    return torch.from_numpy(ids[where].astype(np.int64))


def pieces(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """A rectangle of positions in pieces of few enough for their logits, row by row."""
    height = max(1, POSITIONS // columns)
    for i in range(0, rows, height):
        for j in range(0, columns, POSITIONS):
            yield slice(i, min(rows, i + height)), slice(j, min(columns, j + POSITIONS))
