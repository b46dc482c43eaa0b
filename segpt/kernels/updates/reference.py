"""What optimizers do to weights, defined in plain torch: updates in place, of many tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class AdamUpdateCall(NamedTuple):
    """A step of AdamW on weights of any shape.

    Attributes:
        weights: changed in place.
        grads: one in the shape of each weight.
        means: averages of gradients in the shape of each weight, changed in place.
        squares: averages of their squares in the shape of each weight, changed in place.
        counts: the step that each weight takes, from 1. They are numbers of the CPU, so that
            nothing waits for a device.
        rate: the learning rate.
        decay: the part of a weight that decay takes away.
        beta1: how much stays of a mean.
        beta2: how much stays of a square.
        eps: is added to the root.
        cautious: whether decay is, see :func:`shrink`.
    """

    weights: Sequence[Tensor]
    grads: Sequence[Tensor]
    means: Sequence[Tensor]
    squares: Sequence[Tensor]
    counts: Sequence[float]
    rate: float
    decay: float
    beta1: float
    beta2: float
    eps: float
    cautious: bool = False


class MuonMomentumCall(NamedTuple):
    """Gradients that enter momenta, and the stack of updates that are to be orthogonalised.

    Attributes:
        momenta: (..., rows, in) each, changed in place.
        grads: one in the shape of each momentum; None is a gradient of zero.
        parts: so many in turn are one matrix (..., out, in), stacked by rows.
        momentum: how much stays of a momentum.
        nesterov: whether the update looks ahead by the gradient.
    """

    momenta: Sequence[Tensor]
    grads: Sequence[Tensor | None]
    parts: int
    momentum: float
    nesterov: bool


class MuonUpdateCall(NamedTuple):
    """Orthogonal updates that go into weights.

    Attributes:
        weights: (..., rows, in) each, changed in place; in turn, as many as have ``out`` rows
            together are one matrix.
        update: (matrices, ..., out, in), of any strides.
        seconds: the second moment of each matrix, (..., out, 1) or (..., 1, in), changed in place;
            none where neurons are not evened out.
        beta2: how much stays of a second moment.
        rate: what an update is multiplied by.
        decay: the part of a weight that decay takes away.
        cautious: whether decay is, see :func:`shrink`.
    """

    weights: Sequence[Tensor]
    update: Tensor
    seconds: Sequence[Tensor]
    beta2: float
    rate: float
    decay: float
    cautious: bool = False


def adam_reference(call: AdamUpdateCall) -> list[Tensor]:
    """Update weights of any shape in place, in the order of operations of torch's AdamW.

    M <- beta1 M + (1 - beta1) G, V <- beta2 V + (1 - beta2) G^2, and after step t
    W <- (1 - decay) W - rate (M / (1 - beta1^t)) / (sqrt(V / (1 - beta2^t)) + eps).
    """
    weights, grads = list(call.weights), list(call.grads)
    means, squares = list(call.means), list(call.squares)
    torch._foreach_lerp_(means, grads, 1.0 - call.beta1)
    torch._foreach_mul_(squares, call.beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1.0 - call.beta2)
    shrink(weights, means, call.decay, cautious=call.cautious)
    roots = list(torch._foreach_sqrt(squares))
    torch._foreach_div_(roots, [(1.0 - call.beta2**count) ** 0.5 for count in call.counts])
    torch._foreach_add_(roots, call.eps)
    scaled = [-(call.rate / (1.0 - call.beta1**count)) for count in call.counts]
    torch._foreach_addcdiv_(weights, means, roots, scaled)
    return weights


def momentum_reference(call: MuonMomentumCall) -> Tensor:
    """Updates (matrices, ..., out, in), in bfloat16 on CUDA and in the momenta's dtype elsewhere.

    M <- mu M + (1 - mu) G; an update is M, or with Nesterov mu M + (1 - mu) G.
    """
    momenta, width = list(call.momenta), call.parts
    pairs = zip(momenta, call.grads, strict=True)
    grads = [torch.zeros_like(m) if grad is None else grad for m, grad in pairs]
    torch._foreach_lerp_(momenta, grads, 1.0 - call.momentum)
    updates = torch._foreach_lerp(grads, momenta, call.momentum) if call.nesterov else momenta
    stack = torch.stack(
        [
            updates[i] if width == 1 else torch.cat(list(updates[i : i + width]), -2)
            for i in range(0, len(updates), width)
        ]
    )
    return stack.bfloat16() if stack.is_cuda else stack


def muon_reference(call: MuonUpdateCall) -> list[Tensor]:
    """Update weights (..., rows, in) in place: W <- (1 - decay) W - rate U.

    With second moments, U is what :func:`normalise_neurons` makes of the update.
    """
    weights = list(call.weights)
    update = call.update.to(weights[0].dtype)
    if call.seconds:
        update = normalise_neurons(call.beta2, update, call.seconds)
    rows = rows_of_parts(call)
    parts = [part for whole in update.unbind() for part in torch.split(whole, rows, -2)]
    shrink(weights, parts, call.decay, cautious=call.cautious)
    torch._foreach_add_(weights, parts, alpha=-call.rate)
    return weights


def rows_of_parts(call: MuonUpdateCall) -> list[int]:
    """How many rows each of the weights (..., rows, in) of the first matrix has, and of all."""
    return [w.size(-2) for w in call.weights[: len(call.weights) // len(call.update)]]


def normalise_neurons(beta2: float, update: Tensor, seconds: Sequence[Tensor]) -> Tensor:
    """Divide what each neuron gets by the root of its second moment (NorMuon, arXiv 2510.05491).

    Args:
        beta2: how much stays of a moment.
        update: (matrices, ..., out, in) orthogonalised updates in float32.
        seconds: the moments of each matrix, (..., out, 1) or (..., 1, in), changed in place.

    Returns:
        Updates in the same shape, each matrix with the Frobenius norm that it had.
    """
    axis = -1 if seconds[0].size(-1) == 1 else -2
    moments = torch.stack(list(seconds))
    moments.lerp_(update.square().mean(axis, keepdim=True), 1.0 - beta2)
    torch._foreach_copy_(list(seconds), list(moments.unbind()))
    even = update * moments.clamp_min(1e-10).rsqrt()
    norm, changed = (t.norm(dim=(-2, -1), keepdim=True) for t in (update, even))
    return even * (norm / changed.clamp_min(1e-10))


@torch.no_grad()
def shrink(
    parameters: Sequence[Tensor], updates: Sequence[Tensor], decay: float, *, cautious: bool
) -> None:
    """Decoupled weight decay, in place: W <- (1 - decay) W (arXiv 1711.05101).

    A cautious one (arXiv 2510.12402) leaves alone what the step moves away from zero: it shrinks
    weights whose sign is that of the update, which is going to be subtracted, and those at zero.

    Args:
        parameters: weights of any shape.
        updates: what will be subtracted from each, up to a positive factor, in its shape.
        decay: the part of a weight that is taken away.
        cautious: whether some weights are spared.
    """
    if not cautious:
        torch._foreach_mul_(list(parameters), 1.0 - decay)
        return
    for parameter, update in zip(parameters, updates, strict=True):
        agrees = (update * parameter >= 0).to(parameter.dtype)
        parameter.addcmul_(parameter, agrees, value=-decay)
