"""The feed-forward body."""

from torch import Tensor, nn

from segpt.config import layer as spec
from segpt.kernels import activation, gated_feed

from .fast import FastWeight
from .params import Matrix, plain_weight
from .state import ForwardState


class Dense(nn.Module):
    """down(act(up(x))), where down may be a fast weight."""

    def __init__(self, s: spec.Dense, width: int, fast: FastWeight | None = None) -> None:
        super().__init__()
        self.act = s.act
        self.up = Matrix(width, s.hidden * (2 if s.act == "swiglu" else 1))
        self.down = Matrix(s.hidden, width, zero=True, output=True)
        self.fast = fast

    @property
    def reads_all(self) -> bool:
        """A fast weight learns from every position."""
        return self.fast is not None

    def forward(self, x: Tensor, state: ForwardState) -> Tensor:
        """The stream (batch, time, width) to the same shape."""
        weight = plain_weight(self.up)
        if weight is None:
            hidden = activation(self.up(x), self.act)
        else:
            hidden = gated_feed(x, weight.to(x.dtype), self.act)
        y = self.down(hidden)
        return y if self.fast is None else self.fast(y, hidden, x, state)
