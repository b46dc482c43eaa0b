"""The feed-forward body and its activations."""

import torch.nn.functional as F
from torch import Tensor, nn

from segpt.spec import model as spec

from .fast import FastWeight
from .leaves import Matrix
from .stream import Stream


def activate(act: spec.Activation, x: Tensor) -> Tensor:
    """Apply an activation; ``swiglu`` halves the last dimension (arXiv 2002.05202)."""
    match act:
        case "relu2":
            return F.relu(x).square()
        case "leaky_relu2":
            return F.leaky_relu(x, 0.5).square()
        case "silu":
            return F.silu(x)
        case "swiglu":
            gate, up = x.chunk(2, -1)
            return F.silu(gate) * up


class Dense(nn.Module):
    """down(activate(up(x))), where down may be a fast weight."""

    def __init__(self, s: spec.Dense, width: int, fast: FastWeight | None = None) -> None:
        super().__init__()
        self.act = s.act
        self.up = Matrix(width, s.hidden * (2 if s.act == "swiglu" else 1))
        self.down = Matrix(s.hidden, width, zero=True)
        self.fast = fast

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        hidden = activate(self.act, self.up(x))
        y = self.down(hidden)
        return y if self.fast is None else self.fast(y, hidden, x, stream)
