"""What a quantization says of its weights: bits, errors and damage, each alone and by groups."""

import math
import operator
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from segpt.config.quant_report import GroupReport, Quality, QuantReport, WeightReport
from segpt.model.params import Weight
from segpt.quant.gptq import output_error
from segpt.quant.stepped import entropy
from segpt.values import Float16Weight, QuantizedWeight, TrellisWeight


def summary(weights: Mapping[str, WeightReport], quality: Quality | None) -> QuantReport:
    """The report of a quantized model, from those of its weights by name."""
    reports = weights.values()
    return QuantReport(
        weights=weights,
        roles=_grouped((report.role, report) for report in reports),
        layers=_grouped((report.layer, report) for report in reports if report.layer is not None),
        parameters=sum(report.parameters for report in reports),
        bits_per_weight=_mean_bits(reports),
        fallbacks=tuple(name for name, report in weights.items() if report.fallback),
        quality=quality,
    )


def about_weight(weight: Weight, coded: QuantizedWeight, moment: Tensor | None) -> WeightReport:
    """What the report says about any coded weight."""
    tensor, change = weight.tensor.detach(), change_of(weight, coded)
    outputs = None
    if moment is not None:
        outputs = _ratio(output_error(change, moment), output_error(tensor, moment))
    return WeightReport(
        role=weight.role.value,
        layer=weight.name.split(".")[1] if weight.name.startswith("layers.") else None,
        parameters=tensor.numel(),
        bits_per_weight=_bits(coded) / tensor.numel(),
        error=_ratio(change.square(), tensor.square()),
        output_error=outputs,
        damage=None,
        fallback=False,
    )


def change_of(weight: Weight, coded: QuantizedWeight) -> Tensor:
    """The weight less what it is after coding."""
    return weight.tensor.detach() - torch.from_numpy(coded.decoded()).to(weight.tensor)


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    """The ratio of two sums; 0 for nothing of nothing, None where it is not finite."""
    if not whole.any():
        return 0.0
    ratio = float(part.sum(dtype=torch.float64) / whole.sum(dtype=torch.float64))
    return ratio if math.isfinite(ratio) else None


def _bits(coded: QuantizedWeight) -> float:
    """Entropy of the codes, as one distribution, plus what the scales take; 16 per float16."""
    if isinstance(coded, Float16Weight):
        return 16.0 * coded.values.size
    if isinstance(coded, TrellisWeight):
        return entropy(coded)
    counts = np.bincount(coded.codes.ravel().astype(np.int64) + 128)
    shares = counts[counts > 0] / coded.codes.size
    return float(-(shares * np.log2(shares)).sum() * coded.codes.size + 16 * coded.scales.size)


def _grouped(named: Iterable[tuple[str, WeightReport]]) -> dict[str, GroupReport]:
    """A report for each group, from those of its weights with the name of the group."""
    groups: dict[str, list[WeightReport]] = defaultdict(list)
    for name, report in named:
        groups[name].append(report)
    return {
        name: GroupReport(
            parameters=sum(report.parameters for report in reports),
            bits_per_weight=_mean_bits(reports),
            error=_mean_error(reports),
            damage=sum(report.damage or 0.0 for report in reports),
        )
        for name, reports in groups.items()
    }


def _mean_error(reports: Collection[WeightReport]) -> float | None:
    """The mean over weights, each counted as often as it has parameters; None if any is."""
    sizes = [report.parameters for report in reports]
    errors = [report.error for report in reports if report.error is not None]
    if len(errors) < len(sizes):
        return None
    return sum(map(operator.mul, sizes, errors)) / sum(sizes)


def _mean_bits(reports: Collection[WeightReport]) -> float:
    """Bits per weight, over all weights."""
    bits = sum(report.parameters * report.bits_per_weight for report in reports)
    return bits / sum(report.parameters for report in reports)
