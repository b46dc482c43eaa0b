"""The header: what a file says about its model, as canonical JSON read with suspicion.

The header holds the model's spec and, for every weight, how it is coded. Names, roles,
shapes and order of the weights follow from the spec by ``segpt.config.layout``: a file can invent
none of them, and nothing is allocated before what it implies has passed the caps below.
"""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

from segpt.config.base import canonical, decode, spec
from segpt.config.layout import Weight, layout
from segpt.config.model import ModelSpec
from segpt.config.quant import STATES
from segpt.errors import ArtifactError, SpecError
from segpt.values import Float16Weight, Quantized, TrellisWeight, UniformWeight

MOST_BYTES = 1 << 20
MOST_COMMAS = 1 << 14  # what bounds the time that reading a header takes
MOST_PARAMETERS = 1 << 31
# Codes may take next to no bits, so that a few bytes could name any model. Beyond so many numbers
# they have to be paid for: what a file makes a reader allocate is in proportion to its bytes.
FREE_PARAMETERS = 1 << 27
PARAMETERS_PER_BYTE = 64
MOST_TENSORS = 4096
LONGEST_SIDE = 1 << 20
HALF = 16  # bits of a weight that has no codes
CENTRED, PARTIAL = 1, 2  # parts of a stepped weight beside its codes: bits of a number

_LONGEST_NUMBER = 16
_LONGEST_MESSAGE = 300


