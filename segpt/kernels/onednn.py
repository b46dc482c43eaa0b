"""Back ends from oneDNN, for float32 on x86: twice as fast as MKL where MKL does not know the CPU.

They round differently, in the seventh digit, so they run only where a block asks for them:
training and scoring do, what decides the codes of a quantizer does not.
"""

import contextlib
import platform
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .reference import linear, orthogonalise

_LEAST = 1 << 20  # multiplications below which a call costs more than it saves
_wanted = False


def available() -> bool:
    """Whether this machine and this torch can multiply by oneDNN."""
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@contextlib.contextmanager
def wanted() -> Iterator[None]:
    """Run a block with these back ends; gradients of its results use them too."""
    global _wanted
    before, _wanted = _wanted, available()
    try:
        yield
    finally:
        _wanted = before


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """A b^T of float32 matrices on the CPU: (rows, inner) by (columns, inner), of any strides."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return product


def across(a: Tensor, b: Tensor) -> Tensor:
    """Compute a^T b, (rows, m) and (rows, n) to (m, n); of the two the narrower one is copied."""
    return multiply(a.T, b.T) if a.size(1) <= b.size(1) else multiply(b.T, a.T).T


def supports(*tensors: Tensor) -> bool:
    """Whether these back ends are wanted and can take the tensors."""
    return (
        _wanted
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x.flatten(0, -2), weight).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, from_x, from_weight = grad.flatten(0, -2), None, None
        if ctx.needs_input_grad[0]:
            from_x = multiply(rows, weight.T).view(x.shape)
        if ctx.needs_input_grad[1]:
            from_weight = across(rows, x.flatten(0, -2))
        return from_x, from_weight


@linear.register(
    "onednn",
    when=lambda x, weight: (
        supports(x, weight) and weight.dim() == 2 and x.numel() * weight.size(0) >= _LEAST
    ),
)
def onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    """One product forward, two backward, and no copy of the weight."""
    product: Tensor = _Linear.apply(x, weight)  # type: ignore[no-untyped-call]
    return product


@orthogonalise.register(
    "onednn",
    when=lambda x, coefficients: (
        supports(x) and not x.requires_grad and x[0].numel() * x.size(1) >= _LEAST
    ),
)
def onednn_orthogonalise(x: Tensor, coefficients: tuple[tuple[float, float, float], ...]) -> Tensor:
    """The same iteration, a matrix at a time: A is symmetric, so that A^2 is A A^T."""
    found = []
    for matrix in x:
        for a, b, c in coefficients:
            gram = multiply(matrix, matrix)
            inner = multiply(gram, gram).mul_(c).add_(gram, alpha=b)
            matrix = multiply(inner, matrix.T).add_(matrix, alpha=a)
        found.append(matrix)
    return torch.stack(found)
