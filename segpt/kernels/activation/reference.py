"""Activations, and the product before them, defined in plain torch."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from segpt.config.layer import Activation
from segpt.kernels.linear import linear


class ActivationCall(NamedTuple):
    """``x`` (..., hidden), or (..., 2 hidden) for a gated one, whose first half is the gate.

    Its memory may be used again: it is the largest tensor of a layer.
    """

    x: Tensor
    act: Activation


class FeedCall(NamedTuple):
    """``x`` (..., width) and ``weight`` (hidden, width), or (2 hidden, width) if gated."""

    x: Tensor
    weight: Tensor
    act: Activation


def reference(call: ActivationCall) -> Tensor:
    """act(x): (..., hidden); ``swiglu`` is silu(gate) up (arXiv 2002.05202).

    ``geglu_tanh`` is gelu(gate) up, where gelu (arXiv 1606.08415) is taken by its formula of tanh.
    """
    x = call.x
    reuse = not x.requires_grad  # backward would ask for x
    match call.act:
        case "relu2":
            x = F.relu(x, reuse)
            return x.square_() if reuse else x.square()
        case "leaky_relu2":
            x = F.leaky_relu(x, 0.5, reuse)
            return x.square_() if reuse else x.square()
        case "silu":
            return F.silu(x, reuse)
        case "swiglu":
            gate, up = x.chunk(2, -1)
            return F.silu(gate, reuse) * up
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "geglu_tanh":
            gate, up = x.chunk(2, -1)
            return F.gelu(gate, approximate="tanh") * up


def feed_reference(call: FeedCall) -> Tensor:
    """act(x W^T): (..., hidden)."""
    return reference(ActivationCall(linear(call.x, call.weight), call.act))
