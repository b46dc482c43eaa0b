"""Attention to keys that lie in a ring of slots, defined in plain torch.

What attention with a window will not see again is written over, so that nothing moves when keys
are added::

    slots      | 8 | 9 |10 |   | 4 | 5 | 6 | 7 |        a ring of 8 slots holds keys 4 to 10:
                                 ^ begin                begin = 4, length = 7
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .reference import AttentionCall
from .reference import reference as attended


class Ring(NamedTuple):
    """Keys and values of the last positions.

    Attributes:
        keys: (batch, slots, kv_heads, channels).
        values: like ``keys``.
        begin: the slot of the oldest key; the next ones follow it, after the last slot the first.
        length: how many keys there are, up to all slots.
    """

    keys: Tensor
    values: Tensor
    begin: int
    length: int

    def in_order(self) -> tuple[Tensor, Tensor]:
        """Copies of the keys and values, (batch, length, kv_heads, channels), the oldest first."""
        slots = torch.arange(self.begin, self.begin + self.length, device=self.keys.device)
        slots = slots % self.keys.size(1)
        return self.keys[:, slots], self.values[:, slots]

    def add(self, keys: Tensor, values: Tensor) -> "Ring":
        """Write keys and values (batch, new, kv_heads, channels) into the slots after the newest.

        What comes back is of the same memory.

        Raises:
            ValueError: if that many slots are not free.
        """
        count, slots = keys.size(1), self.keys.size(1)
        if self.length + count > slots:
            raise ValueError(f"{slots} slots hold {self.length} keys and no {count} more")
        first = (self.begin + self.length) % slots
        before = min(count, slots - first)  # those that the last slot comes after
        for held, new in ((self.keys, keys), (self.values, values)):
            held[:, first : first + before] = new[:, :before]
            held[:, : count - before] = new[:, before:]
        return self._replace(length=self.length + count)

    def latest(self, count: int) -> "Ring":
        """At most so many of the newest keys; the slots of the others are free."""
        gone = max(0, self.length - count)
        begin = (self.begin + gone) % self.keys.size(1)
        return self._replace(begin=begin, length=self.length - gone)

    def pick(self, rows: slice | Tensor) -> "Ring":
        """These rows (rows,) of the batch."""
        return self._replace(keys=self.keys[rows], values=self.values[rows])


class CachedCall(NamedTuple):
    """Queries, which are aligned with the last keys of a ring; no gradient is asked for.

    Attributes:
        q: (batch, queries, heads, channels).
        ring: the keys and values; heads is a multiple of its kv_heads.
        window, scale: as in :class:`AttentionCall`.
        documents: (batch, length) which document each key is of, the oldest first, or None.
    """

    q: Tensor
    ring: Ring
    window: int | None = None
    documents: Tensor | None = None
    scale: float | None = None


def reference(call: CachedCall) -> Tensor:
    """Attend to copies of the keys in order: (batch, queries, heads, channels)."""
    keys, values = call.ring.in_order()
    return attended(AttentionCall(call.q, keys, values, call.window, call.documents, call.scale))
