"""Numbers that say how a model is doing, taken on the way of a forward pass."""

import torch
from torch import Tensor


@torch.no_grad()
def kurtosis(x: Tensor) -> Tensor:
    """How heavy the tails of ``x`` (batch, time, width) are: a scalar.

    The mean over tokens of the mean fourth power over channels, divided by the square of the mean
    square: 3 for normal numbers, the width where one channel is all. No mean is taken off.
    """
    square = x.float().square()
    ratio = square.square().mean(-1) / square.mean(-1).clamp_min(1e-8).square()
    return ratio.mean()
