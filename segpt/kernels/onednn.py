"""What the back ends of oneDNN share, for float32 on x86.

They round differently, in the seventh digit, so they run only where a block asks for them:
training and scoring do, what decides the codes of a quantizer does not.
"""

import contextlib
import functools
import platform
from collections.abc import Iterator

import torch
from torch import Tensor

_LEAST = 1 << 20  # multiplications below which a call costs more than it saves
_wanted = False


@functools.cache  # it is asked at every product
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
    before, _wanted = _wanted, True
    try:
        yield
    finally:
        _wanted = before


def refusal(*tensors: Tensor) -> str | None:
    """Why oneDNN does not multiply these tensors, in any shape, here and now; or None."""
    if not _wanted:
        return "it rounds otherwise, so it runs only in training and scoring"
    if torch.compiler.is_compiling():
        return "it is not traced by torch.compile"
    if any(t.device.type != "cpu" for t in tensors):
        return "it runs on a CPU"
    if any(t.dtype != torch.float32 for t in tensors):
        return "it multiplies float32"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses another type"
    return None if available() else "this machine or this torch does not have it"


def too_small(multiplications: int) -> str | None:
    """Why a product is not worth the call, or None."""
    if multiplications < _LEAST:
        return f"fewer than {_LEAST} multiplications cost more than they save"
    return None


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """A b^T of float32 matrices on the CPU: (rows, inner) by (columns, inner), of any strides."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return product


def across(a: Tensor, b: Tensor) -> Tensor:
    """Compute a^T b, (rows, m) and (rows, n) to (m, n); of the two the narrower one is copied."""
    return multiply(a.T, b.T) if a.size(1) <= b.size(1) else multiply(b.T, a.T).T
