"""Windows of a text that share tokens, which then run once for all of them."""

from typing import NamedTuple

import torch
from torch import Tensor


class Overlap(NamedTuple):
    """Windows that share tokens: the batch of tokens that runs, and the windows in it.

    Attributes:
        where: (windows, time), which token of the batch each position of a window is.
        positions: (tokens,), where those tokens lie in their text.
    """

    where: Tensor
    positions: Tensor

    @classmethod
    def of(cls, places: Tensor, private: int) -> "Overlap":
        """Windows at ``places`` (windows, time) of a text, of which each runs a prefix of its own.

        The first ``private`` positions of a window depend on where it begins, so that they run
        once for each window; every other place of the text runs once. With windows of 4 at 0, 2
        and 4, and one private position each::

            text        0 1 2 3 4 5 6 7
            window 0    0 1 2 3                 runs   4 | 2 | 0 | 0 1 2 3 4 5 6 7
            window 1        2 3 4 5             where  2 4 5 6
            window 2            4 5 6 7                1 6 7 8
                                                       0 8 9 10

        Tokens that follow each other in a window do so in the batch too, and no private one stands
        before a token that follows it in the text by chance.
        """
        windows, time = places.shape
        private = min(private, time)
        shared, where = torch.unique(places, return_inverse=True)
        where = where + private * windows  # the shared tokens stand behind all private ones
        # The latest window first: so no run of private tokens goes on where the last one ended.
        latest_first = places[:, 0].argsort(descending=True, stable=True)
        numbers = torch.arange(private * windows, device=places.device)
        where[latest_first, :private] = numbers.view(windows, private)
        own = places[latest_first, :private].flatten()
        return cls(where, torch.cat([own, shared]))

    @property
    def follows(self) -> Tensor:
        """Whether a token comes right after the one before it here, (tokens,)."""
        steps = self.positions.diff(prepend=self.positions[:1])
        return steps == 1

    def rows(self, x: Tensor) -> Tensor:
        """One row per window, (windows, time, ...), of ``x`` (1, tokens, ...)."""
        return x[0, self.where]
