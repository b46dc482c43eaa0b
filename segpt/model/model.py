"""The model: embed, visit layers along the route, predict."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segpt.spec.model import ModelSpec

from .leaves import Matrix, Table
from .parts import rms
from .stream import Cache, Past, Stream


class Head(nn.Module):
    """Float32 logits, soft-capped if the spec says so, from the final normalised stream."""

    def __init__(self, softcap: float | None, matrix: Matrix | None) -> None:
        super().__init__()
        self.softcap, self.matrix = softcap, matrix

    def forward(self, x: Tensor, table: Table) -> Tensor:
        if self.matrix is not None:
            logits = self.matrix(x).float()
        else:
            logits = F.linear(x, table.used().to(x.dtype)).float()
        if self.softcap is None:
            return logits
        return self.softcap * torch.tanh(logits / self.softcap)


class Model(nn.Module):
    """Token logits. ``progress`` (1 after training) decides which visits run."""

    def __init__(
        self,
        spec: ModelSpec,
        layers: Sequence[nn.Module],
        visits: Sequence[Sequence[nn.Module]],
        head: Head,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.table = Table(spec.vocab, spec.width)
        self.layers = nn.ModuleList(layers)
        self.visits = nn.ModuleList(nn.ModuleList(parts) for parts in visits)
        self.head = head
        self.active = spec.active(1.0)

    def at(self, progress: float) -> "Model":
        """Run only the visits that have joined at this fraction of training."""
        self.active = self.spec.active(progress)
        return self

    def forward(
        self, tokens: Tensor, cache: Cache | None = None, start: int = 0, last: int | None = None
    ) -> Tensor:
        """Logits (batch, time, vocab) of the token after each of ``tokens`` (batch, time).

        Args:
            tokens: token ids.
            cache: what earlier calls have seen, one :class:`Past` per visit; extended in place.
            start: the position of the first token, that is, how many the cache holds.
            last: if given, only the logits of the last so many positions are computed.
        """
        return self.logits(self.hidden(tokens, cache, start, last))

    def hidden(
        self, tokens: Tensor, cache: Cache | None = None, start: int = 0, last: int | None = None
    ) -> Tensor:
        """The final normalised stream (batch, time, width), or its ``last`` positions.

        Before the last visit every position matters to later ones; in it, only those that are
        asked for run beyond the keys and values of the mixer.
        """
        x = rms(self.table(tokens))
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        positions = torch.arange(start, start + tokens.size(1), device=tokens.device)
        stream = Stream(tokens, positions, x0=x)
        for index in self.active:
            for part in cast("nn.ModuleList", self.visits[index]):
                x = part(x, stream)
            stream.last = last if index == self.active[-1] else None
            stream.past = None if cache is None else cache.setdefault(index, Past())
            x = self.layers[self.spec.visits[index].layer](x, stream)
            stream.visits[index] = x
        return rms(x)

    def logits(self, x: Tensor) -> Tensor:
        """Float32 logits from the final normalised stream."""
        return self.head(x, self.table)
