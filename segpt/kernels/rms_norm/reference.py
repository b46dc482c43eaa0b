"""Root-mean-square normalisation, defined in plain torch (arXiv 1910.07467)."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class RmsNormCall(NamedTuple):
    """``x`` (..., width), of any dtype."""

    x: Tensor


def reference(call: RmsNormCall) -> Tensor:
    """Divide (..., width) by the root mean square over the width, in float32, without a gain."""
    x = call.x
    return F.rms_norm(x.float(), (x.size(-1),)).to(x.dtype)
