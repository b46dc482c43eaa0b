"""Newton-Schulz: matrices to the orthogonal ones beside them."""

from torch import Tensor

from segpt.kernels.registry import Later, Op

from .onednn import OneDnnNewtonSchulz
from .reference import Coefficients, NewtonSchulzCall, reference
from .torch import TorchNewtonSchulz

TRITON = "segpt.kernels.newton_schulz.triton:TritonNewtonSchulz"
NEWTON_SCHULZ = Op(
    "newton_schulz",
    reference,
    OneDnnNewtonSchulz(),
    TorchNewtonSchulz(),
    Later("triton", 30, ("cuda",), TRITON),
)

__all__ = ["NEWTON_SCHULZ", "Coefficients", "NewtonSchulzCall", "newton_schulz"]


def newton_schulz(x: Tensor, coefficients: Coefficients) -> Tensor:
    """Drive the singular values of each of ``x`` (matrices, rows, columns) towards 1.

    Rows are at most columns, and spectral norms at most 1; ``coefficients`` are one (a, b, c) per
    step.
    """
    return NEWTON_SCHULZ(NewtonSchulzCall(x, coefficients))
