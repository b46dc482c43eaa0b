"""The nats of targets in windows of one shape, as learning and validation need them."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segpt.model.model import Model

from .windows import Indices, Spans

POSITIONS = 1024  # whose logits are held at once


def window_nats(model: Model, ids: NDArray[np.uint32], windows: Spans) -> Tensor:
    """The nats of each scored target, (windows, targets) in float32, for windows of one shape.

    The softmax runs over the whole vocabulary, and only where a target is scored.
    """
    length, scored = windows.shapes[0].tolist()
    tokens = gather(ids, windows.begin, length + 1).to(model.table.weight.device)
    hidden = model.hidden(tokens[:, :-1], last=scored)
    return position_nats(model, hidden, tokens[:, -scored:])


def position_nats(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """-log p(target), (batch, time), from the final stream, with few logits at a time."""
    flat = (torch.split(t, POSITIONS) for t in (hidden.flatten(0, 1), targets.flatten()))
    parts = zip(*flat, strict=True)
    nats = [F.cross_entropy(model.logits(x), target, reduction="none") for x, target in parts]
    return torch.cat(nats).view(targets.shape)


def gather(ids: NDArray[np.uint32], begin: Indices, length: int) -> Tensor:
    """The tokens from each of ``begin`` on, (begins, length) in int64; past the end the last."""
    where = np.minimum(begin[:, None] + np.arange(length), len(ids) - 1)
    return torch.from_numpy(ids[where].astype(np.int64))


def pieces(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """A rectangle of positions in pieces of few enough for their logits, row by row."""
    height = max(1, POSITIONS // columns)
    for i in range(0, rows, height):
        for j in range(0, columns, POSITIONS):
            yield slice(i, min(rows, i + height)), slice(j, min(columns, j + POSITIONS))
