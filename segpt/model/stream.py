"""What travels beside the residual stream during one forward pass."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Past:
    """Keys and values one visit has already seen: (batch, time, kv_heads, channels)."""

    key: Tensor | None = None
    value: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new keys and values; return all of them."""
        if self.key is not None and self.value is not None:
            key, value = torch.cat([self.key, key], 1), torch.cat([self.value, value], 1)
        self.key, self.value = key, value
        return key, value


@dataclass
class Stream:
    """Everything a part may read beside x, so that a new part never changes a signature.

    ``tokens`` and ``positions`` are (batch, time) and (time,); ``x0`` is the normalised
    embedding; ``values`` those of the first value residual visited; ``visits`` maps a visit to its
    output; ``past`` is the memory of the visit that is running, or None for a full pass;
    ``last`` is how many positions at the end anyone will read of its output, or None for all.
    """

    tokens: Tensor
    positions: Tensor
    x0: Tensor
    values: Tensor | None = None
    visits: dict[int, Tensor] = field(default_factory=dict)
    past: Past | None = None
    last: int | None = None

    def tail(self, x: Tensor) -> Tensor:
        """The positions of ``x`` (batch, time, ...) that will be read; doing so twice is fine."""
        return x if self.last is None else x[:, -self.last :]


# One per visit, not per layer: loops revisit layers.
Cache = dict[int, Past]
