"""Root-mean-square normalisation."""

from torch import Tensor

from segpt.kernels.registry import Later, Op

from .reference import RmsNormCall, reference

TRITON = "segpt.kernels.rms_norm.triton:TritonRmsNorm"
RMS_NORM = Op[RmsNormCall, Tensor]("rms_norm", reference, Later("triton", 30, ("cuda",), TRITON))


def rms_norm(x: Tensor) -> Tensor:
    """``x`` (..., width) divided by its root mean square over the width, in float32, no gain."""
    return RMS_NORM(RmsNormCall(x))
