"""What optimizers have in common: the weights of a group, their state, and decoupled decay."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from segpt.config.layout import Weight
from segpt.errors import CheckpointError
from segpt.kernels.updates import shrink as shrink

R = TypeVar("R")


class Member(NamedTuple):
    """A weight of a group: its place in the layout, and the parameter."""

    weight: Weight
    tensor: nn.Parameter


class StateTensor(NamedTuple):
    """A tensor that an optimizer keeps for a weight. Checkpoints name it ``name|weight``."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def zeros(self, device: torch.device) -> Tensor:
        """The tensor, of any shape, before the first step; a scalar stays on the CPU to be read."""
        return torch.zeros(self.shape, dtype=self.dtype, device=device if self.shape else "cpu")

    def of(self, state: Mapping[str, Tensor], weight: str) -> Tensor:
        """The tensor of a weight among the named arrays of a checkpoint.

        Raises:
            CheckpointError: if it is missing, or of another shape or type.
        """
        key = f"{self.name}|{weight}"
        tensor = state.get(key)
        if tensor is None or tensor.shape != self.shape or tensor.dtype != self.dtype:
            raise CheckpointError(
                f"the optimizer state lacks {key!r} or has it in another shape or type; resume "
                "with the recipe that the run began with"
            )
        return tensor


class GroupOptimizer(Protocol):
    """Updates the weights of one group, all of them under one rule."""

    def __init__(self, rule: Any, members: Sequence[Member]) -> None:
        """Take charge of weights; what is remembered of them begins at zero."""

    def remembered(self, shape: tuple[int, ...]) -> tuple[StateTensor, ...]:
        """What is kept for a weight of this shape."""

    def step(self, multiplier: float, progress: float, steps: float) -> None:
        """Update every weight that has a gradient.

        Args:
            multiplier: of the rule's rate.
            progress: the fraction of the run that is done.
            steps: the number of steps that are done; halves are fine.
        """

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as named arrays called ``kind|weight``."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the named arrays that :meth:`state` returned.

        Raises:
            CheckpointError: if something is missing.
        """


class WeightwiseOptimizer(ABC, Generic[R]):
    """A group of weights each of which is updated by itself, from state of its own.

    A weight has state from its first gradient on; one that has not joined has none.
    """

    def __init__(self, rule: R, members: Sequence[Member]) -> None:
        self.rule, self.members = rule, members
        self.states: dict[str, list[Tensor]] = {}

    @abstractmethod
    def remembered(self, shape: tuple[int, ...]) -> tuple[StateTensor, ...]:
        """What is kept for a weight of this shape; a step gets it in this order."""

    @abstractmethod
    def update(
        self,
        parameters: list[nn.Parameter],
        states: Sequence[Sequence[Tensor]],
        multiplier: float,
        progress: float,
    ) -> None:
        """Change parameters of any shape, which have gradients, and their states in place."""

    def step(self, multiplier: float, progress: float, steps: float) -> None:
        """Update every weight that has a gradient; see :class:`GroupOptimizer`."""
        learning = [m for m in self.members if m.tensor.grad is not None]
        if not learning:
            return
        for weight, tensor in learning:
            if weight.name not in self.states:
                kept = self.remembered(tuple(tensor.shape))
                self.states[weight.name] = [part.zeros(tensor.device) for part in kept]
        states = [self.states[m.weight.name] for m in learning]
        self.update([m.tensor for m in learning], states, multiplier, progress)

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as named arrays called ``kind|weight``."""
        shapes = {weight.name: tuple(tensor.shape) for weight, tensor in self.members}
        return {
            f"{kept.name}|{name}": tensor
            for name, tensors in self.states.items()
            for kept, tensor in zip(self.remembered(shapes[name]), tensors, strict=True)
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the named arrays that :meth:`state` returned.

        Raises:
            CheckpointError: if a weight has a part of its state only, or one that does not fit.
        """
        self.states = {}
        for weight, parameter in self.members:
            kept = self.remembered(tuple(parameter.shape))
            if f"{kept[0].name}|{weight.name}" in state:
                self.states[weight.name] = [
                    part.zeros(parameter.device).copy_(part.of(state, weight.name)) for part in kept
                ]
