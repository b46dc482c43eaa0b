"""The product of a stream with a weight, defined in plain torch."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class LinearCall(NamedTuple):
    """``x`` (..., in) and ``weight`` (out, in), of one dtype."""

    x: Tensor
    weight: Tensor


def reference(call: LinearCall) -> Tensor:
    """Compute x W^T: (..., out)."""
    return F.linear(call.x, call.weight)
