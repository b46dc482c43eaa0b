"""Low-rank adapters that each document trains for itself, and base weights that learn in phases."""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.config.layout import Role
from segpt.config.score import LowRank, Phased, Sgd
from segpt.errors import ScoreError
from segpt.kernels import token_nats
from segpt.model.model import Model
from segpt.model.params import LowRankProduct, Matrix, Param, PlainProduct, weights
from segpt.values import Arrays

from .learners import Chunk, SgdLearner
from .schedule import BASE
from .surprisal import pieces


class Factors(NamedTuple):
    """Two thin matrices for each segment.

    They are ``down`` (segments, rank, in) and ``up`` (segments, out, rank).
    """

    down: Tensor
    up: Tensor


@dataclass
class Adapter:
    """In the place of a weight W of (out, in) stands W + scale up[segment] @ down[segment].

    ``first``, (rank, in), is where every segment's ``down`` begins; its ``up`` begins at zero, so
    that a segment begins as the model itself. ``moments`` are Adam's: mean and mean square of the
    gradients of ``down``, then of ``up``.
    """

    param: Param
    first: Tensor
    factors: Factors
    moments: list[Tensor]


class LoraLearner:
    """Adapters for each segment beside a float32 copy of the model, which stays as it is.

    A segment is a document. After each chunk its adapters take AdamW steps (arXiv 1711.05101) on
    the mean loss of the chunk, which is read after what came before it in the document, as far as
    the context goes back. Segments share nothing, so that it does not matter which of them are
    side by side.
    """

    def __init__(self, model: Model, policy: LowRank, context: int) -> None:
        """Copy ``model``, whose copy is then ``self.model``.

        Raises:
            ScoreError: if the model has no matrix of the roles that the policy adapts.
        """
        self.policy, self.context = policy, context
        self.model = copy.deepcopy(model).float().requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        self._adapters = [self._adapter(param, generator) for param in _adapted(self.model, policy)]
        if not self._adapters:
            raise ScoreError(
                f"the model has no matrices of role {', '.join(policy.roles)} to adapt; name "
                "others in adapt.roles"
            )
        self._attach()
        self._segments = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._past: dict[int, NDArray[np.uint32]] = {}
        self._steps = 0

    @property
    def _device(self) -> torch.device:
        return self.model.table.weight.device

    def open(self, segments: int) -> None:
        """So many documents begin, with fresh adapters."""
        for adapter in self._adapters:
            down = adapter.first.expand(segments, -1, -1).clone()
            up = down.new_zeros(segments, *adapter.factors.up.shape[1:])
            adapter.factors = Factors(down, up)
            adapter.moments = [torch.zeros_like(t) for t in (down, down, up, up)]
        self._past, self._steps = {}, 0

    def select(self, segments: NDArray[np.int64]) -> None:
        """The next forward pass has one row for each of ``segments`` (rows,)."""
        self._segments = torch.from_numpy(segments).to(self._device)

    def learn(self, chunks: Sequence[Chunk]) -> None:
        """Take the steps of every segment that has a chunk, all segments at once.

        A row of the batch is what a segment keeps of its past, then the chunk:

            | past, at most context - chunk tokens | t0 t1 ... tn |    only t1 to tn are targets
        """
        segments = np.array([chunk.segment for chunk in chunks])
        rows, sizes = [], []
        for segment, tokens, _ in chunks:
            before = self._past.get(segment, tokens[:0])
            rows.append(np.concatenate([before, tokens]))
            sizes.append(len(tokens) - 1)
            kept = max(0, self.context - self.policy.chunk)
            self._past[segment] = rows[-1][max(0, len(rows[-1]) - 1 - kept) : -1]
        padded, scored = _padded(rows, sizes)
        self.select(segments)
        unscored = (len(row) - 1 - size for row, size in zip(rows, sizes, strict=True))
        last = scored.size(1) - min(unscored)
        padded, scored = padded.to(self._device), scored.to(self._device)
        for _ in range(self.policy.steps):
            self._steps += 1
            self._step(padded, scored, last)

    def tensors(self) -> Iterable[Tensor]:
        """The weights and the adapters, of any shape."""
        own = [tensor for adapter in self._adapters for tensor in adapter.factors]
        return [weight.tensor for weight in weights(self.model)] + own

    def state(self) -> dict[str, NDArray[Any]]:
        """Named arrays: adapters, their moments, the tokens that the next chunk is read after."""
        arrays = {"steps": np.array(self._steps)}
        arrays |= {f"past|{segment}": past for segment, past in self._past.items()}
        for i, adapter in enumerate(self._adapters):
            parts = [*adapter.factors, *adapter.moments]
            arrays |= {f"{i}|{j}": part.cpu().numpy().copy() for j, part in enumerate(parts)}
        return arrays

    def restore(self, state: Arrays) -> None:
        """Go back to where these named arrays were taken."""
        self._steps = int(state["steps"])
        prefix = "past|"
        self._past = {
            int(name.removeprefix(prefix)): np.array(array, np.uint32)
            for name, array in state.items()
            if name.startswith(prefix)
        }
        for i, adapter in enumerate(self._adapters):
            down, up = (tuple(part.shape[1:]) for part in adapter.factors)
            for j, shape in enumerate((down, up, down, down, up, up)):
                if (array := state[f"{i}|{j}"]).shape[1:] != shape or array.dtype != np.float32:
                    raise ValueError(f"an adapter of shape {array.shape}")
            parts = [
                torch.from_numpy(np.array(state[f"{i}|{j}"])).to(self._device) for j in range(6)
            ]
            adapter.factors, adapter.moments = Factors(*parts[:2]), parts[2:]

    def _adapter(self, param: Param, generator: torch.Generator) -> Adapter:
        rows, columns = param.weight.shape
        bound = 1 / math.sqrt(columns)
        first = (2 * torch.rand(self.policy.rank, columns, generator=generator) - 1) * bound
        first = first.to(param.weight.device)
        up = first.new_zeros(1, rows, self.policy.rank)
        return Adapter(param, first, Factors(first[None], up), [])

    def _attach(self) -> None:
        """Let the model read its weights through the adapters."""
        for adapter in self._adapters:
            adapter.param.product = self._product(adapter)

    def _product(self, adapter: Adapter) -> LowRankProduct:
        scale = self.policy.alpha / self.policy.rank

        def of_selected() -> tuple[Tensor, Tensor]:
            down, up = adapter.factors
            return down[self._segments], scale * up[self._segments]

        return LowRankProduct(of_selected)

    @contextmanager
    def _detached(self) -> Iterator[None]:
        """Within, the model is that of the base weights alone, and a copy of it has no adapters."""
        for adapter in self._adapters:
            adapter.param.product = PlainProduct()
        try:
            yield
        finally:
            self._attach()

    @contextmanager
    def _using(self, factors: Sequence[Factors]) -> Iterator[None]:
        """Within, row i of a batch is adapted by entry i of ``factors``, not by its segment."""
        segments, own = self._segments, [adapter.factors for adapter in self._adapters]
        self._segments = torch.arange(len(segments), device=segments.device)
        for adapter, rows in zip(self._adapters, factors, strict=True):
            adapter.factors = rows
        try:
            yield
        finally:
            self._segments = segments
            for adapter, of_lanes in zip(self._adapters, own, strict=True):
                adapter.factors = of_lanes

    def _step(self, tokens: Tensor, scored: Tensor, last: int) -> None:
        """An AdamW step of the selected segments, each on the mean loss of its own row.

        The gradient is taken at copies of the factors of these segments, (rows, ...), and then goes
        into the factors of all segments. The losses of rows are summed, and as a factor is part of
        one of them only, its gradient is that of its own loss.

        Args:
            tokens: (rows, longest + 1), a row for each selected segment.
            scored: (rows, longest), which targets of a row count.
            last: how many columns at the end hold all that count.
        """
        rows = [
            Factors(*(tensor[self._segments].requires_grad_() for tensor in adapter.factors))
            for adapter in self._adapters
        ]
        with self._using(rows), torch.enable_grad():
            variables = [tensor for factors in rows for tensor in factors]
            gradients = torch.autograd.grad(self._loss(tokens, scored, last), variables)
        for adapter, down, up in zip(self._adapters, gradients[::2], gradients[1::2], strict=True):
            self._adam(adapter.factors.down, adapter.moments[:2], down)
            self._adam(adapter.factors.up, adapter.moments[2:], up)

    def _loss(self, tokens: Tensor, scored: Tensor, last: int) -> Tensor:
        """The mean nats of each row's scored targets, summed over rows: a number, ().

        ``tokens`` is (rows, longest + 1) and ``scored`` (rows, longest). Before the first column
        that counts in some row no logits are needed; of the others, few are there at a time.
        """
        rows = self._segments
        hidden = self.model.hidden(tokens[:, :-1], last=last).x  # (rows, last, width)
        targets, weight = tokens[:, -last:], scored / scored.sum(1, keepdim=True)
        losses = []
        for part in pieces(*targets.shape):
            self._segments = rows[part[0]]  # whose factors a tied head is adapted by
            nats = token_nats(hidden[part], self.model.readout(), targets[part])
            losses.append((nats * weight[:, -last:][part]).flatten().sum())
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _adam(self, tensor: Tensor, moments: Sequence[Tensor], gradient: Tensor) -> None:
        """AdamW on selected segments of a factor (segments, ...); the gradient: (rows, ...)."""
        policy, segments, steps = self.policy, self._segments, self._steps
        mean = moments[0][segments].lerp_(gradient, 1 - policy.beta1)
        square = moments[1][segments].lerp_(gradient.square(), 1 - policy.beta2)
        moments[0][segments], moments[1][segments] = mean, square
        mean, square = mean / (1 - policy.beta1**steps), square / (1 - policy.beta2**steps)
        kept = tensor[segments] * (1 - policy.rate * policy.decay)
        tensor[segments] = kept - policy.rate * mean / (square.sqrt() + 1e-10)


