"""Rotary position embedding, defined in plain torch (arXiv 2104.09864)."""

from typing import NamedTuple

import torch
from torch import Tensor


class RotaryCall(NamedTuple):
    """Channels to rotate in pairs.

    Attributes:
        x: (batch, time, heads, channels).
        cos: (time, 1, dims / 2), of the angle of each position and pair.
        sin: like ``cos``; its sign decides which way pairs turn. The first ``dims`` channels turn
            and the others pass.
        neighbours: whether a pair is two neighbours (2i, 2i + 1), or (i, i + dims / 2).
    """

    x: Tensor
    cos: Tensor
    sin: Tensor
    neighbours: bool = False


def reference(call: RotaryCall) -> Tensor:
    """(a, b) to (a cos + b sin, b cos - a sin): (batch, time, heads, channels)."""
    x, cos, sin, neighbours = call
    dims = 2 * cos.size(-1)
    turned, rest = torch.split(x, [dims, x.size(-1) - dims], -1)
    if neighbours:
        a, b = turned.view(*turned.shape[:-1], -1, 2).unbind(-1)
        both = torch.stack([a * cos + b * sin, b * cos - a * sin], -1)
        return torch.cat([both.flatten(-2), rest], -1)
    a, b = turned.chunk(2, -1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin, rest], -1)
