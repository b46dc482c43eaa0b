"""Root-mean-square normalisation, by itself and of a sum that goes on beside it."""

from torch import Tensor

from segpt.kernels.registry import Later, Op

from .reference import AddNorm, AddNormCall, RmsNormCall, add_norm_reference, reference

TRITON = "segpt.kernels.rms_norm.triton:TritonRmsNorm"
RMS_NORM = Op[RmsNormCall, Tensor]("rms_norm", reference, Later("triton", 30, ("cuda",), TRITON))
ADDED = "segpt.kernels.rms_norm.triton:TritonAddNorm"
ADD_NORM = Op[AddNormCall, AddNorm](
    "add_norm", add_norm_reference, Later("triton", 30, ("cuda",), ADDED)
)


def rms_norm(x: Tensor, eps: float | None = None) -> Tensor:
    """``x`` (..., width) divided by its root mean square over the width, in float32, no gain.

    ``eps`` is added to the mean square; None is the smallest step of float32 at 1.
    """
    return RMS_NORM(RmsNormCall(x, eps))


def add_norm(
    x: Tensor, residual: Tensor, scale: float | Tensor = 1.0, eps: float | None = None
) -> AddNorm:
    """``x`` plus ``residual``, both (..., width), and the norm of the sum times ``scale``.

    The scale is a number, or a tensor () or (...): a number for each row. ``eps`` is as of
    :func:`rms_norm`.
    """
    return ADD_NORM(AddNormCall(x, residual, scale, eps))
