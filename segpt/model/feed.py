"""The feed-forward body."""

from torch import Tensor, nn

from segpt.config import layer as spec
from segpt.kernels import activation, gated_feed

from .fast import FastWeight
from .params import Matrix, Vector, biased, plain_weight
from .state import ForwardState


class Dense(nn.Module):
    """down(act(up(x))), where down may be a fast weight."""

    def __init__(self, s: spec.Dense, width: int, fast: FastWeight | None = None) -> None:
        super().__init__()
        self.act = s.act
        rows = s.hidden * (2 if spec.is_gated(s.act) else 1)
        self.up = Matrix(width, rows)
        self.down = Matrix(s.hidden, width, zero=True, output=True)
        self.up_bias = Vector(rows) if s.bias else None
        self.down_bias = Vector(width) if s.bias else None
        self.fast = fast

    @property
    def reads_all(self) -> bool:
        """A fast weight learns from every position."""
        return self.fast is not None

    def forward(self, x: Tensor, state: ForwardState) -> Tensor:
        """The stream (batch, time, width) to the same shape."""
        weight = plain_weight(self.up) if self.up_bias is None else None
        if weight is None:
            hidden = activation(biased(self.up(x), self.up_bias), self.act)
        else:
            hidden = gated_feed(x, weight.to(x.dtype), self.act)
        y = biased(self.down(hidden), self.down_bias)
        return y if self.fast is None else self.fast(y, hidden, x, state)
