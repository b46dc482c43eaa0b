"""What a quantization says of its weights: bits, errors and damage, each alone and by groups."""

import math
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segpt.model.params import Weight
from segpt.quant.gptq import output_error
from segpt.quant.stepped import entropy
from segpt.values import Float16Weight, QuantizedWeight, TrellisWeight


def summary(about: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The report of a quantized model but for its quality, all as JSON values.

    * ``weights``: by name the rule or the states of the trellis, ``bits_per_weight``, ``error``
      and ``output_error`` (squared, relative to the weight and to its outputs on the calibration
      text), ``damage`` (nats per token that the sensitivity of the weight predicts), the
      ``damping`` that GPTQ needed, and ``fallback``, true if errors could not be fed back;
    * ``roles`` and ``layers``: ``parameters``, ``bits_per_weight``, ``error`` and ``damage`` of
      each; the first two again for the whole. Bits are the entropy of each weight's codes plus
      16 per scale, or 16 for float16;
    * ``fallbacks``: the names of the weights that fell back.
    """
    return {
        "weights": about,
        "roles": _grouped(about, "role"),
        "layers": _grouped(about, "layer"),
        **_size(about.values()),
        "fallbacks": [name for name, entry in about.items() if entry["fallback"]],
    }


def about_weight(weight: Weight, coded: QuantizedWeight, moment: Tensor | None) -> dict[str, Any]:
    """What the report says about any coded weight."""
    tensor, change = weight.tensor.detach(), change_of(weight, coded)
    outputs = None
    if moment is not None:
        outputs = _ratio(output_error(change, moment), output_error(tensor, moment))
    return {
        "role": weight.role.value,
        "layer": weight.name.split(".")[1] if weight.name.startswith("layers.") else None,
        "parameters": tensor.numel(),
        "bits_per_weight": _bits(coded) / tensor.numel(),
        "error": _ratio(change.square(), tensor.square()),
        "output_error": outputs,
        "damage": None,
        "fallback": False,
    }


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


def _grouped(about: dict[str, dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in about.values():
        if entry[key] is not None:
            groups[entry[key]].append(entry)
    return {
        name: _size(entries)
        | {"error": _mean_error(entries), "damage": sum(e["damage"] or 0.0 for e in entries)}
        for name, entries in groups.items()
    }


def _mean_error(entries: Collection[dict[str, Any]]) -> float | None:
    """The mean over weights, each counted as often as it has parameters; None if any is."""
    if any(entry["error"] is None for entry in entries):
        return None
    total = sum(entry["parameters"] * entry["error"] for entry in entries)
    return float(total / sum(entry["parameters"] for entry in entries))


def _size(entries: Collection[dict[str, Any]]) -> dict[str, float]:
    parameters = sum(entry["parameters"] for entry in entries)
    bits = sum(entry["parameters"] * entry["bits_per_weight"] for entry in entries)
    return {"parameters": parameters, "bits_per_weight": bits / parameters}
