"""The model: embed, visit layers along the route, predict."""

import dataclasses
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segpt.config.model import ModelSpec
from segpt.config.window import narrower
from segpt.errors import DataError
from segpt.kernels import precision
from segpt.kernels.cross_entropy import Readout

from .cache import KVCache, LayerCache
from .embed import Backward
from .head import Head
from .overlap import Overlap
from .params import Table
from .state import ForwardState, Hidden, Memory, Outputs, PassInputs, VisitState
from .statistics import kurtosis


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
        self.set_progress(1.0)

    def set_progress(
        self, progress: float, loops: int | None = None, back: int | None = None
    ) -> "Model":
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
        self.no_grad_visits = range(0)
        if loops is not None and back is not None:
            early = [i for visits in self.spec.passes(loops, progress)[:-back] for i in visits]
            begin = self.active.index(early[0]) if early else 0
            self.no_grad_visits = range(begin, begin + len(early))
        return self

    def loops(self, count: int | None) -> "Model":
        """Run the loop of the route ``count`` times, or as often as it says if that is None.

        Raises:
            SpecError: if the route has no loop, or ``count`` is out of range.
        """
        return self.set_progress(self.progress, count)

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        start: int = 0,
        last: int | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Logits (batch, time, vocab) of the token after each of ``tokens`` (batch, time).

        Args:
            tokens: token ids.
            cache: what earlier calls have seen, a :class:`.cache.LayerCache` for each visit that
                runs; extended in place.
            start: the position of the first token, that is, how many the cache holds.
            last: if given, only the logits of the last so many positions are computed.
            window: if given, attention sees so many positions at most, the own one and those
                just before it, and the cache keeps no more than later tokens can see.
        """
        return self.logits(self.hidden(tokens, cache, start, last, window).x)

    def hidden(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        start: int = 0,
        last: int | None = None,
        window: int | None = None,
        overlap: Overlap | None = None,
        *,
        statistics: bool = False,
    ) -> Hidden:
        """The final normalised stream (batch, time, width), or its ``last`` positions.

        Before the last visit every position matters to later ones; in it, only those that are
        asked for run beyond the keys and values of the mixer.

        With ``overlap``, ``tokens`` is one row and the batch is the windows in it. Up to the first
        attention a token runs once for all windows, if :attr:`private_prefix` says how many of
        each window depend on where it begins.

        With ``statistics`` the outputs hold the kurtosis of what enters each visit.
        """
        arguments = (tokens, cache, start, last, window, overlap, statistics)
        if precision.computed() == "float32":  # or what an autocast around it says
            return self._hidden(*arguments)
        with torch.autocast(tokens.device.type, torch.bfloat16, cache_enabled=False):
            return self._hidden(*arguments)

    def _hidden(
        self,
        tokens: Tensor,
        cache: KVCache | None,
        start: int,
        last: int | None,
        window: int | None,
        overlap: Overlap | None,
        statistics: bool,
    ) -> Hidden:
        """What :meth:`hidden` gives for tokens (batch, time)."""
        state = self._begin(tokens, start, overlap)
        x = state.memory.x0 = self._embed(state, cache)
        watched: list[Tensor] = []
        loop_entry = x, state.memory.lane
        for place, index in enumerate(self.active):
            state.visit = VisitState(
                cache=None if cache is None else cache.setdefault(place, LayerCache()),
                last=last if place == len(self.active) - 1 else None,
                window=narrower(window, self.windows[index]),
                lanes_end_here=self._lanes_end(place),
            )
            if place == self.no_grad_visits.start:
                loop_entry = x, state.memory.lane
            if statistics:
                watched.append(kurtosis(x))
            if place in self.no_grad_visits:
                with torch.no_grad():
                    x = self._visit(index, x, state)
            elif self._is_recomputed(place) and cache is None and torch.is_grad_enabled():
                x = self._visit_checkpointed(index, x, state)
            else:
                x = self._visit(index, x, state)
            if place == self.no_grad_visits.stop - 1:
                x = self._straight_through(x, *loop_entry, state.memory)
        x = self.head.normalise(state.read(x) if state.inputs.overlap is not None else x)
        outputs = Outputs({}, {"kurtosis": torch.stack(watched)} if statistics else {})
        return Hidden(x, outputs)

    def _begin(self, tokens: Tensor, start: int, overlap: Overlap | None) -> ForwardState:
        """The state before the embedding: rows of the table, and what they are rows of."""
        if overlap is None:
            self._check_positions(start + tokens.size(1))
            positions = torch.arange(start, start + tokens.size(1), device=tokens.device)
        else:
            positions = overlap.positions
        inputs = PassInputs(
            tokens, positions, overlap, self.spec.start, value_tables=tuple(self.value_tables)
        )
        if self.spec.documents:
            documents = inputs.rows(inputs.opens).cumsum(1)
            inputs = dataclasses.replace(inputs, documents=documents)
        return ForwardState(inputs, Memory(x0=self.table(tokens)), VisitState())

    def _check_positions(self, end: int) -> None:
        count = self.spec.positions
        if count is not None and end > count:
            raise DataError(
                f"the model has learned {count} positions, and this text reaches position {end}; "
                "keep what it reads and writes at once to so many tokens"
            )

    @staticmethod
    def _straight_through(x: Tensor, entry: Tensor, lane: Tensor | None, memory: Memory) -> Tensor:
        """The stream after passes of a loop through which no gradient flows.

        The gradient of what they give is handed to what they were given as it is, so that the
        layers before the loop learn as if these passes were not there.
        """
        if memory.lane is not None:
            memory.lane = _passing(memory.lane, entry if lane is None else lane)
        return _passing(x, entry)

    @property
    def private_prefix(self) -> int | None:
        """How many tokens of a window depend on where it begins, before the first attention.

        Each part that looks at the token before adds one; None is all of them, as with learned
        positions, which are counted from there.
        """
        if self.spec.positions is not None:
            return None
        layers = [self.spec.layers[self.spec.visits[index].layer] for index in self.active]
        until = next((i for i, layer in enumerate(layers) if layer.mixer), len(layers) - 1)
        if any(layer.feed is not None and layer.feed.fast for layer in layers[: until + 1]):
            return None
        return sum(isinstance(part, Backward) for part in self.embed)

    def _lanes_end(self, place: int) -> bool:
        """Whether no visit with two lanes follows the one that runs there."""
        after = self.active[place + 1 : place + 2]
        return all(self.spec.layers[self.spec.visits[i].layer].lanes is None for i in after)

    def _embed(self, state: ForwardState, cache: KVCache | None) -> Tensor:
        """What tokens start as, (batch, time, width)."""
        x = state.memory.x0
        for j, part in enumerate(self.embed):
            if cache is not None and isinstance(part, Backward):
                state.visit.cache = cache.setdefault(-1 - j, LayerCache())
            x = part(x, state)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return x

    def _is_recomputed(self, place: int) -> bool:
        return self.recompute < 0 or place < self.recompute

    def _visit_checkpointed(self, index: int, x: Tensor, state: ForwardState) -> Tensor:
        """A visit that backward computes again, from the state as it is now."""
        before, first_run = state.copy(), [state]

        def visit(x: Tensor) -> Tensor:
            return self._visit(index, x, first_run.pop() if first_run else before.copy())

        y: Tensor = checkpoint(visit, x, use_reentrant=False)
        return y

    def _visit(self, index: int, x: Tensor, state: ForwardState) -> Tensor:
        """Join parts, then the layer: (batch, time, width) to (batch, time or last, width)."""
        visit = self.spec.visits[index]
        state.visit.norm_scale, state.visit.gain, state.visit.blend = visit.norm_scale, None, None
        if state.memory.lane is None and self.spec.layers[visit.layer].lanes is not None:
            state.memory.lane = x
        for part in cast("nn.ModuleList", self.visits[index]):
            x = part(x, state)
        x = self.layers[visit.layer](x, state)
        state.memory.visits[index] = x
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Float32 logits (..., vocab) from the final normalised stream (..., width)."""
        return self.head(x, self.table)

    def readout(self) -> Readout:
        """How logits come of the final normalised stream, for operations that never hold all."""
        return Readout(self.logits, self.spec.vocab, self.head.linear_form(self.table))
