"""Low-rank adapters that each document trains for itself, and base weights that learn in phases."""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.config.layout import Role
from segpt.config.score import LowRank, Phased, Sgd
from segpt.errors import ScoreError
from segpt.kernels import token_nats
from segpt.model.leaves import Adapted, Leaf, Matrix, weights
from segpt.model.model import Model
from segpt.values import Arrays

from .learners import Chunk, Descend
from .schedule import BASE
from .surprisal import pieces


@dataclass
class Adapter:
    """W + scale * up down for each lane: ``down`` (lanes, rank, in), ``up`` (lanes, out, rank).

    ``first`` is where every lane's ``down`` begins; its ``up`` begins at zero, so that a lane
    begins as the model itself. ``moments`` are Adam's, of ``down`` and ``up``.
    """

    leaf: Leaf
    first: Tensor
    down: Tensor
    up: Tensor
    moments: list[Tensor]


class Adapt:
    """Adapters for each lane beside a float32 copy of the model, which stays as it is.

    A lane is a document. After each chunk its adapters take AdamW steps (arXiv 1711.05101) on the
    mean loss of the chunk, which is read after what came before it in the document, as far as
    the context goes back. Lanes share nothing, so that it does not matter which are side by side.
    """

    persists = False

    def __init__(self, model: Model, policy: LowRank, context: int) -> None:
        """Copy ``model``, whose copy is then ``self.model``.

        Raises:
            ScoreError: if the model has no matrix of the roles that the policy adapts.
        """
        self.policy, self.context = policy, context
        self.model = copy.deepcopy(model).float().requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        self._adapters = [self._adapter(leaf, generator) for leaf in _adapted(self.model, policy)]
        if not self._adapters:
            raise ScoreError(
                f"the model has no matrices of role {', '.join(policy.roles)} to adapt; name "
                "others in adapt.roles"
            )
        for adapter in self._adapters:
            adapter.leaf.view = self._view(adapter)
        self._lanes = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._past: dict[int, NDArray[np.uint32]] = {}
        self._steps = 0

    @property
    def _device(self) -> torch.device:
        return self.model.table.weight.device

    def open(self, lanes: int) -> None:
        """So many documents begin, with fresh adapters."""
        for adapter in self._adapters:
            adapter.down = adapter.first.expand(lanes, -1, -1).clone()
            adapter.up = adapter.up.new_zeros(lanes, *adapter.up.shape[1:])
            adapter.moments = [
                torch.zeros_like(t) for t in (adapter.down, adapter.down, adapter.up, adapter.up)
            ]
        self._past, self._steps = {}, 0

    def select(self, lanes: NDArray[np.int64]) -> None:
        """The next forward pass has one row for each of ``lanes``."""
        self._lanes = torch.from_numpy(lanes).to(self._device)

    def learn(self, chunks: Sequence[Chunk]) -> None:
        """Take the steps of every lane that has a chunk, all lanes at once."""
        lanes = np.array([chunk.lane for chunk in chunks])
        rows, sizes = [], []
        for lane, tokens, _ in chunks:
            before = self._past.get(lane, tokens[:0])
            rows.append(np.concatenate([before, tokens]))
            sizes.append(len(tokens) - 1)
            kept = max(0, self.context - self.policy.chunk)
            self._past[lane] = rows[-1][max(0, len(rows[-1]) - 1 - kept) : -1]
        padded, scored = _padded(rows, sizes)
        self.select(lanes)
        for _ in range(self.policy.steps):
            self._steps += 1
            self._step(padded.to(self._device), scored.to(self._device))

    def tensors(self) -> Iterable[Tensor]:
        own = [t for adapter in self._adapters for t in (adapter.down, adapter.up)]
        return [weight.tensor for weight in weights(self.model)] + own

    def state(self) -> dict[str, NDArray[Any]]:
        """The adapters, their moments, and the tokens that the next chunk is read after."""
        arrays = {"steps": np.array(self._steps)}
        arrays |= {f"past|{lane}": past for lane, past in self._past.items()}
        for i, adapter in enumerate(self._adapters):
            parts = [adapter.down, adapter.up, *adapter.moments]
            arrays |= {f"{i}|{j}": part.cpu().numpy().copy() for j, part in enumerate(parts)}
        return arrays

    def restore(self, state: Arrays) -> None:
        """Go back to where :meth:`state` was taken."""
        self._steps = int(state["steps"])
        prefix = "past|"
        self._past = {
            int(name.removeprefix(prefix)): np.array(array, np.uint32)
            for name, array in state.items()
            if name.startswith(prefix)
        }
        for i, adapter in enumerate(self._adapters):
            down, up = (tuple(part.shape[1:]) for part in (adapter.down, adapter.up))
            for j, shape in enumerate((down, up, down, down, up, up)):
                if (array := state[f"{i}|{j}"]).shape[1:] != shape or array.dtype != np.float32:
                    raise ValueError(f"an adapter of shape {array.shape}")
            parts = [
                torch.from_numpy(np.array(state[f"{i}|{j}"])).to(self._device) for j in range(6)
            ]
            adapter.down, adapter.up, adapter.moments = parts[0], parts[1], parts[2:]

    def _adapter(self, leaf: Leaf, generator: torch.Generator) -> Adapter:
        rows, columns = leaf.weight.shape
        bound = 1 / math.sqrt(columns)
        first = (2 * torch.rand(self.policy.rank, columns, generator=generator) - 1) * bound
        first = first.to(leaf.weight.device)
        up = first.new_zeros(1, rows, self.policy.rank)
        return Adapter(leaf, first, first[None], up, [])

    def _view(self, adapter: Adapter) -> Any:
        scale = self.policy.alpha / self.policy.rank

        def view(weight: Tensor) -> Adapted:
            return Adapted(weight, adapter.down[self._lanes], scale * adapter.up[self._lanes])

        return view

    def _step(self, tokens: Tensor, scored: Tensor) -> None:
        lanes = self._lanes
        pairs = [(adapter.down, adapter.up) for adapter in self._adapters]
        leaves = [t[lanes].requires_grad_() for pair in pairs for t in pair]
        for i, adapter in enumerate(self._adapters):
            adapter.down, adapter.up = leaves[2 * i : 2 * i + 2]
        self._lanes = torch.arange(len(lanes), device=lanes.device)
        try:
            with torch.enable_grad():
                gradients = torch.autograd.grad(self._loss(tokens, scored), leaves)
        finally:
            for adapter, (down, up) in zip(self._adapters, pairs, strict=True):
                adapter.down, adapter.up = down, up
            self._lanes = lanes
        for i, adapter in enumerate(self._adapters):
            for j, tensor in enumerate((adapter.down, adapter.up)):
                self._adam(tensor, adapter.moments[2 * j : 2 * j + 2], gradients[2 * i + j])

    def _loss(self, tokens: Tensor, scored: Tensor) -> Tensor:
        """The mean nats of each row's scored targets, summed: each row has its own adapters."""
        lanes, last = self._lanes, scored.size(1) - int(scored.any(0).int().argmax())
        hidden = self.model.hidden(tokens[:, :-1], last=last).x
        targets, weight = tokens[:, -last:], scored / scored.sum(1, keepdim=True)
        losses = []
        for part in pieces(*targets.shape):
            self._lanes = lanes[part[0]]
            nats = token_nats(hidden[part], self.model.readout(), targets[part])
            losses.append((nats * weight[:, -last:][part]).flatten().sum())
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _adam(self, tensor: Tensor, moments: Sequence[Tensor], gradient: Tensor) -> None:
        policy, lanes, steps = self.policy, self._lanes, self._steps
        mean = moments[0][lanes].lerp_(gradient, 1 - policy.beta1)
        square = moments[1][lanes].lerp_(gradient.square(), 1 - policy.beta2)
        moments[0][lanes], moments[1][lanes] = mean, square
        mean, square = mean / (1 - policy.beta1**steps), square / (1 - policy.beta2**steps)
        kept = tensor[lanes] * (1 - policy.rate * policy.decay)
        tensor[lanes] = kept - policy.rate * mean / (square.sqrt() + 1e-10)


