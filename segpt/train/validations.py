"""What the validations of a run came to: the best of them, and how fast the loss falls."""

import math

import numpy as np
from numpy.typing import NDArray

_KEPT = 0.7  # of the slope, at every validation
_UNIT = 1e9  # tokens


class Validations:
    """The best validation so far and the slope of the loss, in nats per 1e9 tokens.

    The slope is a moving average of the differences between one validation and the next.
    """

    def __init__(self, best_after: int = 0) -> None:
        """Nothing is validated yet; the first ``best_after`` validations are never the best."""
        self.best_after = best_after
        self.count, self.best_step, self.best_bpb = 0, 0, math.inf
        self.nats, self.tokens, self._slope = math.nan, 0, math.nan

    @property
    def slope(self) -> float | None:
        """Change of the loss per 1e9 tokens; None before the second validation."""
        return None if math.isnan(self._slope) else self._slope

    def add(self, step: int, tokens: int, nats: float, bpb: float) -> bool:
        """Take in a validation after so many training tokens, and say whether it is the best.

        Args:
            step: the step it came after; that of 0 steps is never the best.
            tokens: trained on so far.
            nats: loss per token, the same in every process.
            bpb: bits per byte.
        """
        if tokens > self.tokens and not math.isnan(self.nats):
            fall = (nats - self.nats) / (tokens - self.tokens) * _UNIT
            before = fall if math.isnan(self._slope) else self._slope
            self._slope = _KEPT * before + (1.0 - _KEPT) * fall
        self.nats, self.tokens = nats, tokens
        if step == 0:
            return False
        self.count += 1
        if self.count <= self.best_after or not bpb < self.best_bpb:  # not a number is never best
            return False
        self.best_step, self.best_bpb = step, bpb
        return True

    def state(self) -> NDArray[np.float64]:
        """What :meth:`restore` needs, (6,)."""
        numbers = [self.count, self.best_step, self.best_bpb, self.nats, self.tokens, self._slope]
        return np.array(numbers, np.float64)

    def restore(self, state: NDArray[np.float64]) -> None:
        """Go back to where ``state`` (6,) was taken."""
        count, step, self.best_bpb, self.nats, tokens, self._slope = map(float, state)
        self.count, self.best_step, self.tokens = int(count), int(step), int(tokens)
