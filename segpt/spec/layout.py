"""Every weight a model spec implies: name, role and shape, in canonical order, without torch.

This list is the join key of the toolkit. The packer derives the tensors of an artifact from it,
so that a file can invent neither names nor shapes; ``tests/model`` checks that the modules that
``segpt.model.build`` makes hold exactly these weights.
"""

import math
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple, assert_never

from .model import (
    Attention,
    ExcludeSelf,
    FastWeight,
    Gain,
    HeadGate,
    Layer,
    MixInput,
    ModelSpec,
    Norm,
    Rope,
    Skip,
    ValueResidual,
)


class Role(Enum):
    """What a weight does, which is all that optimizers, quantizers and packers ask of it."""

    TABLE = "table"  # looked up by token; a tied table is also the head
    MATRIX = "matrix"  # multiplies the stream
    HEAD = "head"  # multiplies the stream into logits
    VECTOR = "vector"  # gains, gates and mixing weights


class Weight(NamedTuple):
    """One weight: where it is, what it does, and how often one forward pass uses it."""

    name: str
    role: Role
    shape: tuple[int, ...]
    layer: int | None
    uses: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def layout(spec: ModelSpec) -> tuple[Weight, ...]:
    """Every weight once, in canonical order: table, layers, visits, head."""
    uses = Counter(visit.layer for visit in spec.visits)
    found = [Weight("table", Role.TABLE, (spec.vocab, spec.width), None, 1)]
    for i, layer in enumerate(spec.layers):
        found += [
            Weight(f"layers.{i}.{name}", role, shape, i, uses[i])
            for name, role, shape in _layer(layer, spec.width)
        ]
    for i, visit in enumerate(spec.visits):
        for j, part in enumerate(visit.join):
            found += [
                Weight(f"visits.{i}.{j}.{name}", role, shape, visit.layer, 1)
                for name, role, shape in _join(part, spec.width)
            ]
    if not spec.head.tied:
        found.append(Weight("head.matrix", Role.HEAD, (spec.vocab, spec.width), None, 1))
    return tuple(found)


def parameters(spec: ModelSpec) -> int:
    """How many numbers the model learns."""
    return sum(weight.size for weight in layout(spec))


_Entry = tuple[str, Role, tuple[int, ...]]


def _layer(layer: Layer, width: int) -> Iterator[_Entry]:
    for j, part in enumerate(layer.join):
        for name, role, shape in _join(part, width):
            yield f"join.{j}.{name}", role, shape
    if layer.mixer is not None:
        yield "mixer.gain", Role.VECTOR, (width,)
        for name, role, shape in _attention(layer.mixer, width):
            yield f"mixer.body.{name}", role, shape
    if layer.feed is not None:
        up = layer.feed.hidden * (2 if layer.feed.act == "swiglu" else 1)
        yield "feed.gain", Role.VECTOR, (width,)
        yield "feed.body.up", Role.MATRIX, (up, width)
        yield "feed.body.down", Role.MATRIX, (width, layer.feed.hidden)
        if layer.feed.fast is not None:
            for name, role, shape in _fast(layer.feed.fast, width):
                yield f"feed.body.fast.{name}", role, shape


def _attention(s: Attention, width: int) -> Iterator[_Entry]:
    yield "query", Role.MATRIX, (s.heads * s.head_dim, width)
    yield "key", Role.MATRIX, (s.kv_heads * s.head_dim, width)
    yield "value", Role.MATRIX, (s.kv_heads * s.head_dim, width)
    yield "out", Role.MATRIX, (width, s.heads * s.head_dim)
    for j, part in enumerate(s.query_key):
        match part:
            case Gain():
                yield f"query_key_parts.{j}.gain", Role.VECTOR, (s.heads, 1)
            case Norm() | Rope():
                pass
            case _:
                assert_never(part)
    for j, value in enumerate(s.value):
        match value:
            case ValueResidual():
                yield f"value_parts.{j}.mix", Role.VECTOR, (2,)
            case _:
                assert_never(value)
    for j, output in enumerate(s.output):
        match output:
            case HeadGate():
                yield f"output_parts.{j}.gate", Role.MATRIX, (s.heads, output.inputs)
            case ExcludeSelf():
                pass
            case _:
                assert_never(output)


def _fast(s: FastWeight, width: int) -> Iterator[_Entry]:
    yield "taps", Role.VECTOR, (s.taps, width)
    if s.projection:
        yield "projection", Role.MATRIX, (width, width)


def _join(part: MixInput | Skip, width: int) -> Iterator[_Entry]:
    match part:
        case MixInput():
            yield "mix", Role.VECTOR, (2, width)
        case Skip():
            yield "scale", Role.VECTOR, (width,)
            yield "gate", Role.VECTOR, (width,)
        case _:
            assert_never(part)
