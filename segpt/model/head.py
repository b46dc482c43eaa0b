"""The head: from the last stream to logits."""

import torch
from torch import Tensor, nn

from segpt.kernels.cross_entropy import Cap, LinearHead, TanhCap

from .norm import PLAIN_NORM, Normaliser
from .params import Matrix, Table, Vector, biased, is_hooked, plain_weight
from .parts import cap_numbers


class Head(nn.Module):
    """Float32 logits, soft-capped if the spec says so, from the final normalised stream."""

    def __init__(
        self,
        softcap: float | None,
        matrix: Matrix | None,
        *,
        cap: nn.Module | None = None,
        gain: Vector | None = None,
        shift: Vector | None = None,
        scale: float = 1.0,
        norm: Normaliser = PLAIN_NORM,
    ) -> None:
        """Without a ``matrix`` it is tied; a ``cap`` is one that is not the tanh of ``softcap``."""
        super().__init__()
        self.gain, self.shift, self.matrix, self.cap = gain, shift, matrix, cap
        self.softcap, self.scale, self.norm = softcap, scale, norm

    def normalise(self, x: Tensor) -> Tensor:
        """What the head reads of the last stream (..., width)."""
        x = self.norm(x)
        return biased(x if self.gain is None else self.gain(x) * x, self.shift)

    def forward(self, x: Tensor, table: Table) -> Tensor:
        """The stream (..., width) to float32 logits (..., vocab)."""
        return self.capped(self.product(x, table), table)

    def product(self, x: Tensor, table: Table) -> Tensor:
        """The stream (..., width) times each row of the matrix; there may be more than tokens."""
        product = table.multiply(x) if self.matrix is None else self.matrix(x)
        return product.float()

    def capped(self, product: Tensor, table: Table) -> Tensor:
        """Logits (..., vocab) from that, one per token."""
        logits = product[..., : table.weight.size(0)]
        if self.scale != 1:
            logits = self.scale * logits
        if self.cap is not None:
            capped: Tensor = self.cap(logits)
            return capped
        if self.softcap is None:
            return logits
        return self.softcap * torch.tanh(logits / self.softcap)

    def linear_form(self, table: Table) -> LinearHead | None:
        """The head as one product, a scale and a cap, where it is that.

        None where it has a cap of its own, rows are adapted one by one, or a hook waits for a call.
        A head that computes otherwise says so by overriding this too; until it does, None.
        """
        if type(self).forward is not Head.forward or is_hooked(self):
            return None
        cap: Cap | None = None if self.softcap is None else TanhCap(self.softcap)
        if self.cap is not None:
            cap = cap_numbers(self.cap)
            if cap is None:
                return None
        weight = plain_weight(table if self.matrix is None else self.matrix)
        if weight is None:
            return None
        return LinearHead(weight[: table.weight.size(0)], self.scale, cap)
