"""Checkpoint to Quantized: every weight coded by its rule, and what that costs in quality."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.errors import CheckpointError, DataError
from segpt.model.leaves import Weight, weights
from segpt.model.model import Model
from segpt.quant.gptq import gptq, output_error
from segpt.quant.grid import nearest, scales, to_grid
from segpt.quant.hessian import hessians
from segpt.quant.quality import compare
from segpt.spec.base import fingerprint
from segpt.spec.layout import layout
from segpt.spec.quant import QuantSpec, Rule
from segpt.values import Checkpoint, Coded, Grid, Half, Quantized

from .models import from_checkpoint, from_quantized, settled

Blocks = Iterable[NDArray[np.int64]]  # each (batch, time + 1) token ids
Task = Literal["calibrate", "round", "measure"]


class HeldOut(NamedTuple):
    """Text that quality is measured on, and the bytes that each token id spells."""

    blocks: Blocks
    sizes: NDArray[np.integer]


class Progress(NamedTuple):
    """How far a task is: tokens calibrated on, weights rounded, or tokens measured on."""

    task: Task
    done: int
    total: int


def quantize(
    checkpoint: Checkpoint,
    spec: QuantSpec,
    calibration: Blocks = (),
    held_out: HeldOut | None = None,
    *,
    device: str = "cpu",
    report: Callable[[Progress], None] = lambda _: None,
) -> Quantized:
    """Code every weight of a checkpoint by the rule for its role and layer.

    The ``report`` of the result holds, all as JSON values:

    * ``weights``: by name the rule, ``bits_per_weight``, ``error`` and ``output_error`` (squared,
      relative to the weight and to its outputs on the calibration text), the ``damping`` that
      GPTQ needed, and ``fallback``, true if it failed and the weight was rounded to nearest;
    * ``roles``: ``parameters`` and ``bits_per_weight`` of each role; both again for the whole.
      Bits are the entropy of each weight's codes plus 16 per scale, or 16 for float16;
    * ``fallbacks``: the names of the weights that fell back;
    * ``quality``: the fields of :class:`segpt.quant.quality.Quality`, or None.

    Args:
        checkpoint: the model; visits that have not joined it yet are left out.
        spec: rules and rounding.
        calibration: training text; GPTQ reads its first ``spec.calibration_tokens`` tokens.
        held_out: text to measure on; its first ``spec.report_tokens`` tokens are read.
        device: where to compute, ``cpu`` or ``cuda``.
        report: told about progress.

    Raises:
        SpecError: if a weight has no rule.
        CheckpointError: naming the first weight that is unknown, not finite, or too large.
        DataError: if there is no text to calibrate or measure on, or it has another vocabulary.
    """
    now = settled(checkpoint)
    rules = {w.name: spec.rule(w, len(now.spec.layers)) for w in layout(now.spec)}
    model = from_checkpoint(now, device)
    _check_finite(model)

    def take(task: Task, blocks: Blocks, tokens: int) -> Blocks:
        return _take(blocks, tokens, now.spec.vocab, lambda d: report(Progress(task, d, tokens)))

    moments: dict[str, Tensor] = {}
    if spec.method == "gptq":
        blocks = take("calibrate", calibration, spec.calibration_tokens)
        moments = hessians(model, (block[:, :-1] for block in blocks))
    coded: dict[str, Coded] = {}
    about: dict[str, dict[str, Any]] = {}
    done, parameters = 0, sum(w.tensor.numel() for w in weights(model))
    for weight in weights(model):
        rule, moment = rules[weight.name], moments.get(weight.name)
        coded[weight.name], about[weight.name] = _code(weight, rule, moment, spec)
        done += weight.tensor.numel()
        report(Progress("round", done, parameters))

    origin = {"checkpoint": checkpoint.fingerprint, "quantize": fingerprint(spec)}
    quantized = Quantized(
        spec=now.spec,
        weights=coded,
        tokenizer=checkpoint.tokenizer,
        origin={**checkpoint.origin, **origin},
        documents=checkpoint.documents,
    )
    quality = None
    if held_out is not None:
        blocks = take("measure", held_out.blocks, spec.report_tokens)
        after = from_quantized(quantized, device)
        quality = dataclasses.asdict(compare(model, after, blocks, held_out.sizes))
    return dataclasses.replace(quantized, report=_summary(about) | {"quality": quality})


def _check_finite(model: Model) -> None:
    for weight in weights(model):
        if not weight.tensor.isfinite().all():
            raise CheckpointError(
                f"weight {weight.name!r} is not finite everywhere; quantize an earlier checkpoint"
            )


def _take(
    blocks: Blocks, tokens: int, vocab: int, report: Callable[[int], None]
) -> Iterator[NDArray[np.int64]]:
    """The first rows of the blocks, until they hold ``tokens`` targets."""
    taken = 0
    for block in blocks:
        targets = block.shape[1] - 1
        rows = block[: -(-(tokens - taken) // targets)]
        if rows.min() < 0 or rows.max() >= vocab:
            raise DataError(
                f"the text has token ids outside the model's vocabulary of {vocab}; "
                "prepare it with the tokenizer of the checkpoint"
            )
        yield rows
        taken += len(rows) * targets
        report(min(taken, tokens))
        if taken >= tokens:
            return


def _code(
    weight: Weight, rule: Rule, moment: Tensor | None, spec: QuantSpec
) -> tuple[Coded, dict[str, Any]]:
    """One weight coded by its rule, and its entry in the report."""
    tensor = weight.tensor.detach()
    try:
        coded, damping = _round(tensor, rule, moment, spec)
    except CheckpointError as error:
        raise CheckpointError(f"weight {weight.name!r}: {error}") from error
    change = tensor - torch.from_numpy(coded.decoded()).to(tensor)
    outputs = None
    if moment is not None:
        outputs = _ratio(output_error(change, moment), output_error(tensor, moment))
    return coded, {
        "role": weight.role.value,
        "parameters": tensor.numel(),
        "bits": rule.bits,
        "k": rule.k if isinstance(coded, Grid) else None,
        "group": rule.group,
        "bits_per_weight": _bits(coded) / tensor.numel(),
        "error": _ratio(change.square(), tensor.square()),
        "output_error": outputs,
        "damping": damping,
        "fallback": isinstance(coded, Grid) and moment is not None and damping is None,
    }


def _round(
    tensor: Tensor, rule: Rule, moment: Tensor | None, spec: QuantSpec
) -> tuple[Coded, float | None]:
    """The coded weight, and the damping if GPTQ made its codes."""
    if rule.bits == 16:
        half = tensor.half()
        if not half.isfinite().all():
            raise CheckpointError(
                f"{float(tensor.abs().max()):.3g} is too large for float16; "
                "the weights have diverged, so quantize an earlier checkpoint"
            )
        return Half(half.cpu().numpy()), None
    scale = scales(tensor, rule.bits, rule.k, rule.group)
    if moment is None:
        return to_grid(nearest(tensor, scale, rule.bits), scale, rule.bits), None
    codes, damping = gptq(
        tensor,
        moment,
        scale,
        rule.bits,
        damping=spec.damping,
        act_order=spec.act_order,
        block=spec.block,
    )
    return to_grid(codes, scale, rule.bits), damping


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    """The ratio of two sums; 0 for nothing of nothing, None where it is not finite."""
    if not whole.any():
        return 0.0
    ratio = float(part.sum(dtype=torch.float64) / whole.sum(dtype=torch.float64))
    return ratio if math.isfinite(ratio) else None


def _bits(coded: Coded) -> float:
    """Entropy of the codes, as one distribution, plus what the scales take; 16 per float16."""
    if isinstance(coded, Half):
        return 16.0 * coded.values.size
    counts = np.bincount(coded.codes.ravel().astype(np.int64) + 128)
    shares = counts[counts > 0] / coded.codes.size
    return float(-(shares * np.log2(shares)).sum() * coded.codes.size + 16 * coded.scales.size)


def _summary(about: dict[str, dict[str, Any]]) -> dict[str, Any]:
    roles: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in about.values():
        roles[entry["role"]].append(entry)
    return {
        "weights": about,
        "roles": {role: _size(entries) for role, entries in roles.items()},
        **_size(about.values()),
        "fallbacks": [name for name, entry in about.items() if entry["fallback"]],
    }


def _size(entries: Collection[dict[str, Any]]) -> dict[str, float]:
    parameters = sum(entry["parameters"] for entry in entries)
    bits = sum(entry["parameters"] * entry["bits_per_weight"] for entry in entries)
    return {"parameters": parameters, "bits_per_weight": bits / parameters}
