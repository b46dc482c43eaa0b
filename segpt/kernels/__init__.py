"""Named operations: a reference in plain torch, and faster back ends beside it."""

from . import onednn, torch_backend  # the first that supports a call runs
from .ops import OPS, use
from .reference import attend, linear, orthogonalise

__all__ = ["OPS", "attend", "linear", "onednn", "orthogonalise", "torch_backend", "use"]
