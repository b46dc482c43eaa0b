"""Soft caps of logits, as numbers: what bounds the scaled products y of a head.

A cap is a value, so that a fused kernel can compute it, and its derivative, itself.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class TanhCap(NamedTuple):
    """``cap`` * tanh(y / ``cap``)."""

    cap: float


class SigmoidCap(NamedTuple):
    """``cap`` * sigmoid(y / ``divisor``), which lies between 0 and the cap."""

    cap: float
    divisor: float


class AlgebraicCap(NamedTuple):
    """``cap`` * y / sqrt(y^2 + ``cap``^2)."""

    cap: float


class AsymmetricCap(NamedTuple):
    """c * tanh(y / c), c being the first of ``caps`` (2,) where y is positive, else the second.

    They are a tensor, as they are learned.
    """

    caps: Tensor


Cap = TanhCap | SigmoidCap | AlgebraicCap | AsymmetricCap


def capped(y: Tensor, cap: Cap) -> Tensor:
    """Logits (..., vocab) of scaled products ``y`` in the same shape."""
    match cap:
        case TanhCap(c):
            return c * torch.tanh(y / c)
        case SigmoidCap(c, divisor):
            return c * torch.sigmoid(y / divisor)
        case AlgebraicCap(c):
            return c * y * torch.rsqrt(y.square() + c**2)
        case AsymmetricCap(caps):
            above, below = caps.unbind()
            each = torch.where(y > 0, above, below)
            return each * torch.tanh(y / each)
