"""AdamW: a moving average of gradients over the root of that of their squares."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segpt.config.optimizer import Adam
from segpt.train import schedule

from .shared import StateTensor, WeightwiseOptimizer, shrink


class Moments(NamedTuple):
    """Averages of gradients and of squares, in the shape of a weight, and its steps, a scalar."""

    mean: Tensor
    square: Tensor
    steps: Tensor


@torch.no_grad()
def adam_step(
    rule: Adam,
    parameters: Sequence[Tensor],
    moments: Sequence[Moments],
    rate: float,
    decay: float,
) -> None:
    """Update weights in place from their ``grad`` G, in the order of operations of torch's AdamW.

    M <- beta1 M + (1 - beta1) G, V <- beta2 V + (1 - beta2) G^2, and after step t
    W <- (1 - decay) W - rate (M / (1 - beta1^t)) / (sqrt(V / (1 - beta2^t)) + eps).

    Args:
        rule: betas, eps, and whether decay is cautious.
        parameters: weights of any shape; each has a gradient.
        moments: the state of each, changed in place.
        rate: the learning rate.
        decay: the part of a weight that decay takes away.
    """
    weights, grads = list(parameters), [p.grad for p in parameters if p.grad is not None]
    means, squares = [m.mean for m in moments], [m.square for m in moments]
    torch._foreach_add_([m.steps for m in moments], 1.0)
    counts = [float(m.steps) for m in moments]
    torch._foreach_lerp_(means, grads, 1.0 - rule.beta1)
    torch._foreach_mul_(squares, rule.beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1.0 - rule.beta2)
    shrink(weights, means, decay, cautious=rule.cautious)
    roots = list(torch._foreach_sqrt(squares))
    torch._foreach_div_(roots, [(1.0 - rule.beta2**count) ** 0.5 for count in counts])
    torch._foreach_add_(roots, rule.eps)
    scaled = [-(rate / (1.0 - rule.beta1**count)) for count in counts]
    torch._foreach_addcdiv_(weights, means, roots, scaled)


class AdamOptimizer(WeightwiseOptimizer[Adam]):
    """A group of weights under AdamW."""

    def remembered(self, shape: tuple[int, ...]) -> tuple[StateTensor, ...]:
        """Two moments in the shape of the weight, and the number of its steps."""
        return (
            StateTensor("adam.exp_avg", shape),
            StateTensor("adam.exp_avg_sq", shape),
            StateTensor("adam.step", ()),
        )

    def update(
        self,
        parameters: list[nn.Parameter],
        states: Sequence[Sequence[Tensor]],
        multiplier: float,
        progress: float,
    ) -> None:
        """Take a step of AdamW on weights of any shape, with the states of ``remembered``."""
        rate = self.rule.rate * multiplier
        decay = schedule.decay(self.rule, multiplier, progress)
        adam_step(self.rule, parameters, [Moments(*state) for state in states], rate, decay)
