"""What a forward and backward pass of a model costs, counted from its spec."""

from typing import NamedTuple

from .layout import Role, layout
from .model import ModelSpec

BACKWARD = 2  # a backward pass multiplies each matrix twice, a forward pass once


class Flops(NamedTuple):
    """Floating-point operations per token of one forward pass over a full context.

    A product and a sum are two. Norms, activations and mixing weights are left out.
    """

    matrices: int
    attention: int
    head: int

    @property
    def forward(self) -> int:
        return self.matrices + self.attention + self.head

    @property
    def training(self) -> int:
        """Of a forward and backward pass."""
        return (1 + BACKWARD) * self.forward


def flops(spec: ModelSpec) -> Flops:
    """Count every visit of the whole route, as at the end of training.

    Attention counts the positions that a token sees on average over the context, not those
    that a mask hides.
    """
    matrices = sum(2 * w.size * w.uses for w in layout(spec) if w.role is Role.MATRIX)
    attention = 0.0
    for visit, window in zip(spec.visits, spec.windows(), strict=True):
        mixer = spec.layers[visit.layer].mixer
        if mixer is not None:
            products = 4 * mixer.heads * mixer.head_dim  # of queries and keys, and with values
            attention += products * seen(spec.context, window)
    head = 2 * spec.vocab * spec.width
    return Flops(matrices, round(attention), head)


def seen(context: int, window: int | None) -> float:
    """How many positions attention sees, the own one included, on average over a context."""
    reach = min(context, window or context)
    return reach * (2 * context - reach + 1) / (2 * context)