class PhasedLearner(LoraLearner):
    """Adapters for each document over base weights that review all documents at intervals."""

    def __init__(self, model: Model, policy: Phased, context: int) -> None:
        """Copy ``model``, whose copy is then ``self.model``.

        Raises:
            ScoreError: if the model has no matrix of the roles that the policy adapts.
        """
        super().__init__(model, policy.adapters, context)
        self._phased = policy
        self._base = [weight.tensor for weight in weights(self.model)]

    def learn(self, chunks: Sequence[Chunk]) -> None:
        own = [chunk for chunk in chunks if chunk.segment != BASE]
        if own:
            super().learn(own)
        for chunk in chunks:
            if chunk.segment == BASE:
                self._review(chunk.tokens)

    def state(self) -> dict[str, NDArray[Any]]:
        """Those of the adapters and the base weights, as named arrays."""
        base = {f"base|{i}": t.cpu().numpy().copy() for i, t in enumerate(self._base)}
        return super().state() | base

    def restore(self, state: Arrays) -> None:
        """Go back to where these named arrays were taken."""
        super().restore(state)
        for i, tensor in enumerate(self._base):
            tensor.copy_(torch.from_numpy(np.array(state[f"base|{i}"])))

    def _review(self, tokens: NDArray[np.uint32]) -> None:
        """Let the base weights take one pass of SGD over a stream, chunk after chunk.

        In chunk i of n the rate is rate (1 + cos(pi i / n)) / 2. The momentum begins at zero.
        """
        policy = self._phased
        settings = Sgd(
            chunk=policy.chunk,
            rate=policy.rate,
            momentum=policy.momentum,
            clip=policy.clip,
            batch=max(1, policy.chunk // self.context),
            anneal="cosine",
        )
        with self._detached():
            base = SgdLearner(self.model, settings, self.context)
        starts = range(0, len(tokens) - 1, policy.chunk)
        for i, start in enumerate(starts):
            part = tokens[start : start + policy.chunk + 1]
            base.learn([Chunk(BASE, part, i / len(starts))])
        with torch.no_grad():
            for tensor, learnt in zip(self._base, weights(base.model), strict=True):
                tensor.copy_(learnt.tensor)


def _adapted(model: Model, policy: LowRank) -> list[Param]:
    """The params of the chosen roles; the table is the head of a model that ties them."""
    params = [weight.param for weight in weights(model)]
    adapted: list[Param] = []
    if "matrix" in policy.roles:
        adapted += [
            param for param in params if isinstance(param, Matrix) and param.role is Role.MATRIX
        ]
    if "head" in policy.roles:
        adapted += [param for param in params if param.role is Role.HEAD] or [model.table]
    return adapted


def _padded(rows: Sequence[NDArray[np.uint32]], sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Tokens (rows, longest + 1), and which of their targets count: the last of each row."""
    longest = max(map(len, rows))
    tokens = np.zeros((len(rows), longest), np.int64)
    scored = np.zeros((len(rows), longest - 1), np.bool_)
    for i, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        tokens[i, : len(row)] = row
        scored[i, len(row) - 1 - size : len(row) - 1] = True
    return torch.from_numpy(tokens), torch.from_numpy(scored)
