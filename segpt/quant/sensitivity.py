"""How much each weight matters: the curvature of a model's own predictions, over training text.

The second derivative of KL(model || model + change) at no change is the Fisher information, with
labels drawn from the model. For a linear map y = W x with gradient g = dloss / dy it is about
the Kronecker product of E[|g|^2 x x^T], GPTQ's Hessian with every token weighted by what its
outputs matter, and E[|x|^2 g g^T], which says the same of the outputs (Martens and Grosse 2015,
arXiv 1503.05671). It is measured in nats, so it compares all weights of a model.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segpt.config.layout import Role
from segpt.errors import DataError
from segpt.model.model import Model
from segpt.model.params import Table, Vector, weights

_TOKENS = 4096  # whose activations are held at once


class Sensitivity(NamedTuple):
    """The curvature of one weight (rows, columns), in nats per token.

    A change d costs about 1/2 trace(outputs d curvature d^T) / mean(rows).

    Attributes:
        curvature: (columns, columns) float64, the mean over rows.
        rows: (rows,) float64, how much each row matters; its unit does not.
        outputs: (rows, rows) float32, how rows matter together, with ``rows`` on its diagonal;
            None for tables and heads, whose rows are taken as independent.
    """

    curvature: Tensor
    rows: Tensor
    outputs: Tensor | None

    def damage(self, change: Tensor) -> float:
        """The nats per token that a ``change`` (rows, columns) is expected to cost."""
        change = change.double()
        inputs = change @ self.curvature
        mean = float(self.rows.mean())
        if mean <= 0:
            return 0.0
        if self.outputs is None:
            return 0.5 / mean * float((self.rows[:, None] * inputs * change).sum())
        return 0.5 / mean * float((inputs * (self.outputs.double() @ change)).sum())


def sensitivities(
    model: Model, batches: Iterable[NDArray[np.int64] | Tensor], seed: int = 0
) -> dict[str, Sensitivity]:
    """The sensitivity of every table, the head and every matrix.

    A looped layer makes the same error at every visit, whose gradients carry what later visits
    make of it; what they do to one token together is counted, too. So it is with a table that
    several layers look the same token up in. A tied one adds up what its rows do as inputs and as
    a head.

    Args:
        model: the model; its parameters' gradients are cleared.
        batches: (batch, time) token ids of training text.
        seed: of the labels drawn from the model.

    Raises:
        DataError: if there are no batches.
    """
    sums = _Sums(model)
    device = model.table.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    hooks = [
        weight.param.register_forward_hook(sums.watch(weight.name))
        for weight in weights(model)
        if not isinstance(weight.param, Vector)
    ]
    try:
        for batch in batches:
            ids = torch.as_tensor(batch, device=device)
            for rows in torch.split(ids, max(1, _TOKENS // ids.size(1))):
                sums.add(rows, generator)
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    if sums.tokens == 0:
        raise DataError(
            "there is no calibration text; give some training text, or set quantize.method=nearest"
        )
    return sums.mean()


class _Sums:
    """Sums over tokens, by weight name, and the calls that wait for their gradients."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.tokens = 0
        self.heads = {w.name for w in weights(model) if w.role is Role.HEAD}
        self.curvature: dict[str, Tensor] = {}
        self.rows: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.looked_up = {
            w.name: torch.zeros_like(w.tensor, dtype=torch.float64)
            for w in weights(model)
            if isinstance(w.param, Table)
        }
        self.calls: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def watch(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            output.retain_grad()
            self.calls[name].append((inputs[0].detach(), output))

        return hook

    def add(self, ids: Tensor, generator: torch.Generator) -> None:
        """Run one batch (rows, time), draw labels, and take the gradients in."""
        self.calls.clear()
        hidden = self.model.hidden(ids).x
        head, table = self.model.head, self.model.table
        product = head.product(hidden, table)
        product.retain_grad()
        logits = head.capped(product, table)
        shares = logits.detach().flatten(0, 1).softmax(-1)
        labels = torch.multinomial(shares, 1, generator=generator)[:, 0]
        loss = F.cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
        self.model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, calls in self.calls.items():
            visits = [(x, output.grad) for x, output in calls if output.grad is not None]
            if name not in self.looked_up:
                self._map(name, visits, together=name not in self.heads)
            elif visits:
                together = torch.stack([gradient.double() for _, gradient in visits]).sum(0)
                squares = together.flatten(0, 1).square()
                self.looked_up[name].index_add_(0, visits[0][0].flatten(), squares)
        if head.matrix is None and product.grad is not None:
            self._map("table", [(hidden.detach(), product.grad)], together=False)
        self.tokens += ids.numel()

    def _map(self, name: str, visits: Sequence[tuple[Tensor, Tensor]], *, together: bool) -> None:
        """Take in a token's inputs x and gradients g at every visit.

        An error in the weight is made at each of them, so what counts is the square of a sum
        over visits: products of one visit with another belong to it.
        """
        flat = [(x.flatten(0, -2).float(), g.flatten(0, -2).float()) for x, g in visits]
        for x, gradient in flat:
            for other_x, other_gradient in flat:
                products, energy = gradient * other_gradient, (x * other_x).mean(1)
                gram = (x * products.mean(1, keepdim=True)).T @ other_x
                self._sum(self.curvature, name, gram.double())
                self._sum(self.rows, name, (energy @ products).double())
                if together:
                    covariance = (gradient * energy[:, None]).T @ other_gradient
                    self._sum(self.outputs, name, covariance)

    @staticmethod
    def _sum(sums: dict[str, Tensor], name: str, term: Tensor) -> None:
        sums[name] = sums[name] + term if name in sums else term

    def mean(self) -> dict[str, Sensitivity]:
        for name, squares in self.looked_up.items():
            self._sum(self.curvature, name, torch.diag(squares.mean(0)))
            self._sum(self.rows, name, squares.mean(1))
        means = {}
        for name, total in self.curvature.items():
            outputs = self.outputs.get(name)
            means[name] = Sensitivity(
                total / self.tokens,
                self.rows[name] / self.tokens,
                None if outputs is None else outputs / self.tokens,
            )
        return means
