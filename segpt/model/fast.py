"""Fast weights: matrices that learn from every chunk they have read (arXiv 2604.06169)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segpt.config import layer as spec

from .params import Matrix, Vector
from .state import ForwardState

_SPREAD = 0.02  # of the projection's diagonal at the start


class FastWeight(nn.Module):
    """y + dW z, dW summing V^T Z over earlier chunks: see :class:`segpt.config.layer.FastWeight`.

    V^T Z is the gradient of the inner product of V with the outputs for Z, so that each update is
    a step towards V as the answer to Z. A chunk is answered by the chunks before it, and nothing
    is learned from one before all of it has been read. No update depends on outputs, so all chunks
    are computed at once: as attention among the chunks of a span, which makes no dW at all, and
    by dW from one span to the next.
    """

    def __init__(self, s: spec.FastWeight, hidden: int, width: int) -> None:
        super().__init__()
        self.chunk, self.source, self.clip = s.chunk, s.source, s.clip
        self.spec_rate = self.rate = s.rate
        self.taps = Vector(s.taps, width)
        self.projection = Matrix(width, width, diagonal=_SPREAD) if s.projection else None
        # As many positions as take the memory of one dW.
        self.span = s.chunk * max(1, hidden * width // (hidden + width) // s.chunk)

    def forward(self, y: Tensor, hidden: Tensor, x: Tensor, state: ForwardState) -> Tensor:
        """The outputs of the changed matrix.

        Args:
            y: (batch, time, out), the outputs of the matrix as it is.
            hidden: (batch, time, in), its inputs.
            x: (batch, time, out), the inputs of the feed.
            state: the cache of its visit goes on from earlier calls, whatever their sizes.
        """
        if self.rate == 0:
            return y
        source = state.memory.x0 if self.source == "table" else x
        cache, time = state.visit.cache, y.size(1)
        if cache is None:
            # No later call will need what the last chunk has to teach.
            end = (time - 1) // self.chunk * self.chunk
            targets = self.targets(source[:, :end], hidden[:, :end])
            return y + self.answer(hidden, targets, None, time, learn=False)[0].to(y.dtype)
        if cache.hidden is not None and cache.source is not None:
            hidden = torch.cat([cache.hidden, hidden], 1)
            source = torch.cat([cache.source, source], 1)
        end = hidden.size(1) // self.chunk * self.chunk
        targets = self.targets(source[:, :end], hidden[:, :end])
        outputs, cache.change = self.answer(hidden, targets, cache.change, time, learn=True)
        cache.hidden, cache.source = hidden[:, end:].clone(), source[:, end:].clone()
        return y + outputs.to(y.dtype)

    def targets(self, source: Tensor, hidden: Tensor) -> Tensor:
        """V of whole chunks, times the rate and clipped.

        Args:
            source: (batch, time, out).
            hidden: (batch, time, in), the inputs of the matrix.

        Returns:
            (batch, time, out).
        """
        if source.size(1) == 0:
            return source
        taps = self.taps(source)
        side = taps.size(0) // 2
        padded = F.pad(self._chunks(source), (0, 0, side, side))
        values = torch.zeros_like(padded[:, :, : self.chunk])
        for i, tap in enumerate(taps):
            values = values + tap * padded[:, :, i : i + self.chunk]
        values = values.flatten(1, 2)
        if self.projection is not None:
            values = self.projection(values)
        values = self.rate * values
        if self.clip is None:
            return values
        z, v = self._chunks(hidden).float(), self._chunks(values).float()
        energy = ((z @ z.mT) * (v @ v.mT)).sum((-2, -1), keepdim=True)  # |V^T Z|^2, chunk by chunk
        share = self.clip * energy.clamp_min(self.clip**2).rsqrt()
        return (share * v).flatten(1, 2).to(values.dtype)

    def _chunks(self, x: Tensor) -> Tensor:
        return x.reshape(x.size(0), -1, self.chunk, x.size(2))

    def answer(
        self,
        hidden: Tensor,
        targets: Tensor,
        change: Tensor | None,
        last: int,
        *,
        learn: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """What each of the ``last`` positions gets from the chunks before its own.

        Args:
            hidden: (batch, time, in), from where a chunk starts.
            targets: (batch, at most time, out), of :meth:`targets`.
            change: (batch, out, in), learned before that.
            last: how many positions at the end to answer.
            learn: whether the change after all targets is wanted.

        Returns:
            (batch, last, out), and that change.
        """
        time, first, answers = hidden.size(1), hidden.size(1) - last, []
        for start in range(0, time, self.span):
            stop = min(start + self.span, time)
            queries, values = hidden[:, max(start, first) : stop], targets[:, start:stop]
            keys = hidden[:, start : start + values.size(1)]
            outputs = queries.new_zeros(*queries.shape[:2], targets.size(2))
            if change is not None:
                outputs = queries @ change.mT.to(queries.dtype)
            if stop - start > self.chunk:
                chunks = torch.arange(start, stop, device=hidden.device) // self.chunk
                earlier = chunks[-queries.size(1) :, None] > chunks[: keys.size(1)]
                scores = (queries @ keys.mT).masked_fill(~earlier, 0)
                outputs = outputs + scores @ values
            if keys.size(1) and (learn or stop < time):
                update = (values.mT @ keys).float()
                change = update if change is None else change + update
            answers.append(outputs)
        return torch.cat(answers, 1), change


def fast_parts(model: nn.Module) -> list[FastWeight]:
    """The fast weights of a model, by layer; an empty list if it has none."""
    return [part for part in model.modules() if isinstance(part, FastWeight)]


def set_rate(model: nn.Module, rate: float | None) -> None:
    """Let fast weights learn at this rate from now on; None is that of the spec.

    At 0 they are as if they were not there.
    """
    for part in fast_parts(model):
        part.rate = part.spec_rate if rate is None else rate
