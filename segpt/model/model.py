"""The model: embed, visit layers along the route, predict."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from segpt.spec.model import ModelSpec

from .leaves import Matrix, Table, project
from .parts import rms
from .stream import Cache, Overlap, Past, Stream


class Head(nn.Module):
    """Float32 logits, soft-capped if the spec says so, from the final normalised stream."""

    def __init__(self, softcap: float | None, matrix: Matrix | None) -> None:
        super().__init__()
        self.softcap, self.matrix = softcap, matrix

    def forward(self, x: Tensor, table: Table) -> Tensor:
        if self.matrix is not None:
            logits = self.matrix(x).float()
        else:
            logits = project(x, table.used()).float()
        if self.softcap is None:
            return logits
        return self.softcap * torch.tanh(logits / self.softcap)


class Model(nn.Module):
    """Token logits. ``progress`` (1 after training) and ``loops`` decide which visits run."""

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
        self.at(1.0)

    def at(self, progress: float, loops: int | None = None, back: int | None = None) -> "Model":
        """Run only the visits that have joined at this fraction of training.

        Args:
            progress: the fraction of training.
            loops: how often the loop of the route runs; None is as often as the route says.
            back: through how many of these passes, the last ones, gradients flow; None is all.
                Earlier ones hand the gradient of their output to their input as it is.

        Raises:
            SpecError: if ``loops`` is given and the route has no loop, or it is out of range.
        """
        self.progress = progress
        self.active = (
            self.spec.active(progress) if loops is None else self.spec.looped(loops, progress)
        )
        self.fixed = range(0)
        if loops is not None and back is not None:
            early = [i for visits in self.spec.passes(loops, progress)[:-back] for i in visits]
            begin = self.active.index(early[0]) if early else 0
            self.fixed = range(begin, begin + len(early))
        return self

    def loops(self, count: int | None) -> "Model":
        """Run the loop of the route ``count`` times, or as often as it says if that is None.

        Raises:
            SpecError: if the route has no loop, or ``count`` is out of range.
        """
        return self.at(self.progress, count)

    def forward(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        start: int = 0,
        last: int | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Logits (batch, time, vocab) of the token after each of ``tokens`` (batch, time).

        Args:
            tokens: token ids.
            cache: what earlier calls have seen, one :class:`Past` for each visit that runs;
                extended in place.
            start: the position of the first token, that is, how many the cache holds.
            last: if given, only the logits of the last so many positions are computed.
            window: if given, attention sees so many positions at most, the own one and those
                just before it, and the cache keeps no more than later tokens can see.
        """
        return self.logits(self.hidden(tokens, cache, start, last, window))

    def hidden(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        start: int = 0,
        last: int | None = None,
        window: int | None = None,
        overlap: Overlap | None = None,
    ) -> Tensor:
        """The final normalised stream (batch, time, width), or its ``last`` positions.

        Before the last visit every position matters to later ones; in it, only those that are
        asked for run beyond the keys and values of the mixer.

        With ``overlap``, ``tokens`` is one row and the batch is the windows in it. Up to the first
        attention a token depends on nothing else, so until then it runs once for all of them;
        :attr:`alone` says whether that is so.
        """
        x = rms(self.table(tokens))
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if overlap is None:
            positions = torch.arange(start, start + tokens.size(1), device=tokens.device)
        else:
            positions = overlap.positions
        stream = Stream(tokens, positions, x0=x, window=window, overlap=overlap)
        entry = x
        for place, index in enumerate(self.active):
            stream.last = last if place == len(self.active) - 1 else None
            stream.past = None if cache is None else cache.setdefault(place, Past())
            if place == self.fixed.start:
                entry = x
            if place in self.fixed:
                with torch.no_grad():
                    x = self._visit(index, x, stream)
            else:
                x = self._visit(index, x, stream)
            if place == self.fixed.stop - 1:
                x = x.detach() + (entry - entry.detach())
        return rms(stream.read(x) if stream.overlap is not None else x)

    @property
    def alone(self) -> bool:
        """Whether a token depends on no other one up to the first attention that runs."""
        layers = [self.spec.layers[self.spec.visits[index].layer] for index in self.active]
        until = next((i for i, layer in enumerate(layers) if layer.mixer), len(layers) - 1)
        return all(layer.feed is None or layer.feed.fast is None for layer in layers[: until + 1])

    def _visit(self, index: int, x: Tensor, stream: Stream) -> Tensor:
        for part in cast("nn.ModuleList", self.visits[index]):
            x = part(x, stream)
        x = self.layers[self.spec.visits[index].layer](x, stream)
        stream.visits[index] = x
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Float32 logits from the final normalised stream."""
        return self.head(x, self.table)
