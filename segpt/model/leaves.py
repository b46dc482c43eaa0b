"""The three kinds of parameter. Every weight of a model lives in one of these leaves.

A leaf knows its role; initialisation, the optimizer, the quantizer, the packer and the size
report all read roles, so none of them ever matches parameter names.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segpt.spec.layout import Role

View = Callable[[Tensor], Tensor]


class Matrix(nn.Module):
    """A bias-free linear map, kept in float32 and applied in the dtype of its input.

    ``view`` is the one place where quantized training or a low-rank update attaches: it maps
    the weight to the one that is used.
    """

    def __init__(
        self, fan_in: int, fan_out: int, *, role: Role = Role.MATRIX, zero: bool = False
    ) -> None:
        super().__init__()
        self.role, self.zero = role, zero
        self.view: View | None = None
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.view is None else self.view(self.weight)
        return F.linear(x, weight.to(x.dtype))


class Table(nn.Module):
    """One row per token. A tied head multiplies by the same rows."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.role = Role.TABLE
        self.view: View | None = None
        self.weight = nn.Parameter(torch.empty(rows, width))

    def used(self) -> Tensor:
        return self.weight if self.view is None else self.view(self.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.used())


class Vector(nn.Module):
    """A small learned tensor that starts at a constant (or at one constant per row)."""

    def __init__(self, *shape: int, init: float | tuple[float, ...] = 0.0) -> None:
        super().__init__()
        self.role, self.init = Role.VECTOR, init
        self.weight = nn.Parameter(torch.empty(*shape))

    def forward(self, like: Tensor) -> Tensor:
        return self.weight.to(like.dtype)


Leaf = Matrix | Table | Vector


class Weight(NamedTuple):
    """A weight by its name in ``segpt.spec.layout``, and the leaf that owns it."""

    name: str
    leaf: Leaf
    tensor: nn.Parameter

    @property
    def role(self) -> Role:
        return self.leaf.role


def weights(model: nn.Module) -> Iterator[Weight]:
    """Every weight of the model once, in canonical order."""
    for name, module in model.named_modules():
        if isinstance(module, Leaf):
            yield Weight(name, module, module.weight)
