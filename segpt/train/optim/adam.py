"""AdamW: a moving average of gradients over the root of that of their squares."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segpt.config.optimizer import Adam
from segpt.kernels.updates import AdamUpdateCall, adam_update
from segpt.train import schedule

from .shared import StateTensor, WeightwiseOptimizer


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
    """Update weights in place from their ``grad``, as :func:`adam_update` does.

    The numbers of steps are on the CPU, see :meth:`.shared.StateTensor.zeros`, so that reading them
    waits for no device.

    Args:
        rule: betas, eps, and whether decay is cautious.
        parameters: weights of any shape; each has a gradient.
        moments: the state of each, changed in place.
        rate: the learning rate.
        decay: the part of a weight that decay takes away.
    """
    torch._foreach_add_([m.steps for m in moments], 1.0)
    adam_update(
        AdamUpdateCall(
            list(parameters),
            [p.grad for p in parameters if p.grad is not None],
            [m.mean for m in moments],
            [m.square for m in moments],
            [float(m.steps) for m in moments],
            rate,
            decay,
            rule.beta1,
            rule.beta2,
            rule.eps,
            rule.cautious,
        )
    )


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
