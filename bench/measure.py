"""A float model and its quantized versions on the same held-out text, document by document.

The sums are those of :func:`segpt.quant.quality.compare`; kept apart by document they also say
how much a figure would differ on other text. Documents, not tokens, are the units that are drawn
independently.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.model.model import Model

_POSITIONS = 1024  # whose logits are held at once

Sums = NDArray[np.float64]  # one per document


class Ratio(NamedTuple):
    """A quotient of two sums over documents, and its standard error."""

    value: float
    error: float


def ratio(over: Sums, under: Sums) -> Ratio:
    """The quotient of the sums of two quantities of each document, by linearisation."""
    value = float(over.sum() / under.sum())
    count = len(over)
    spread = float(np.square(over - value * under).sum())
    error = math.sqrt(count / max(1, count - 1) * spread) / abs(float(under.sum()))
    return Ratio(value, error)


class Cost(NamedTuple):
    """What a quantized model loses on each document: nats of loss, and of KL, over its tokens."""

    loss: Sums
    divergence: Sums


class HeldOut:
    """Held-out text as the float model sees it, computed once for all that is compared with it."""

    def __init__(
        self,
        model: Model,
        blocks: Iterable[NDArray[np.int64]],
        sizes: NDArray[np.integer],
        start: int,
    ) -> None:
        """Run the float model.

        Args:
            model: the float model.
            blocks: (batch, time + 1) token ids in the order of the text.
            sizes: (vocab,) bytes that each token spells.
            start: the id that begins a document.
        """
        self.model = model
        self.blocks = [torch.from_numpy(b) for b in blocks]
        self.hidden = [self._hidden(model, b) for b in self.blocks]
        targets = torch.cat([b[:, 1:].flatten() for b in self.blocks]).numpy()
        # The text opens with a start id that is no target; what follows it is document 0.
        self.owner = np.cumsum(targets == start)
        self.count = int(self.owner[-1]) + 1
        self.tokens = self._by_document(np.ones(len(targets)))
        self.bytes = self._by_document(sizes[targets].astype(np.float64))
        self.loss = self._by_document(
            np.concatenate(
                [
                    _losses(_logs(model, x), y).numpy()
                    for block, h in zip(self.blocks, self.hidden, strict=True)
                    for x, y in _chunks(h, block)
                ]
            )
        )

    @property
    def bpb(self) -> float:
        """Bits per byte of the float model."""
        return float(self.loss.sum() / (math.log(2) * self.bytes.sum()))

    @torch.no_grad()
    def cost(self, after: Model) -> Cost:
        """What ``after`` loses against the float model."""
        losses, divergences = [], []
        for block, hidden in zip(self.blocks, self.hidden, strict=True):
            second = self._hidden(after, block)
            pairs = zip(_chunks(hidden, block), _chunks(second, block), strict=True)
            for (x, targets), (y, _) in pairs:
                p, q = _logs(self.model, x), _logs(after, y)
                losses.append(_losses(q, targets).numpy())
                divergences.append((p.exp() * (p - q)).sum(1).numpy())
        loss = self._by_document(np.concatenate(losses)) - self.loss
        return Cost(loss, self._by_document(np.concatenate(divergences)))

    def divergence(self, cost: Cost) -> Ratio:
        """KL(float || quantized) in nats per token."""
        return ratio(cost.divergence, self.tokens)

    def gap(self, cost: Cost) -> Ratio:
        """Bits per byte that quantization adds."""
        return ratio(cost.loss, math.log(2) * self.bytes)

    def _by_document(self, values: NDArray[np.float64]) -> Sums:
        return np.bincount(self.owner, values, self.count).astype(np.float64)

    @staticmethod
    @torch.no_grad()
    def _hidden(model: Model, block: Tensor) -> Tensor:
        return model.hidden(block[:, :-1]).x.flatten(0, 1)


def _chunks(hidden: Tensor, block: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    targets = block[:, 1:].flatten()
    return zip(torch.split(hidden, _POSITIONS), torch.split(targets, _POSITIONS), strict=True)


@torch.no_grad()
def _logs(model: Model, hidden: Tensor) -> Tensor:
    return model.logits(hidden).double().log_softmax(-1)


def _losses(logs: Tensor, targets: Tensor) -> Tensor:
    return -logs.gather(1, targets[:, None])[:, 0]
