"""The model: embed, visit layers along the route, predict."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segpt.config.model import ModelSpec, narrower
from segpt.kernels.cross_entropy import Readout

from .embed import Backward
from .head import Head
from .leaves import Table
from .stream import Cache, Overlap, Past, Stream


def _passing(x: Tensor, entry: Tensor) -> Tensor:
    """``x``, whose gradient goes to ``entry`` as it is."""
    return x.detach() + (entry - entry.detach())


class Model(nn.Module):
    """Token logits. ``progress`` (1 after training) and ``loops`` decide which visits run."""

    def __init__(
        self,
        spec: ModelSpec,
        layers: Sequence[nn.Module],
        visits: Sequence[Sequence[nn.Module]],
        head: Head,
        embed: Sequence[nn.Module],
        value_tables: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.spec = spec
        self.table = Table(spec.vocab, spec.width)
        self.embed = nn.ModuleList(embed)
        self.value_tables = nn.ModuleList(value_tables)
        self.layers = nn.ModuleList(layers)
        self.visits = nn.ModuleList(nn.ModuleList(parts) for parts in visits)
        self.head = head
        self.recompute = 0  # how many visits backward computes again, or -1 for all
        self.watch: Callable[[Tensor], None] | None = None  # sees the input of every visit
        self.at(1.0)

    def at(self, progress: float, loops: int | None = None, back: int | None = None) -> "Model":
        """Run only the visits that have joined at this fraction of training, as wide as they are.

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
        self.windows = self.spec.windows(progress)
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
        attention a token runs once for all windows, if :attr:`own` says how many of each window
        depend on where it begins.
        """
        if overlap is None:
            positions = torch.arange(start, start + tokens.size(1), device=tokens.device)
        else:
            positions = overlap.positions
        x = self.table(tokens)
        stream = Stream(tokens, positions, x0=x, overlap=overlap, start=self.spec.start)
        stream.documents = stream.rows(stream.opens).cumsum(1) if self.spec.documents else None
        stream.value_tables = tuple(self.value_tables)
        x = stream.x0 = self._embed(x, stream, cache)
        entry, lane = x, stream.lane
        for place, index in enumerate(self.active):
            stream.last = last if place == len(self.active) - 1 else None
            stream.window = narrower(window, self.windows[index])
            stream.merges = self._merges(place)
            stream.past = None if cache is None else cache.setdefault(place, Past())
            if place == self.fixed.start:
                entry, lane = x, stream.lane
            if self.watch is not None:
                self.watch(x)
            if place in self.fixed:
                with torch.no_grad():
                    x = self._visit(index, x, stream)
            elif self._forgets(place) and cache is None and torch.is_grad_enabled():
                x = self._visit_twice(index, x, stream)
            else:
                x = self._visit(index, x, stream)
            if place == self.fixed.stop - 1:
                x = _passing(x, entry)
                if stream.lane is not None:
                    stream.lane = _passing(stream.lane, entry if lane is None else lane)
        return self.head.normalise(stream.read(x) if stream.overlap is not None else x)

    @property
    def own(self) -> int | None:
        """How many tokens of a window depend on where it begins, before the first attention.

        Each part that looks at the token before adds one; None is all of them.
        """
        layers = [self.spec.layers[self.spec.visits[index].layer] for index in self.active]
        until = next((i for i, layer in enumerate(layers) if layer.mixer), len(layers) - 1)
        if any(layer.feed is not None and layer.feed.fast for layer in layers[: until + 1]):
            return None
        return sum(isinstance(part, Backward) for part in self.embed)

    def _merges(self, place: int) -> bool:
        """Whether the visit that runs there is not followed by one with two lanes."""
        after = self.active[place + 1 : place + 2]
        return all(self.spec.layers[self.spec.visits[i].layer].lanes is None for i in after)

    def _embed(self, x: Tensor, stream: Stream, cache: Cache | None) -> Tensor:
        for j, part in enumerate(self.embed):
            if cache is not None and isinstance(part, Backward):
                stream.past = cache.setdefault(-1 - j, Past())
            x = part(x, stream)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return x

    def _forgets(self, place: int) -> bool:
        return self.recompute < 0 or place < self.recompute

    def _visit_twice(self, index: int, x: Tensor, stream: Stream) -> Tensor:
        """A visit that backward computes again, from the stream as it is now."""
        before, first = stream.copy(), [stream]

        def visit(x: Tensor) -> Tensor:
            return self._visit(index, x, first.pop() if first else before.copy())

        found: Tensor = checkpoint(visit, x, use_reentrant=False)
        return found

    def _visit(self, index: int, x: Tensor, stream: Stream) -> Tensor:
        visit = self.spec.visits[index]
        stream.norm_scale, stream.gain, stream.blend = visit.norm_scale, None, None
        if stream.lane is None and self.spec.layers[visit.layer].lanes is not None:
            stream.lane = x
        for part in cast("nn.ModuleList", self.visits[index]):
            x = part(x, stream)
        x = self.layers[visit.layer](x, stream)
        stream.visits[index] = x
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Float32 logits (..., vocab) from the final normalised stream (..., width)."""
        return self.head(x, self.table)

    def readout(self) -> Readout:
        """How logits come of the final normalised stream, for operations that never hold all."""
        return Readout(self.logits, self.spec.vocab, self.head.linear_form(self.table))
