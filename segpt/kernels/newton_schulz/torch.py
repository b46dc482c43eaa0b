"""Newton-Schulz with the additions folded into ``baddbmm``."""

import torch
from torch import Tensor

from segpt.kernels.registry import Backend

from .reference import NewtonSchulzCall


class TorchNewtonSchulz(Backend[NewtonSchulzCall, Tensor]):
    """Batched products of torch itself; it takes every call."""

    name, priority = "torch", 10

    def refusal(self, call: NewtonSchulzCall) -> str | None:
        return None

    def run(self, call: NewtonSchulzCall) -> Tensor:
        x = call.x
        for a, b, c in call.coefficients:
            gram = torch.bmm(x, x.mT)
            inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(x, inner, x, beta=a)
        return x
