"""Named operations: a reference in plain torch, and faster back ends beside it."""

from . import torch_backend
from .ops import OPS, use
from .reference import attend, orthogonalise

__all__ = ["OPS", "attend", "orthogonalise", "torch_backend", "use"]
