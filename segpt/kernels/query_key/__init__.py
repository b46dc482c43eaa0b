"""Norm, rotation and gain of queries and keys, before attention."""

from torch import Tensor

from segpt.kernels.registry import Later, Op

from .reference import GainStep, NormStep, QueryKeyCall, RotationStep, Step, reference

TRITON = "segpt.kernels.query_key.triton:TritonQueryKey"
QUERY_KEY = Op[QueryKeyCall, tuple[Tensor, Tensor]](
    "query_key", reference, Later("triton", 30, ("cuda",), TRITON)
)

__all__ = ["QUERY_KEY", "GainStep", "NormStep", "QueryKeyCall", "RotationStep", "Step", "query_key"]


def query_key(q: Tensor, k: Tensor, *steps: Step) -> tuple[Tensor, Tensor]:
    """Do ``steps`` to queries and keys; :class:`QueryKeyCall` says more.

    They are (batch, time, heads, channels) and (batch, time, kv_heads, channels), as are the
    results.
    """
    return QUERY_KEY(QueryKeyCall(q, k, steps))
