"""Newton-Schulz by products of oneDNN, a matrix at a time."""

import torch
from torch import Tensor

from segpt.kernels import onednn
from segpt.kernels.registry import Backend

from .reference import NewtonSchulzCall


class OneDnnNewtonSchulz(Backend[NewtonSchulzCall, Tensor]):
    """A = X X^T is symmetric, so that A^2 is A A^T, which is the product that oneDNN has."""

    name, priority = "onednn", 20

    def refusal(self, call: NewtonSchulzCall) -> str | None:
        x = call.x
        if reason := onednn.refusal(x):
            return reason
        if x.requires_grad:
            return "it has no gradients"
        return onednn.too_small(x[0].numel() * x.size(1))

    def run(self, call: NewtonSchulzCall) -> Tensor:
        matrices = []
        for matrix in call.x:
            for a, b, c in call.coefficients:
                gram = onednn.multiply(matrix, matrix)
                inner = onednn.multiply(gram, gram).mul_(c).add_(gram, alpha=b)
                matrix = onednn.multiply(inner, matrix.T).add_(matrix, alpha=a)
            matrices.append(matrix)
        return torch.stack(matrices)
