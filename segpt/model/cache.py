"""What layers have seen in earlier calls: the key-value cache, and what other parts carry on."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor


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
    """

    key: Tensor | None = None
    value: Tensor | None = None
    change: Tensor | None = None
    hidden: Tensor | None = None
    source: Tensor | None = None
    documents: Tensor | None = None
    previous: Tensor | None = None

    def extend(
        self, key: Tensor, value: Tensor, window: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (batch, time, kv_heads, channels), and give back all of them.

        What ``window`` shows to later positions is kept.
        """
        if self.key is not None and self.value is not None:
            key, value = torch.cat([self.key, key], 1), torch.cat([self.value, value], 1)
        self.key, self.value = (_latest(t, window) for t in (key, value))
        return key, value

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