class Review(Adapt):
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
        own = [chunk for chunk in chunks if chunk.lane != BASE]
        if own:
            super().learn(own)
        for chunk in chunks:
            if chunk.lane == BASE:
                self._review(chunk.tokens)

    def state(self) -> dict[str, NDArray[Any]]:
        base = {f"base|{i}": t.cpu().numpy().copy() for i, t in enumerate(self._base)}
        return super().state() | base

    def restore(self, state: Arrays) -> None:
        super().restore(state)
        for i, tensor in enumerate(self._base):
            tensor.copy_(torch.from_numpy(np.array(state[f"base|{i}"])))

    def _review(self, tokens: NDArray[np.uint32]) -> None:
        """One pass over a stream: an annealed step for each chunk of it."""
        policy, views = self._phased, [adapter.leaf.view for adapter in self._adapters]
        for adapter in self._adapters:
            adapter.leaf.view = None
        settings = Sgd(
            chunk=policy.chunk,
            rate=policy.rate,
            momentum=policy.momentum,
            clip=policy.clip,
            batch=max(1, policy.chunk // self.context),
            anneal="cosine",
        )
        step = Descend(self.model, settings, self.context)
        starts = range(0, len(tokens) - 1, policy.chunk)
        for i, start in enumerate(starts):
            part = tokens[start : start + policy.chunk + 1]
            step.learn([Chunk(BASE, part, i / len(starts))])
        with torch.no_grad():
            for tensor, learnt in zip(self._base, weights(step.model), strict=True):
                tensor.copy_(learnt.tensor)
        for adapter, view in zip(self._adapters, views, strict=True):
            adapter.leaf.view = view


def _adapted(model: Model, policy: LowRank) -> list[Leaf]:
    """The leaves of the chosen roles; the table is the head of a model that ties them."""
    leaves = [weight.leaf for weight in weights(model)]
    found: list[Leaf] = []
    if "matrix" in policy.roles:
        found += [leaf for leaf in leaves if isinstance(leaf, Matrix) and leaf.role is Role.MATRIX]
    if "head" in policy.roles:
        found += [leaf for leaf in leaves if leaf.role is Role.HEAD] or [model.table]
    return found


def _padded(rows: Sequence[NDArray[np.uint32]], sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Tokens (rows, longest + 1), and which of their targets count: the last of each row."""
    longest = max(map(len, rows))
    tokens = np.zeros((len(rows), longest), np.int64)
    scored = np.zeros((len(rows), longest - 1), np.bool_)
    for i, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        tokens[i, : len(row)] = row
        scored[i, len(row) - 1 - size : len(row) - 1] = True
    return torch.from_numpy(tokens), torch.from_numpy(scored)
