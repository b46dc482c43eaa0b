"""What layers have seen in earlier calls: the key-value cache, and what other parts carry on."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from segpt.kernels.attention import Ring


@dataclass
class LayerCache:
    """What one visit to a layer has seen so far; of a part that has seen nothing all is None.

    Attributes:
        key, value: (batch, time, kv_heads, channels), of the positions that later ones can see.
        change: (batch, out, in), what a fast weight has learned.
        hidden, source: (batch, time, in) and (batch, time, out), of the chunk that it has yet to
            learn from.
        documents: (batch, time), which document each key is of.
        previous: (batch, 1, ...), what a part that looks one token back read last.
        ring: the keys and values where they lie in slots; then ``key`` and ``value`` are None.
    """

    key: Tensor | None = None
    value: Tensor | None = None
    change: Tensor | None = None
    hidden: Tensor | None = None
    source: Tensor | None = None
    documents: Tensor | None = None
    previous: Tensor | None = None
    ring: Ring | None = None

    def extend(
        self, key: Tensor, value: Tensor, window: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (batch, time, kv_heads, channels), and give back all of them.

        What ``window`` shows to later positions is kept.
        """
        if self.ring is not None:
            (self.key, self.value), self.ring = self.ring.in_order(), None
        if self.key is not None and self.value is not None:
            key, value = torch.cat([self.key, key], 1), torch.cat([self.value, value], 1)
        self.key, self.value = (_latest(t, window) for t in (key, value))
        return key, value

    def roll(self, key: Tensor, value: Tensor, window: int) -> Ring:
        """Append (batch, time, kv_heads, channels) as :meth:`extend` does, in slots used again.

        So no key is copied. What comes back holds until the next call.
        """
        slots = window - 1 + key.size(1)
        ring = self.ring
        if ring is None or ring.keys.size(1) < slots:
            held = self.tensors()
            keys, values = (x.new_empty(x.size(0), slots, *x.shape[2:]) for x in (key, value))
            ring = Ring(keys, values, 0, 0)
            if "key" in held:
                ring = ring.add(_latest(held["key"], window), _latest(held["value"], window))
            self.key = self.value = None
        ring = ring.add(key, value)
        self.ring = ring.latest(window - 1)
        return ring

    def tensors(self) -> dict[str, Tensor]:
        """What there is, by name, in the shapes of the attributes; keys and values in order."""
        held = vars(self)
        if self.ring is not None:
            held = held | dict(zip(("key", "value"), self.ring.in_order(), strict=True))
        return {name: x for name, x in held.items() if isinstance(x, Tensor)}

    def number(self, documents: Tensor, window: int | None = None) -> Tensor:
        """The documents (batch, time) of all keys, from those of the new ones, counted anew."""
        if self.documents is not None and self.documents.size(1):
            documents = torch.cat([self.documents, documents + self.documents[:, -1:]], 1)
        self.documents = _latest(documents, window)
        return documents

    def pick(self, rows: slice | Tensor) -> None:
        """Hold these rows (rows,) of the batch from here on, any number of times each."""
        for field in dataclasses.fields(self):
            kept = getattr(self, field.name)
            if isinstance(kept, Tensor):
                setattr(self, field.name, kept[rows])
        self.ring = None if self.ring is None else self.ring.pick(rows)


# One for each place in the order that runs, not for each layer nor visit: loops run both again.
# What part j of the embedding remembers is at -1 - j.
KVCache = dict[int, LayerCache]


def first_rows(cache: KVCache, count: int) -> None:
    """Forget all but the first ``count`` rows of a batch, whose other documents have ended."""
    for layer in cache.values():
        layer.pick(slice(count))


def pick_rows(cache: KVCache, rows: Tensor) -> None:
    """Hold ``rows`` (rows,) of a batch from here on, any number of times each."""
    for layer in cache.values():
        layer.pick(rows)


def _latest(x: Tensor, window: int | None) -> Tensor:
    if window is None or x.size(1) < window:
        return x
    # A copy, so that the memory of what is dropped can be freed.
    return x[:, x.size(1) - window + 1 :].clone()