class StoredWeight(NamedTuple):
    """One weight of the file: on a grid (bits), stepped (states), or float16 (bits are 16).

    ``groups`` is the number of scales per row of a grid and ``parts`` what a stepped weight has
    beside its codes; both are 0 elsewhere.
    """

    weight: Weight
    bits: int
    groups: int
    states: int
    parts: int

    @property
    def half(self) -> bool:
        return self.bits == HALF

    @property
    def stepped(self) -> bool:
        return self.states > 0

    @property
    def centred(self) -> bool:
        """There is a row of float16 to add to every stored row."""
        return bool(self.parts & CENTRED)

    @property
    def partial(self) -> bool:
        """A bitmap tells which rows are stored; the others share a row of float16."""
        return bool(self.parts & PARTIAL)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a weight with codes."""
        rows, columns = self.weight.shape
        return rows, columns

    @property
    def limit(self) -> int:
        """The largest absolute code on a grid."""
        return (1 << (self.bits - 1)) - 1


@spec
class Header:
    """The model, its tokenizer without the payload, its origin, and how each weight is coded.

    The lists have one number per weight of ``layout(model)``, see :class:`StoredWeight`; ``states``
    and ``parts`` may be empty where no weight is stepped.
    """

    model: ModelSpec
    tokenizer: str
    vocab: int
    origin: Mapping[str, str]
    bits: tuple[int, ...]
    groups: tuple[int, ...]
    states: tuple[int, ...] = ()
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(v, str) for v in self.origin.values()):
            raise SpecError("origin maps kinds of input to fingerprints, which are strings")
        if self.vocab < 1:
            raise SpecError(f"vocab must be positive, got {self.vocab}")
        weights = layout(self.model)
        _check_caps(weights)
        for name in ("bits", "groups", "states", "parts"):
            count = len(getattr(self, name))
            if count != len(weights) and (count or name in ("bits", "groups")):
                raise SpecError(
                    f"the model has {len(weights)} weights, but the header gives {name} for {count}"
                )
        for entry in self.entries:
            _check_coding(entry)

    @property
    def entries(self) -> tuple[StoredWeight, ...]:
        """Every weight in canonical order, with its coding."""
        weights = layout(self.model)
        none = (0,) * len(weights)
        states, parts = self.states or none, self.parts or none
        return tuple(map(StoredWeight, weights, self.bits, self.groups, states, parts))


def describe(quantized: Quantized) -> Header:
    """The header of the file that will hold ``quantized``.

    Raises:
        ArtifactError: if the weights are not those of the spec, or the format cannot hold them.
    """
    codings = [_coding(quantized, weight) for weight in layout(quantized.spec)]
    if extra := sorted(quantized.weights.keys() - {w.name for w in layout(quantized.spec)}):
        raise ArtifactError(f"the spec has no weight named {extra[0]}")
    lists = map(list, zip(*codings, strict=True))
    return read(
        canonical(
            {
                "model": quantized.spec,
                "tokenizer": quantized.tokenizer.kind,
                "vocab": quantized.tokenizer.vocab,
                "origin": quantized.origin,
            }
            | dict(zip(("bits", "groups", "states", "parts"), lists, strict=True))
        )
    )


def check_size(header: Header, size: int) -> None:
    """See that a file of ``size`` bytes is large enough for the model that its header names.

    Raises:
        ArtifactError: if it is not.
    """
    total = sum(weight.size for weight in layout(header.model))
    if total > max(FREE_PARAMETERS, PARAMETERS_PER_BYTE * size):
        raise ArtifactError(
            f"header: {total:,} parameters in a file of {size:,} bytes; beyond "
            f"{FREE_PARAMETERS:,} it has a byte for every {PARAMETERS_PER_BYTE} of them"
        )


def write(header: Header) -> bytes:
    """The header as canonical JSON."""
    return canonical(header)


def read(data: bytes) -> Header:
    """The inverse of :func:`write`; keys that are left out of the model's spec get defaults.

    Raises:
        ArtifactError: if ``data`` is not canonical JSON, does not describe a model, or describes
            one beyond the caps.
    """
    if (commas := data.count(b",")) > MOST_COMMAS:
        raise ArtifactError(f"header: {commas:,} commas; the format has {MOST_COMMAS:,}")
    try:
        table = json.loads(data.decode(), parse_int=_integer, parse_constant=_constant)
        if canonical(table) != data:
            raise ValueError("keys come sorted and once each, numbers finite, without spaces")
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"header: not canonical JSON: {_brief(error)}") from None
    try:
        return decode(Header, table, "header")
    except SpecError as error:
        raise ArtifactError(_brief(error)) from None


def _coding(quantized: Quantized, weight: Weight) -> tuple[int, int, int, int]:
    """The bits, groups, states and parts of a weight."""
    match quantized.weights.get(weight.name):
        case UniformWeight(bits=bits, scales=scales):
            return bits, math.prod(scales.shape[1:]), 0, 0
        case TrellisWeight(states=states, centre=centre, stored=stored):
            return 0, 0, states, CENTRED * (centre is not None) | PARTIAL * (stored is not None)
        case Float16Weight():
            return HALF, 0, 0, 0
        case None:
            raise ArtifactError(f"the spec has a weight {weight.name} that is not coded")


def _check_caps(weights: tuple[Weight, ...]) -> None:
    if len(weights) > MOST_TENSORS:
        raise SpecError(f"the model has {len(weights)} weights; the format has {MOST_TENSORS}")
    for weight in weights:
        if not all(1 <= side <= LONGEST_SIDE for side in weight.shape):
            raise SpecError(f"{weight.name} is {weight.shape}; sides are 1 to {LONGEST_SIDE:,}")
    if (total := sum(weight.size for weight in weights)) > MOST_PARAMETERS:
        raise SpecError(f"the model has {total:,} parameters; the format has {MOST_PARAMETERS:,}")


def _check_coding(entry: StoredWeight) -> None:
    weight, bits, groups, states, parts = entry
    if entry.half:
        if groups or states or parts:
            raise SpecError(f"{weight.name} is float16 and has no groups, states or parts")
    elif len(weight.shape) != 2:
        raise SpecError(f"{weight.name} has one dimension and is stored as float16")
    elif bits == 0:
        if states not in STATES:
            raise SpecError(f"{weight.name}: states are one of {STATES}, got {states}")
        if groups or not 0 <= parts <= CENTRED | PARTIAL:
            raise SpecError(f"{weight.name} is stepped, but has {groups} groups and parts {parts}")
    elif not 2 <= bits <= 8:
        raise SpecError(
            f"{weight.name}: bits are 2 to 8, {HALF} for float16 or 0 for steps; got {bits}"
        )
    elif states or parts:
        raise SpecError(f"{weight.name} is on a grid and has no states or parts")
    elif not 1 <= groups <= weight.shape[1]:
        raise SpecError(f"{weight.name}: {groups} groups for {weight.shape[1]} columns")


def _integer(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def _brief(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."
