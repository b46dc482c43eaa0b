"""Muon: the momentum of a matrix, orthogonalised (Jordan 2024); with NorMuon's second moments.

    gradient G -> momentum M -> equilibrate -> orthogonalise -> even out neurons -> times a factor

Matrices of one shape are stacked and iterated together.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from segpt.config.layout import Place
from segpt.config.optimizer import Muon, Neurons
from segpt.errors import TrainError
from segpt.kernels import newton_schulz
from segpt.kernels.newton_schulz import Coefficients
from segpt.kernels.updates import (
    MuonMomentumCall,
    MuonUpdateCall,
    muon_momentum,
    muon_update,
)
from segpt.train import schedule

from .division import Work
from .shared import Member, StateTensor

# Jordan's quintic: every step the same, singular values end in about [0.7, 1.2].
CLASSIC = (3.4445, -4.7750, 2.0315)
FIVE: Coefficients = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
SEVEN: Coefficients = (
    (7.2086, -15.5131, 9.0178),
    (3.9623, -2.5813, 0.4542),
    (3.9466, -2.5765, 0.4544),
    (3.8991, -2.5671, 0.4566),
    (3.7186, -2.5308, 0.4653),
    (3.1390, -2.3073, 0.4733),
    (2.1715, -1.5246, 0.3885),
)
# Polar Express (arXiv 2505.16932), a schedule of five steps for norms inflated by 2 percent.
POLAR: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

# What each way to equilibrate sums over in a stack (matrices, out, in).
_NORM_AXES: Mapping[str, tuple[int, ...]] = {
    "none": (),
    "row": (2,),
    "column": (1,),
    "both": (2, 1),
}


class StackedMatrix(NamedTuple):
    """Weights that are updated as one matrix: one, or several that are joint, stacked by rows.

    Each weight is (..., rows, in) with a momentum of its shape; ``second`` holds the second moments
    of the whole, where the rule has them, see :func:`second_moment_shape`.
    """

    parameters: list[Tensor]
    momenta: list[Tensor]
    second: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the whole, (..., out, in)."""
        *stacked, _, columns = self.parameters[0].shape
        return (*stacked, sum(p.size(-2) for p in self.parameters), columns)


def orthogonalise(rule: Muon, update: Tensor, *, both: bool = False) -> Tensor:
    """Equilibrate a stack of updates, then bring their singular values near 1.

    Args:
        rule: which norms are evened out first, and the coefficients of the iterations.
        update: (matrices, out, in), in the dtype to iterate in.
        both: whether rows and columns are equilibrated whatever the rule says.

    Returns:
        (matrices, out, in) in the dtype of the update.
    """
    equilibrate = "both" if both else rule.equilibrate
    # Both norms are those of the update as it came.
    norms = [update.norm(dim=d, keepdim=True).clamp_min(1e-7) for d in _NORM_AXES[equilibrate]]
    for norm in norms:
        update = update / norm
    tall = update.size(1) > update.size(2)
    x = update.mT if tall else update  # so that the products are the small ones
    norm = x.norm(dim=(1, 2), keepdim=True)
    match rule.coefficients:
        case "classic":
            x = newton_schulz(x / (norm + 1e-7), (CLASSIC,) * rule.iterations)
        case "five":
            x = newton_schulz(x / (norm + 1e-7), FIVE[: rule.iterations])
        case "seven":
            x = newton_schulz(x / (norm + 1e-7), SEVEN)
        case "polar":
            x = newton_schulz(x / (1.02 * norm + 1e-6), POLAR[: rule.iterations])
    return x.mT if tall else x


