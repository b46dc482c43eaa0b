"""The product of a stream with a weight."""

from torch import Tensor

from segpt.kernels.registry import Op

from .onednn import OneDnnLinear
from .reference import LinearCall, reference

LINEAR = Op("linear", reference, OneDnnLinear())


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Compute x W^T: (..., in) by (out, in) to (..., out)."""
    return LINEAR(LinearCall(x, weight))
