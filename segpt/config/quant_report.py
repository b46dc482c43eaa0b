"""What quantization says of a model and every weight, as it is stored."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from .base import ADDED, INLINE, PlainSpec, spec
from .run_about import TextAbout


@spec
class GridCoding(PlainSpec):
    """How the rule of a weight says to code it, and the damping that GPTQ needed, if any.

    ``k`` is at how many standard deviations codes are clipped, None of float16; ``group`` the
    columns that share a scale, None for whole rows.
    """

    bits: int
    k: float | None
    group: int | None
    damping: float | None


@spec
class TrellisCoding(PlainSpec):
    """The states of the trellis of a weight with designed steps, and the step of its points."""

    states: int
    step: float


@spec
class WeightReport(PlainSpec):
    """A coded weight.

    ``layer`` is the number of its layer, as text, None outside of layers. Bits are the entropy of
    the codes plus 16 per scale, or 16 for float16. ``error`` and ``output_error`` are squared,
    relative to the weight and to its outputs on the calibration text, None where that is not
    finite or not known. ``damage`` is in nats per token, as the sensitivity of the weight
    predicts; ``fallback`` says that errors could not be fed back.
    """

    role: str
    layer: str | None
    parameters: int
    bits_per_weight: float
    error: float | None
    output_error: float | None
    damage: float | None
    fallback: bool
    grid: GridCoding | None = dataclasses.field(default=None, metadata=INLINE)
    trellis: TrellisCoding | None = dataclasses.field(default=None, metadata=INLINE)


@spec
class GroupReport(PlainSpec):
    """The weights of a role or of a layer: means over weights, and the sum of their damage."""

    parameters: int
    bits_per_weight: float
    error: float | None
    damage: float


@spec
class Quality(PlainSpec):
    """A model ``before`` and ``after`` quantization, on the same text.

    Losses are nats per token and ``bpb`` is bits per byte, both over windows that do not
    overlap, so a score that gives each token more context is lower. ``kl_mean`` and ``kl_p99``
    are nats per token of KL(before || after); ``top1_agreement`` is the fraction of positions
    at which both hold the same token most likely.
    """

    bpb_before: float
    bpb_after: float
    loss_before: float
    loss_after: float
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    tokens: int
    bytes: int


@spec
class CurveReport(PlainSpec):
    """Bits per weight and KL in nats per token: of several rates and of this model.

    ``tokens`` counts those that KL was measured on.
    """

    dots: tuple[tuple[float, ...], ...]
    here: tuple[float, ...]
    tokens: int


@spec
class QuantReport(PlainSpec):
    """A quantized model: its weights, alone and in groups, and what it loses.

    ``roles`` and ``layers`` map to groups of weights, ``fallbacks`` names the weights that fell
    back, and ``quality`` is None where there was no held-out text.

    What the command line adds: ``budget`` is the bytes that the packed file has to keep to,
    ``spec`` the stored table of a :class:`segpt.config.quant.QuantSpec`, ``text`` that of the run,
    None if the checkpoint does not know it, ``recipe`` the name of the recipe, ``measured_on``
    the text that quality is of, in words, and ``curve`` the cost of other rates.
    """

    weights: Mapping[str, WeightReport]
    roles: Mapping[str, GroupReport]
    layers: Mapping[str, GroupReport]
    parameters: int
    bits_per_weight: float
    fallbacks: tuple[str, ...]
    quality: Quality | None
    budget: int | None = dataclasses.field(default=None, metadata=ADDED)
    spec: Mapping[str, Any] | None = dataclasses.field(default=None, metadata=ADDED)
    text: TextAbout | None = dataclasses.field(default=TextAbout(), metadata=ADDED)
    recipe: str | None = dataclasses.field(default=None, metadata=ADDED)
    measured_on: str | None = dataclasses.field(default=None, metadata=ADDED)
    curve: CurveReport | None = dataclasses.field(default=None, metadata=ADDED)
