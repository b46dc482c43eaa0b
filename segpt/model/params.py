"""The three kinds of parameter. Every weight of a model lives in one of these modules.

Each knows its role; initialisation, the optimizer, the quantizer, the packer and the size
report all read roles, so none of them ever matches parameter names.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segpt.config.layout import Role
from segpt.kernels import linear

WeightTransform = Callable[[Tensor], Tensor]


class Product(Protocol):
    """How a weight is multiplied by: plainly, or in another way that somebody attaches."""

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Compute x W^T in the dtype of ``x``: (batch, time, in) to (batch, time, out)."""


class PlainProduct:
    """The product with the weight itself."""

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return linear(x, weight.to(x.dtype))


class LowRankProduct:
    """The product with W + up[b] @ down[b], for row b of a batch.

    ``factors`` gives ``down`` (batch, rank, in) and ``up`` (batch, out, rank) of the batch that is
    read.
    """

    def __init__(self, factors: Callable[[], tuple[Tensor, Tensor]]) -> None:
        self.factors = factors

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        down, up = (t.to(x.dtype) for t in self.factors())
        return linear(x, weight.to(x.dtype)) + x @ down.mT @ up.mT


class Matrix(nn.Module):
    """A bias-free linear map, kept in float32 and applied in the dtype of its input.

    It starts at random, at zero, with random numbers of deviation ``std``, or with such numbers of
    deviation ``diagonal`` on its diagonal. Rows from ``rows`` on, if that is given, start at zero.
    An ``output`` writes to the stream: whether one of zero really starts so, scaling decides.
    ``weight_transform`` maps the weight to the one that is used, as quantized training wants it;
    ``product`` says how that is multiplied by, which low-rank updates do in their own way.
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
        self.weight_transform: WeightTransform | None = None
        self.product: Product = PlainProduct()
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in))

    def used(self) -> Tensor:
        """The weight that is used, (out, in)."""
        transform = self.weight_transform
        return self.weight if transform is None else transform(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (..., in) times the weight, (..., out)."""
        return self.product(x, self.used())


class Stack(nn.ModuleList):
    """Matrices of one shape, each for rows of its own: the maps of experts, or of heads.

    Every one is a :class:`Matrix` with a name of its own, ``NAME.0``, ``NAME.1``, and so on, so
    that scaling, the optimizer, the quantizer and the packer treat it as any other. They are
    multiplied at once. What is set of ``matrix`` is what each of them is made with.
    """

    def __init__(self, count: int, fan_in: int, fan_out: int, **matrix: Any) -> None:
        super().__init__(Matrix(fan_in, fan_out, **matrix) for _ in range(count))

    def matrices(self) -> Iterator[Matrix]:
        """The matrices in order."""
        for matrix in self:
            assert isinstance(matrix, Matrix)
            yield matrix

    def forward(self, x: Tensor) -> Tensor:
        """(..., count, rows, in) to (..., count, rows, out): matrix i multiplies x[..., i, :, :].

        A matrix that does more than multiply, or that a hook waits for, is called on its own.
        """
        plain = [plain_weight(matrix) for matrix in self.matrices()]
        together = [weight for weight in plain if weight is not None]
        if len(together) == len(plain):
            # The copy costs nothing beside the product: in bf16 the weights are copied anyhow.
            return x @ torch.stack(together).to(x.dtype).mT
        parts = zip(self.matrices(), x.unbind(-3), strict=True)
        return torch.stack([matrix(part) for matrix, part in parts], -3)


class Table(nn.Module):
    """One row per id, at random or zero. A tied head multiplies by those of the tokens."""

    def __init__(self, rows: int, width: int, *, zero: bool = False) -> None:
        super().__init__()
        self.role, self.zero = Role.TABLE, zero
        self.weight_transform: WeightTransform | None = None
        self.product: Product = PlainProduct()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def used(self) -> Tensor:
        """The rows that are used, (rows, width)."""
        transform = self.weight_transform
        return self.weight if transform is None else transform(self.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of ``ids`` (batch, time), (batch, time, width)."""
        # What adapts a table to a document adapts what it predicts, as a head.
        return F.embedding(ids, self.used())

    def multiply(self, x: Tensor) -> Tensor:
        """What a tied head makes of the stream (..., width): (..., rows)."""
        return self.product(x, self.used())


class Vector(nn.Module):
    """A small learned tensor that starts at a constant (or at one constant per row)."""

    def __init__(self, *shape: int, init: float | tuple[float, ...] = 0.0) -> None:
        super().__init__()
        self.role, self.init = Role.VECTOR, init
        self.weight = nn.Parameter(torch.empty(*shape))

    def forward(self, like: Tensor) -> Tensor:
        """The learned tensor, of any shape, in the dtype of ``like``."""
        return self.weight.to(like.dtype)


def biased(x: Tensor, bias: Vector | None) -> Tensor:
    """``x`` (..., width) plus a bias (width,) if there is one."""
    return x if bias is None else x + bias(x)


Param = Matrix | Table | Vector


def plain_weight(param: Matrix | Table) -> Tensor | None:
    """The weight as it is used, (out, in), where nothing is done but to multiply by it.

    None where it is multiplied by in another way, or a hook waits for the module to be called: then
    it has to be. Where the weight is transformed, gradients go on to the parameter.
    """
    if is_hooked(param) or type(param) not in (Matrix, Table):
        return None
    return param.used() if type(param.product) is PlainProduct else None


def is_hooked(module: nn.Module) -> bool:
    """Whether something waits for the module to be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class Weight(NamedTuple):
    """A weight by its name in ``segpt.config.layout``, and the module that owns it."""

    name: str
    param: Param
    tensor: nn.Parameter

    @property
    def role(self) -> Role:
        return self.param.role


def weights(model: nn.Module) -> Iterator[Weight]:
    """Every weight of the model once, in canonical order."""
    for name, module in model.named_modules():
        if isinstance(module, Param):
            yield Weight(name, module, module.weight)
