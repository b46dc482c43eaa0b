"""What a policy does between chunks, with tokens that have been scored."""

import copy
import math

import numpy as np
import torch
from numpy.typing import NDArray

from segpt.errors import ScoreError
from segpt.model.leaves import weights
from segpt.model.model import Model
from segpt.spec.score import Sgd

from .surprisal import window_nats
from .windows import Spans, batched, plan


class Descend:
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
        self.model = copy.deepcopy(model).float().requires_grad_(False)
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

    def __call__(self, tokens: NDArray[np.uint32], progress: float) -> None:
        """Learn from a chunk of tokens, all of them scored; ``progress`` sets the rate."""
        windows = plan(len(tokens) - 1, self.context, self.context)
        for _ in range(self.policy.epochs):
            for batch in batched(windows, self.policy.batch):
                self._step(tokens, batch, self._rate(progress))

    def _rate(self, progress: float) -> float:
        match self.policy.anneal:
            case "none":
                return self.policy.rate
            case "cosine":
                return self.policy.rate * (1 + math.cos(math.pi * progress)) / 2

    def _step(self, tokens: NDArray[np.uint32], windows: Spans, rate: float) -> None:
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
