"""Tuning what is still float to what is already coded: distillation from the float model."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.config.layout import Role
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.values import QuantizedWeight

_VECTOR_RATE = 0.003  # gains are of order one and few
_WARMUP = 5


class Student:
    """The copy of a model that takes on codes; what is still float in it can be tuned."""

    def __init__(self, teacher: Model) -> None:
        self.model = copy.deepcopy(teacher).requires_grad_(False)
        self._tensors = {w.name: w.tensor for w in weights(self.model)}

    @torch.no_grad()
    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over float weights by name, in the shapes of the model."""
        for name, value in arrays.items():
            self._tensors[name].copy_(torch.from_numpy(np.array(value)))

    def load(self, coded: Mapping[str, QuantizedWeight]) -> None:
        """Take on what the codes of some weights stand for."""
        self.restore({name: value.decoded() for name, value in coded.items()})

    def clones(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Some weights as they are now, in the shapes of the model."""
        return {name: self._tensors[name].detach().clone() for name in names}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All weights as they are now, as named arrays."""
        return {name: tensor.cpu().numpy().copy() for name, tensor in self._tensors.items()}


def tune(
    student: Model,
    teacher: Model,
    frozen: Collection[str],
    batches: Sequence[NDArray[np.int64] | Tensor],
    rate: float,
    report: Callable[[int], None] = lambda _: None,
) -> None:
    """Adam steps on KL(teacher || student), one per batch, on every weight but the frozen ones.

    So the layers that are not coded yet make up for the errors of those that are, across the
    whole network and not just within a row as GPTQ does.

    Args:
        student: changed in place; its frozen weights are the decoded ones.
        teacher: the float model.
        frozen: names of the weights that stay.
        batches: (batch, time) token ids of training text.
        rate: learning rate of matrices and tables, relative to their root mean square; it falls
            linearly to 0.
        report: told the steps done.
    """
    if not batches:
        return
    groups = []
    for weight in weights(student):
        weight.tensor.requires_grad_(weight.name not in frozen)
        if weight.name in frozen:
            continue
        vector = weight.role is Role.VECTOR
        size = 1.0 if vector else float(weight.tensor.detach().square().mean().sqrt())
        step = _VECTOR_RATE if vector else rate * size
        groups.append({"params": [weight.tensor], "lr": step, "full": step})
    if not groups:
        return
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
    for i, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * min(1.0, (i + 1) / _WARMUP) * (1 - i / len(batches))
        loss = divergence(teacher, student, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        report(i + 1)
    student.requires_grad_(False)
    student.zero_grad(set_to_none=True)


def divergence(teacher: Model, student: Model, batch: NDArray[np.int64] | Tensor) -> Tensor:
    """KL(teacher || student) in nats per token over a batch (batch, time) of token ids."""
    ids = torch.as_tensor(batch, device=teacher.table.weight.device)
    with torch.no_grad():
        before = teacher(ids).log_softmax(-1)
    after = student(ids).log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1).mean()
