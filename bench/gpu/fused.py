"""Kernels that replace several of torch's own, against those."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from segpt.kernels.activation.reference import FeedCall
from segpt.kernels.rms_norm.reference import AddNormCall
from segpt.kernels.updates import AdamUpdateCall

from .operations import descend, error_of, noise, result_of, row
from .plan import Plan, Row
from .timing import paired


def fused(plan: Plan) -> Iterator[Row]:
    """Feeds, norms with an addition, and AdamW."""
    yield from _feeds(plan)
    yield from _norms(plan)
    yield from _updates(plan)


def _feeds(plan: Plan) -> Iterator[Row]:
    x = noise(plan, plan.rows // 4, plan.width)
    weight = noise(plan, 4 * plan.width, plan.width, seed=1) * plan.width**-0.5
    for act in ("leaky_relu2", "swiglu"):

        def run(backend: str, act: str = act) -> Callable[[], list[Tensor]]:
            return descend(
                lambda x, weight: result_of("gated_feed", backend, FeedCall, x, weight, act),
                (x, weight),
            )

        ours, other = run(plan.backend), run("reference")
        sides = paired(ours, other, plan.device, plan.rounds)
        yield row(f"feed, {act}", "torch's operations", sides, error=error_of(ours(), other()))


def _norms(plan: Plan) -> Iterator[Row]:
    x, residual = (noise(plan, plan.rows, plan.width, seed=seed) for seed in (0, 1))

    def run(backend: str) -> Callable[[], list[Tensor]]:
        def both(x: Tensor, residual: Tensor) -> Tensor:
            return torch.stack(tuple(result_of("add_norm", backend, AddNormCall, x, residual)))

        return descend(both, (x, residual))

    ours, other = run(plan.backend), run("reference")
    sides = paired(ours, other, plan.device, plan.rounds)
    yield row("add and norm", "torch's operations", sides, error=error_of(ours(), other()))


def _updates(plan: Plan) -> Iterator[Row]:
    """Twelve matrices and twelve vectors, against the fused AdamW of torch where there is one."""
    shapes = [(plan.width, plan.width), (plan.width,)] * 12
    weights = [torch.randn(shape, device=plan.device) for shape in shapes]
    grads, means = ([torch.randn_like(w) for w in weights] for _ in range(2))
    squares = [w.square() for w in means]
    counts = [3.0] * len(weights)
    leaves = [torch.nn.Parameter(w.clone()) for w in weights]
    for leaf, grad in zip(leaves, grads, strict=True):
        leaf.grad = grad
    peer = torch.optim.AdamW(leaves, lr=1e-3, fused=not plan.is_dry)

    def ours() -> object:
        rest = counts, 1e-3, 1e-5, 0.9, 0.95, 1e-8
        return result_of(
            "adam_update", plan.backend, AdamUpdateCall, weights, grads, means, squares, *rest
        )

    sides = paired(ours, peer.step, plan.device, plan.rounds)
    yield row("AdamW of 24 weights", "torch.optim.AdamW, fused", sides)
