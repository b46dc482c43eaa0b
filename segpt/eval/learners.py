"""What a policy does between rounds, with tokens that have been scored."""

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.config.score import Sgd
from segpt.errors import ScoreError
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.restoring import same_kind
from segpt.values import Arrays

from .surprisal import window_nats
from .windows import Spans, batched, plan


class Chunk(NamedTuple):
    """The tokens of an update, (targets + 1,), all of them scored.

    ``segment`` is whose state learns, and ``progress`` how far through the stream it lies, 0 to 1.
    """

    segment: int
    tokens: NDArray[np.uint32]
    progress: float


class Learner(Protocol):
    """A model and what changes it."""

    model: Model

    def open(self, segments: int) -> None:
        """So many segments begin side by side."""

    def select(self, segments: NDArray[np.int64]) -> None:
        """The next forward pass has one row for each of ``segments`` (rows,)."""

    def learn(self, chunks: Sequence[Chunk]) -> None:
        """Change the state; at most one chunk for each segment."""

    def tensors(self) -> Iterable[Tensor]:
        """All that a prediction depends on beside the tokens, in any shape."""

    def state(self) -> dict[str, NDArray[Any]]:
        """What resuming needs, as named arrays."""

    def restore(self, state: Arrays) -> None:
        """Go back to where these named arrays were taken."""


class FrozenLearner:
    """A model that never changes between rounds; its fast weights, if any, do within a pass."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def open(self, segments: int) -> None:
        """Nothing changes."""

    def select(self, segments: NDArray[np.int64]) -> None:
        """Nothing changes: all ``segments`` (rows,) share the weights."""

    def learn(self, chunks: Sequence[Chunk]) -> None:
        """Nothing changes."""

    def tensors(self) -> Iterable[Tensor]:
        """The weights, of any shape."""
        return [weight.tensor for weight in weights(self.model)]

    def state(self) -> dict[str, NDArray[Any]]:
        """No named arrays."""
        return {}

    def restore(self, state: Arrays) -> None:
        """Nothing changed, whatever these named arrays are."""


class SgdLearner(FrozenLearner):
    """Next-token gradient steps on a float32 copy of the model; the caller's stays as it is.

    Each chunk is cut into sequences of the context, which run in order and in batches; every
    batch is one step of SGD with momentum on its mean loss, its gradient clipped. Weights and
    momentum persist from chunk to chunk.
    """

    def __init__(self, model: Model, policy: Sgd, context: int) -> None:
        """Copy ``model``, whose copy is then ``self.model``.

        Raises:
            ScoreError: if the model has no weights of the roles that the policy adapts.
        """
        self.policy, self.context = policy, context
        super().__init__(copy.deepcopy(model).float().requires_grad_(False))
        self._weights = [
            weight.tensor.requires_grad_()
            for weight in weights(self.model)
            if weight.role.value in policy.roles
        ]
        if not self._weights:
            raise ScoreError(
                f"the model has no weights of role {', '.join(policy.roles)} to adapt; name "
                "others in adapt.roles (a tied head is the table)"
            )
        self._velocities = [torch.zeros_like(weight) for weight in self._weights]

    def learn(self, chunks: Sequence[Chunk]) -> None:
        """Take the epochs of each chunk, one after the other."""
        for _, tokens, progress in chunks:
            windows = plan(len(tokens) - 1, self.context, self.context)
            for _ in range(self.policy.epochs):
                for batch in batched(windows, self.policy.batch):
                    self._step(tokens, batch, self._rate(progress))

    def state(self) -> dict[str, NDArray[Any]]:
        """The weights that learn and their velocities, as named arrays."""
        pairs = zip(self._weights, self._velocities, strict=True)
        return {
            f"{i}|{name}": tensor.detach().cpu().numpy().copy()
            for i, pair in enumerate(pairs)
            for name, tensor in zip(("weight", "velocity"), pair, strict=True)
        }

    def restore(self, state: Arrays) -> None:
        """Go back to where these named arrays were taken.

        Raises:
            CheckpointError: if they are of other weights.
        """
        same_kind("what was learnt", state, self.state())
        with torch.no_grad():
            for i, (weight, velocity) in enumerate(
                zip(self._weights, self._velocities, strict=True)
            ):
                weight.copy_(torch.from_numpy(np.array(state[f"{i}|weight"])))
                velocity.copy_(torch.from_numpy(np.array(state[f"{i}|velocity"])))

    def _rate(self, progress: float) -> float:
        match self.policy.anneal:
            case "none":
                return self.policy.rate
            case "cosine":
                return self.policy.rate * (1 + math.cos(math.pi * progress)) / 2

    def _step(self, tokens: NDArray[np.uint32], windows: Spans, rate: float) -> None:
        """A step on the mean loss of windows of one shape: V <- mu V + clipped G, W <- W - rate V.

        ``tokens`` are those of the chunk, (targets + 1,).
        """
        with torch.enable_grad():
            loss = window_nats(self.model, tokens, windows).mean()
            # A part that no active visit runs has no gradient.
            gradients = torch.autograd.grad(
                loss, self._weights, allow_unused=True, materialize_grads=True
            )
        norm = torch.nn.utils.get_total_norm(gradients)
        scale = self.policy.clip / norm.clamp(min=self.policy.clip)
        with torch.no_grad():
            for weight, velocity, gradient in zip(
                self._weights, self._velocities, gradients, strict=True
            ):
                velocity.mul_(self.policy.momentum).add_(gradient * scale)
                weight.sub_(velocity, alpha=rate)
