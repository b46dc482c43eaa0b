"""Rotary position embedding."""

from torch import Tensor

from segpt.kernels.registry import Op

from .reference import RotaryCall, reference

ROTARY = Op("rotary", reference)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, *, neighbours: bool = False) -> Tensor:
    """Turn pairs of channels of ``x`` (batch, time, heads, channels); see :class:`RotaryCall`."""
    return ROTARY(RotaryCall(x, cos, sin, neighbours))
