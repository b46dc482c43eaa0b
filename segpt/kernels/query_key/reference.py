"""What is done to queries and keys before attention, defined in plain torch."""

from typing import NamedTuple

from torch import Tensor

from segpt.kernels.rms_norm.reference import RmsNormCall
from segpt.kernels.rms_norm.reference import reference as normalised
from segpt.kernels.rotary.reference import RotaryCall
from segpt.kernels.rotary.reference import reference as rotated


class NormStep(NamedTuple):
    """Divide each head of queries and keys by its root mean square, then multiply by gains.

    ``eps`` is as of :class:`RmsNormCall`; the gains are (channels,), or None.
    """

    eps: float | None = None
    query_gain: Tensor | None = None
    key_gain: Tensor | None = None

    def apply(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, heads, channels) and (batch, time, kv_heads, channels) to the same."""
        q, k = (normalised(RmsNormCall(x, self.eps)) for x in (q, k))
        if self.query_gain is not None:
            q = q * self.query_gain
        return q, k if self.key_gain is None else k * self.key_gain


class RotationStep(NamedTuple):
    """Turn pairs of channels; ``cos`` and ``sin`` are (time, 1, dims / 2), as rotary has them."""

    cos: Tensor
    sin: Tensor
    neighbours: bool = False

    def apply(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, heads, channels) and (batch, time, kv_heads, channels) to the same."""
        return rotated(RotaryCall(q, *self)), rotated(RotaryCall(k, *self))


class GainStep(NamedTuple):
    """Multiply queries by ``gain``, (heads, 1) or (1, 1)."""

    gain: Tensor

    def apply(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, heads, channels) and (batch, time, kv_heads, channels) to the same."""
        return q * self.gain, k


Step = NormStep | RotationStep | GainStep


class QueryKeyCall(NamedTuple):
    """Queries and keys, and what is done to them.

    Attributes:
        q: (batch, time, heads, channels).
        k: (batch, time, kv_heads, channels).
        steps: what is done, in order.
    """

    q: Tensor
    k: Tensor
    steps: tuple[Step, ...]


def reference(call: QueryKeyCall) -> tuple[Tensor, Tensor]:
    """Norm, rotation and gain of queries and keys: (batch, time, heads or kv_heads, channels)."""
    q, k, steps = call
    for step in steps:
        q, k = step.apply(q, k)
    return q, k
