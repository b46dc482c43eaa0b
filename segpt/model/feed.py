"""The feed-forward body and its activations."""

import torch.nn.functional as F
from torch import Tensor, nn

from segpt.config import model as spec

from .fast import FastWeight
from .leaves import Matrix
from .stream import Stream


def activate(act: spec.Activation, x: Tensor) -> Tensor:
    """Apply an activation; ``swiglu`` halves the last dimension (arXiv 2002.05202).

    Where no gradient will ask for ``x``, its memory is used again: this is the largest tensor of
    a layer.
    """
    again = not x.requires_grad
    match act:
        case "relu2":
            x = F.relu(x, again)
            return x.square_() if again else x.square()
        case "leaky_relu2":
            x = F.leaky_relu(x, 0.5, again)
            return x.square_() if again else x.square()
        case "silu":
            return F.silu(x, again)
        case "swiglu":
            gate, up = x.chunk(2, -1)
            return F.silu(gate, again) * up


class Dense(nn.Module):
    """down(activate(up(x))), where down may be a fast weight."""

    def __init__(self, s: spec.Dense, width: int, fast: FastWeight | None = None) -> None:
        super().__init__()
        self.act = s.act
        self.up = Matrix(width, s.hidden * (2 if s.act == "swiglu" else 1))
        self.down = Matrix(s.hidden, width, zero=True, output=True)
        self.fast = fast

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        hidden = activate(self.act, self.up(x))
        y = self.down(hidden)
        return y if self.fast is None else self.fast(y, hidden, x, stream)
