"""What a weight sees: the second moment of its inputs, over calibration text."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segpt.config.layout import Role
from segpt.errors import DataError
from segpt.model.model import Model
from segpt.model.params import Matrix, weights


@torch.no_grad()
def hessians(model: Model, batches: Iterable[NDArray[np.int64] | Tensor]) -> dict[str, Tensor]:
    """The Hessian of every weight's squared output error: the sum of x x^T over its inputs x.

    Every visit of a looped layer adds to its one sum. A tied table counts as the head alone:
    what looking up a row costs is not in any Hessian. Other tables have none.

    Args:
        model: the model to run.
        batches: (batch, time) token ids.

    Returns:
        (columns, columns) float64 per weight name, divided by the tokens seen.

    Raises:
        DataError: if there are no batches.
    """
    moments, tokens = _Moments(), 0
    head = model.table if model.head.matrix is None else model.head.matrix
    head_name = next(weight.name for weight in weights(model) if weight.param is head)
    hooks = [
        weight.param.register_forward_pre_hook(moments.hook(weight.name))
        for weight in weights(model)
        if isinstance(weight.param, Matrix) and weight.role is not Role.HEAD
    ]
    try:
        for batch in batches:
            ids = torch.as_tensor(batch, device=model.table.weight.device)
            moments.add(head_name, model.hidden(ids).x)  # spares the logits
            tokens += ids.numel()
    finally:
        for hook in hooks:
            hook.remove()
    if tokens == 0:
        raise DataError(
            "there is no calibration text; give some training text, or set quantize.method=nearest"
        )
    return {name: total / tokens for name, total in moments.sums.items()}


class _Moments:
    """Sums of x x^T by weight name."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.latest: tuple[Tensor, Tensor] | None = None

    def add(self, name: str, x: Tensor) -> None:
        if self.latest is None or self.latest[0] is not x:  # query, key and value share one input
            rows = x.flatten(0, -2).float()
            with torch.autocast(x.device.type, enabled=False):  # whatever the model computes in
                self.latest = x, (rows.T @ rows).double()
        gram = self.latest[1]
        self.sums[name] = self.sums[name] + gram if name in self.sums else gram

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, inputs: self.add(name, inputs[0])
