"""The three kinds of parameter. Every weight of a model lives in one of these leaves.

A leaf knows its role; initialisation, the optimizer, the quantizer, the packer and the size
report all read roles, so none of them ever matches parameter names.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segpt.config.layout import Role
from segpt.kernels import linear


class LowRankWeight(NamedTuple):
    """A weight, and what is added to it for each row of a batch: ``up[b] @ down[b]``.

    ``down`` is (batch, rank, in) and ``up`` (batch, out, rank).
    """

    weight: Tensor
    down: Tensor
    up: Tensor


View = Callable[[Tensor], Tensor | LowRankWeight]


def project(x: Tensor, used: Tensor | LowRankWeight) -> Tensor:
    """Compute x W^T in the dtype of ``x``: (batch, time, in) to (batch, time, out)."""
    if isinstance(used, LowRankWeight):
        weight, down, up = (t.to(x.dtype) for t in used)
        return linear(x, weight) + x @ down.mT @ up.mT
    return linear(x, used.to(x.dtype))


class Matrix(nn.Module):
    """A bias-free linear map, kept in float32 and applied in the dtype of its input.

    It starts at random, at zero, with random numbers of deviation ``std``, or with such numbers of
    deviation ``diagonal`` on its diagonal. Rows from ``rows`` on, if that is given, start at zero.
    An ``output`` writes to the stream: whether one of zero really starts so, scaling decides.
    ``view`` is the one place where quantized training or a low-rank update attaches: it maps
    the weight to the one that is used.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        *,
        role: Role = Role.MATRIX,
        zero: bool = False,
        diagonal: float | None = None,
        std: float | None = None,
        rows: int | None = None,
        output: bool = False,
    ) -> None:
        super().__init__()
        self.role, self.zero, self.diagonal = role, zero, diagonal
        self.std, self.rows, self.output = std, rows, output
        self.view: View | None = None
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in))

    def used(self) -> Tensor | LowRankWeight:
        return self.weight if self.view is None else self.view(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return project(x, self.used())


class Table(nn.Module):
    """One row per id, at random or zero. A tied head multiplies by those of the tokens."""

    def __init__(self, rows: int, width: int, *, zero: bool = False) -> None:
        super().__init__()
        self.role, self.zero = Role.TABLE, zero
        self.view: View | None = None
        self.weight = nn.Parameter(torch.empty(rows, width))

    def used(self) -> Tensor | LowRankWeight:
        return self.weight if self.view is None else self.view(self.weight)

    def forward(self, ids: Tensor) -> Tensor:
        used = self.used()
        # What adapts a table to a document adapts what it predicts, as a head.
        return F.embedding(ids, used.weight if isinstance(used, LowRankWeight) else used)


class Vector(nn.Module):
    """A small learned tensor that starts at a constant (or at one constant per row)."""

    def __init__(self, *shape: int, init: float | tuple[float, ...] = 0.0) -> None:
        super().__init__()
        self.role, self.init = Role.VECTOR, init
        self.weight = nn.Parameter(torch.empty(*shape))

    def forward(self, like: Tensor) -> Tensor:
        return self.weight.to(like.dtype)


Param = Matrix | Table | Vector


def plain_weight(leaf: Matrix | Table) -> Tensor | None:
    """The weight as it is used, (out, in), where the leaf does nothing but multiply by it.

    None where rows are adapted one by one, or a hook waits for the leaf to be called: then it has
    to be. Where the weight is a view of the parameter, gradients go on to that.
    """
    if is_hooked(leaf) or type(leaf) not in (Matrix, Table):
        return None
    used = leaf.used()
    return None if isinstance(used, LowRankWeight) else used


def is_hooked(module: nn.Module) -> bool:
    """Whether something waits for the module to be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class Weight(NamedTuple):
    """A weight by its name in ``segpt.config.layout``, and the leaf that owns it."""

    name: str
    leaf: Param
    tensor: nn.Parameter

    @property
    def role(self) -> Role:
        return self.leaf.role


def weights(model: nn.Module) -> Iterator[Weight]:
    """Every weight of the model once, in canonical order."""
    for name, module in model.named_modules():
        if isinstance(module, Param):
            yield Weight(name, module, module.weight)
