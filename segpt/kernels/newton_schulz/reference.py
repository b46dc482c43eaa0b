"""The Newton-Schulz iteration, defined in plain torch."""

from typing import NamedTuple

from torch import Tensor

Coefficients = tuple[tuple[float, float, float], ...]


class NewtonSchulzCall(NamedTuple):
    """Matrices to orthogonalise.

    Attributes:
        x: (matrices, rows, columns) with rows <= columns and spectral norms at most 1.
        coefficients: one (a, b, c) per step.
    """

    x: Tensor
    coefficients: Coefficients


def reference(call: NewtonSchulzCall) -> Tensor:
    """Drive the singular values of each matrix towards 1: (matrices, rows, columns).

    Each step maps X to a X + (b A + c A^2) X with A = X X^T.
    """
    x = call.x
    for a, b, c in call.coefficients:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
