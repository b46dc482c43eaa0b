"""Every weight a model spec implies: name, role and shape, in canonical order, without torch.

This list is the join key of the toolkit. The packer derives the tensors of an artifact from it,
so that a file can invent neither names nor shapes; ``tests/model`` checks that the modules that
``segpt.model.build`` makes hold exactly these weights.
"""

import math
from collections import Counter
from typing import NamedTuple

from .model import ModelSpec
from .role import Place, Role

__all__ = ["Place", "Role", "Weight", "layout", "parameters"]


class Weight(NamedTuple):
    """One weight: where it is, what it does, and how often one forward pass uses it."""

    name: str
    role: Role
    shape: tuple[int, ...]
    layer: int | None
    uses: int
    place: Place

    @property
    def owner(self) -> str:
        """What the weight is a part of, as in ``layers.0.mixer.body``."""
        return self._of_stack.rpartition(".")[0]

    @property
    def part(self) -> str:
        """Which part of its owner the weight is, as in ``query``; of a stack, that of all."""
        return self._of_stack.rpartition(".")[2]

    @property
    def _of_stack(self) -> str:
        """The name without the number that a matrix of a stack has at its end."""
        stack, _, number = self.name.rpartition(".")
        return stack if number.isdigit() else self.name

    @property
    def by_token(self) -> bool:
        """Whether its rows are those of tokens: not where they are looked up by a hash."""
        if self.role is Role.TABLE:
            return self.place is Place.VALUE or self.name == "table"
        return self.role is Role.HEAD

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def layout(spec: ModelSpec) -> tuple[Weight, ...]:
    """Every weight once, in canonical order: embedding, value tables, layers, visits, head."""
    uses = Counter(visit.layer for visit in spec.visits)
    entries = [
        Weight(name, role, shape, None, 1, Place.EMBED)
        for name, role, shape in spec.embed_weights()
    ]
    entries += [
        Weight(name, role, shape, None, count, Place.VALUE)
        for (name, role, shape), count in spec.value_table_weights()
    ]
    for i, layer in enumerate(spec.layers):
        entries += [
            Weight(f"layers.{i}.{name}", role, shape, i, uses[i], Place(name.partition(".")[0]))
            for name, role, shape in layer.weights(spec.width)
        ]
    for i, visit in enumerate(spec.visits):
        for j, part in enumerate(visit.join):
            entries += [
                Weight(f"visits.{i}.{j}.{name}", role, shape, visit.layer, 1, Place.JOIN)
                for name, role, shape in part.weights(spec.width)
            ]
    entries += [
        Weight(f"head.{name}", role, shape, None, 1, Place.HEAD)
        for name, role, shape in spec.head.weights(spec.vocab, spec.width)
    ]
    return tuple(entries)


def parameters(spec: ModelSpec) -> int:
    """How many numbers the model learns."""
    return sum(weight.size for weight in layout(spec))
