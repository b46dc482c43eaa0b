"""Linear maps of oneDNN: one product forward, two backward, and no copy of the weight."""

from typing import Any

import torch
from torch import Tensor

from segpt.kernels import onednn
from segpt.kernels.registry import Backend

from .reference import LinearCall


class OneDnnLinear(Backend[LinearCall, Tensor]):
    """Twice as fast as MKL where MKL does not know the CPU."""

    name, priority = "onednn", 20

    def refusal(self, call: LinearCall) -> str | None:
        x, weight = call
        if reason := onednn.refusal(x, weight):
            return reason
        if weight.dim() != 2:
            return "it takes a weight of two dimensions"
        return onednn.too_small(x.numel() * weight.size(0))

    def run(self, call: LinearCall) -> Tensor:
        product: Tensor = _Linear.apply(*call)  # type: ignore[no-untyped-call]
        return product


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """``x`` (..., in) by ``weight`` (out, in), (..., out)."""
        ctx.save_for_backward(x, weight)
        return onednn.multiply(x.flatten(0, -2), weight).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, from_x, from_weight = grad.flatten(0, -2), None, None
        if ctx.needs_input_grad[0]:
            from_x = onednn.multiply(rows, weight.T).view(x.shape)
        if ctx.needs_input_grad[1]:
            from_weight = onednn.across(rows, x.flatten(0, -2))
        return from_x, from_weight
