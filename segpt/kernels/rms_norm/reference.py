"""Root-mean-square normalisation, defined in plain torch (arXiv 1910.07467).

Of a stream, and of a stream to which a branch is added, where the sum goes on beside it.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class RmsNormCall(NamedTuple):
    """``x`` (..., width), of any dtype, and what is added to its mean square.

    That is torch's own number if ``eps`` is None: the smallest step of float32 at 1.
    """

    x: Tensor
    eps: float | None = None


def reference(call: RmsNormCall) -> Tensor:
    """Divide (..., width) by the root mean square over the width, in float32, without a gain."""
    x = call.x
    return F.rms_norm(x.float(), (x.size(-1),), eps=call.eps).to(x.dtype)


class AddNormCall(NamedTuple):
    """A stream and what is added to it, both (..., width), and what multiplies their norm.

    ``scale`` is a number, or a tensor of one or of a number for each row: (), or (...). ``eps`` is
    as of :class:`RmsNormCall`.
    """

    x: Tensor
    residual: Tensor
    scale: float | Tensor = 1.0
    eps: float | None = None


class AddNorm(NamedTuple):
    """The sum of a stream and what was added, and the scaled norm of that; both (..., width)."""

    total: Tensor
    normed: Tensor


def add_norm_reference(call: AddNormCall) -> AddNorm:
    """Add, normalise as :func:`reference` does, then scale."""
    total, scale = call.x + call.residual, call.scale
    if isinstance(scale, Tensor):
        scale = (scale if scale.dim() == 0 else scale[..., None]).to(total.dtype)
    return AddNorm(total, reference(RmsNormCall(total, call.eps)) * scale)