def second_moment_shape(rule: Neurons, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the second moments of a (..., out, in) matrix: one for each row or column."""
    *stacked, rows, columns = shape
    if rule.axis == "row" or rows >= columns:
        return (*stacked, rows, 1)
    return (*stacked, 1, columns)


def shape_factor(rule: Muon, rows: int, columns: int) -> float:
    """What the update of an (out, in) = (rows, columns) matrix is multiplied by."""
    match rule.scale:
        case "spectral":
            return max(1.0, rows / columns) ** 0.5
        case "ratio":
            return (rows / columns) ** 0.5
        case "rms":
            return 0.2 * max(rows, columns) ** 0.5


@torch.no_grad()
def muon_step(
    rule: Muon,
    matrices: Sequence[StackedMatrix],
    rate: float,
    momentum: float,
    decay: float,
    *,
    both: bool = False,
) -> None:
    """Update matrices of one shape (..., out, in) in place, from the ``grad`` of their parameters.

    With the momentum kept as a moving average M, M <- mu M + (1 - mu) G and, with Nesterov,
    U = mu M + (1 - mu) G; W <- (1 - decay) W - rate factor orthogonal(U). Decay never enters the
    momentum; a cautious one leaves out weights that the update moves away from zero. Iterations
    run in bfloat16 on CUDA and in float32 elsewhere.

    Args:
        rule: everything about the update but how it goes over time.
        matrices: what is updated. A part of a joint matrix without a gradient has one of zero.
        rate: the learning rate.
        momentum: mu.
        decay: the part of a weight that decay takes away.
        both: whether rows and columns are equilibrated whatever the rule says.
    """
    stack = stacked_momenta(rule, matrices, momentum)
    apply_updates(rule, matrices, orthogonal_updates(rule, stack, both=both), rate, decay)


@torch.no_grad()
def stacked_momenta(rule: Muon, matrices: Sequence[StackedMatrix], momentum: float) -> Tensor:
    """Take the gradients of matrices of one shape into their momenta, which keep ``momentum``.

    Returns:
        What is to be made orthogonal, (matrices, ..., out, in) in the dtype of the iterations.
    """
    parameters = [p for matrix in matrices for p in matrix.parameters]
    momenta = [m for matrix in matrices for m in matrix.momenta]
    grads, parts = [p.grad for p in parameters], len(matrices[0].parameters)
    return muon_momentum(MuonMomentumCall(momenta, grads, parts, momentum, rule.nesterov))


@torch.no_grad()
def orthogonal_updates(rule: Muon, stack: Tensor, *, both: bool) -> Tensor:
    """The orthogonal form of each matrix of a stack, (matrices, ..., out, in), in its dtype."""
    return orthogonalise(rule, stack.flatten(0, -3), both=both).view(stack.shape)


@torch.no_grad()
def apply_updates(
    rule: Muon, matrices: Sequence[StackedMatrix], updates: Tensor, rate: float, decay: float
) -> None:
    """Decay matrices of one shape, and move them by (matrices, ..., out, in) orthogonal updates."""
    parameters = [p for matrix in matrices for p in matrix.parameters]
    seconds, beta2 = [], 1.0
    if rule.neurons is not None:
        seconds = [matrix.second for matrix in matrices if matrix.second is not None]
        beta2 = rule.neurons.beta2
    rate *= shape_factor(rule, *updates.shape[-2:])
    muon_update(MuonUpdateCall(parameters, updates, seconds, beta2, rate, decay, rule.cautious))


class MuonOptimizer:
    """A group of matrices under Muon; those that are joint share their second moments."""

    def __init__(self, rule: Muon, members: Sequence[Member]) -> None:
        """Take charge of matrices, whose state begins at zero.

        Raises:
            TrainError: if one of them is no matrix.
        """
        if flat := [m.weight.name for m in members if m.tensor.dim() < 2]:
            raise TrainError(f"Muon is for matrices and {flat[0]!r} is none; give it Adam")
        self.rule = rule
        self.momenta = {m.weight.name: torch.zeros_like(m.tensor) for m in members}
        self.seconds: dict[str, Tensor] = {}
        self.by_shape: dict[tuple[int, ...], list[StackedMatrix]] = defaultdict(list)
        for joint in _joint(rule, members):
            matrix = StackedMatrix(
                [m.tensor for m in joint], [self.momenta[m.weight.name] for m in joint]
            )
            for kept in self.remembered(matrix.shape)[1:]:
                second = kept.zeros(joint[0].tensor.device)
                self.seconds[joint[0].weight.name] = second
                matrix = matrix._replace(second=second)
            rows = tuple(p.size(-2) for p in matrix.parameters)
            self.by_shape[(*matrix.shape, *rows)].append(matrix)

    def remembered(self, shape: tuple[int, ...]) -> tuple[StateTensor, ...]:
        """The momentum, and with NorMuon a second moment for each neuron."""
        momentum = StateTensor("momentum", shape)
        if self.rule.neurons is None:
            return (momentum,)
        return momentum, StateTensor("second", second_moment_shape(self.rule.neurons, shape))

    def step(self, multiplier: float, progress: float, steps: float) -> None:
        """Update every matrix that has a gradient; see :class:`.shared.GroupOptimizer`."""
        rule = self.rule
        for matrices in self._learning():
            muon_step(
                rule,
                matrices,
                rule.rate * multiplier,
                schedule.momentum(rule, progress, steps),
                schedule.decay(rule, multiplier, progress),
                both=progress < rule.both_until,
            )

    def prepare(self, progress: float, steps: float) -> list[Work]:
        """Move the momenta; what is left is to orthogonalise, and one process can do for all."""
        momentum = schedule.momentum(self.rule, progress, steps)
        both = progress < self.rule.both_until
        work = []
        for matrices in self._learning():
            stack = stacked_momenta(self.rule, matrices, momentum)
            shape = matrices[0].shape
            cost = math.prod(shape) * min(shape[-2:])
            compute = functools.partial(self._orthogonal, stack, both)
            work.append(Work(len(matrices), shape, cost, stack.dtype, compute))
        return work

    def apply(self, multiplier: float, progress: float, results: Sequence[Tensor]) -> None:
        """Move the matrices by what came of their work, (matrices, ..., out, in) for each shape."""
        rate, decay = self.rule.rate * multiplier, schedule.decay(self.rule, multiplier, progress)
        for matrices, updates in zip(self._learning(), results, strict=True):
            apply_updates(self.rule, matrices, updates, rate, decay)

    def _learning(self) -> list[list[StackedMatrix]]:
        """The matrices that have a gradient, by shape."""
        learning = (
            [m for m in same_shape if any(p.grad is not None for p in m.parameters)]
            for same_shape in self.by_shape.values()
        )
        return [matrices for matrices in learning if matrices]

    def _orthogonal(self, stack: Tensor, both: bool, chosen: Sequence[int]) -> Tensor:
        """The updates of the matrices with these numbers, (numbers, ..., out, in)."""
        return orthogonal_updates(self.rule, stack[list(chosen)], both=both)

    def state(self) -> dict[str, Tensor]:
        """Named arrays: momenta by weight, second moments by the first weight of a joint matrix."""
        momenta = {f"momentum|{name}": value for name, value in self.momenta.items()}
        return momenta | {f"second|{name}": value for name, value in self.seconds.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the named arrays that :meth:`state` returned.

        Raises:
            CheckpointError: if something is missing.
        """
        for kind, tensors in (("momentum", self.momenta), ("second", self.seconds)):
            for name, tensor in tensors.items():
                kept = StateTensor(kind, tuple(tensor.shape), tensor.dtype)
                tensor.copy_(kept.of(state, name))


def _joint(rule: Muon, members: Sequence[Member]) -> list[list[Member]]:
    """Members that are updated as one matrix, in the order of ``rule.joint``."""
    joint: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        weight = member.weight
        joins = weight.part in rule.joint and weight.place is Place.MIXER
        joint[weight.owner if joins else weight.name].append(member)
    order: dict[str, int] = {part: i for i, part in enumerate(rule.joint)}
    return [sorted(parts, key=lambda m: order.get(m.weight.part, 0)) for parts in joint.values()]
