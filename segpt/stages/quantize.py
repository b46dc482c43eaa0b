"""Checkpoint to Quantized: every weight coded by its rule, and what that costs in quality."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.artifact.container import pack
from segpt.config.base import fingerprint
from segpt.config.layout import layout
from segpt.config.precision import of_measuring
from segpt.config.quant import QuantSpec, Rule
from segpt.config.quant_report import GridCoding, Quality, TrellisCoding, WeightReport
from segpt.errors import CheckpointError
from segpt.kernels.precision import computing
from segpt.model.model import Model
from segpt.model.params import Weight, weights
from segpt.quant.design import designs
from segpt.quant.gptq import gptq
from segpt.quant.grid import nearest, scales, to_grid
from segpt.quant.hessian import hessians
from segpt.quant.quality import compare
from segpt.quant.sensitivity import sensitivities
from segpt.quant.solve import Solver
from segpt.values import (
    Checkpoint,
    Float16Weight,
    Quantized,
    QuantizedWeight,
    QuantizeProgress,
    TrellisWeight,
    UniformWeight,
)

from .calibration_text import Blocks, CalibrationText, Distinct, first_rows
from .open_model import from_checkpoint, from_quantized, without_unjoined_visits
from .quantize_report import about_weight, change_of, summary
from .threads import one_thread

Task = Literal["calibrate", "fit", "search", "tune", "round", "measure"]


class HeldOut(NamedTuple):
    """CalibrationText that quality is measured on, and the bytes that each token id spells."""

    blocks: Blocks
    sizes: NDArray[np.integer]


class PartProgress(NamedTuple):
    """How far a task is: tokens calibrated on, weights rounded, or tokens measured on."""

    task: Task
    done: int
    total: int


@dataclass(frozen=True)
class Resumption:
    """How a quantization goes on after an interruption.

    Attributes:
        before: what an interrupted call last saved.
        save: given the state after each part of the model.
    """

    before: QuantizeProgress = dataclasses.field(default_factory=QuantizeProgress)
    save: Callable[[QuantizeProgress], None] = lambda _: None


ANEW: Final = Resumption()


def quantize(
    checkpoint: Checkpoint,
    spec: QuantSpec,
    calibration: Blocks = (),
    held_out: HeldOut | None = None,
    *,
    seen: NDArray[np.bool_] | None = None,
    device: str = "cpu",
    report: Callable[[PartProgress], None] = lambda _: None,
    resumption: Resumption = ANEW,
) -> Quantized:
    """Code every weight of a checkpoint by the method of the spec.

    On a CPU it runs on one thread, so that the same input gives the same codes everywhere.

    Args:
        checkpoint: the model; visits that have not joined it yet are left out.
        spec: the method.
        calibration: training text. Its first ``spec.calibration_tokens`` tokens measure what
            weights matter; what follows, or the same again, tunes.
        held_out: text to measure on; its first ``spec.report_tokens`` tokens are read.
        seen: (vocab,) which tokens occur in the training text. The others share a row.
        device: where to compute, ``cpu`` or ``cuda``.
        report: told about progress.
        resumption: what to go on from, and how to save what a later call can go on from.

    Raises:
        SpecError: if a weight has no rule.
        CheckpointError: naming the first weight that is unknown, not finite, or too large.
        DataError: if there is no text to calibrate or measure on, or it has another vocabulary.
        CheckError: if the model cannot be coded within ``spec.budget``.
    """
    with one_thread(device), computing(of_measuring(spec.precision), device):
        now = without_unjoined_visits(checkpoint)
        rules = {w.name: spec.rule(w, len(now.spec.layers)) for w in layout(now.spec)}
        model = from_checkpoint(now, device)
        _check_finite(model)
        text = CalibrationText(calibration, now.spec.vocab)
        origin = {"checkpoint": checkpoint.fingerprint, "quantize": fingerprint(spec)}
        quantized = Quantized(
            spec=now.spec,
            weights={},
            tokenizer=checkpoint.tokenizer,
            origin={**checkpoint.origin, **origin},
            documents=checkpoint.documents,
        )
        work = _Work(model, spec, rules, text, report, resumption)
        if spec.designed:
            coded, reports = _designed(work, quantized, seen)
        else:
            coded, reports = _ruled(work)
        quantized = dataclasses.replace(quantized, weights=coded)
        quality = None
        if held_out is not None:
            quality = _quality(work, from_quantized(quantized, device), held_out)
        return dataclasses.replace(quantized, report=summary(reports, quality))


class _Work(NamedTuple):
    """What both ways of coding need."""

    model: Model
    spec: QuantSpec
    rules: dict[str, Rule]
    text: CalibrationText
    report: Callable[[PartProgress], None]
    resumption: Resumption

    def calibration(self) -> Iterator[NDArray[np.int64]]:
        tokens = self.spec.calibration_tokens
        return self.text.first(tokens, lambda d: self.report(PartProgress("calibrate", d, tokens)))


Coding = tuple[dict[str, QuantizedWeight], dict[str, WeightReport]]


def _designed(work: _Work, empty: Quantized, seen: NDArray[np.bool_] | None) -> Coding:
    """Code by designed steps, and report."""
    spec = work.spec
    for weight in weights(work.model):
        if work.rules[weight.name].bits == 16:
            _coded(weight, work.rules[weight.name], None, spec)  # refuses what float16 cannot hold
    measured = sensitivities(work.model, work.calibration())
    tokens = None if seen is None else torch.from_numpy(seen)
    stepped = {n: sensitivity for n, sensitivity in measured.items() if work.rules[n].bits != 16}
    plans = designs(work.model, stepped, spec, tokens)

    def size(coded: Mapping[str, QuantizedWeight]) -> int:
        return pack(dataclasses.replace(empty, weights=coded)).size

    # Tuning reads on where calibration stopped.
    calibrated = -(-spec.calibration_tokens // work.text(0).size)
    solver = Solver(
        work.model,
        spec,
        plans,
        lambda number: work.text(calibrated + number),
        size,
        lambda task, done, total: work.report(PartProgress(cast("Task", task), done, total)),
    )
    coded = solver.run(work.resumption.before, work.resumption.save)
    reports = {}
    for weight in weights(work.model):
        value, plan = coded[weight.name], plans.get(weight.name)
        report = about_weight(weight, value, measured[weight.name].curvature if plan else None)
        if plan is not None and isinstance(value, TrellisWeight):
            change = change_of(weight, value)
            report = dataclasses.replace(
                report,
                damage=measured[weight.name].damage(change),
                fallback=plan.fallback,
                trellis=TrellisCoding(states=value.states, step=value.step),
            )
        reports[weight.name] = report
    return coded, reports


def _ruled(work: _Work) -> Coding:
    """Code weight by weight on the grids of the rules, and report."""
    spec, model = work.spec, work.model
    moments: dict[str, Tensor] = {}
    samples = Distinct()
    if spec.method == "gptq":
        moments = hessians(model, samples.counted(work.calibration()))
    coded, dampings = dict(work.resumption.before.coded), dict(work.resumption.before.dampings)
    reports: dict[str, WeightReport] = {}
    done, parameters = 0, sum(w.tensor.numel() for w in weights(model))
    for weight in weights(model):
        rule, moment = work.rules[weight.name], moments.get(weight.name)
        if weight.name not in coded:
            coded[weight.name], dampings[weight.name] = _coded(
                weight, rule, moment, spec, samples.count
            )
            work.resumption.save(
                QuantizeProgress(len(coded), coded=dict(coded), dampings=dict(dampings))
            )
        value, damping = coded[weight.name], dampings[weight.name]
        on_grid = isinstance(value, UniformWeight)
        reports[weight.name] = dataclasses.replace(
            about_weight(weight, value, moment),
            fallback=on_grid and moment is not None and damping is None,
            grid=GridCoding(
                bits=rule.bits,
                k=rule.k if on_grid else None,
                group=rule.group,
                damping=damping,
            ),
        )
        done += weight.tensor.numel()
        work.report(PartProgress("round", done, parameters))
    return coded, reports


def _quality(work: _Work, after: Model, held_out: HeldOut) -> Quality:
    """How a quantized model differs from what it was made of on the first held-out tokens."""
    most = work.spec.report_tokens
    blocks = first_rows(
        held_out.blocks,
        most,
        work.model.spec.vocab,
        lambda done: work.report(PartProgress("measure", done, most)),
    )
    return compare(work.model, after, blocks, held_out.sizes)


def _check_finite(model: Model) -> None:
    for weight in weights(model):
        if not weight.tensor.isfinite().all():
            raise CheckpointError(
                f"weight {weight.name!r} is not finite everywhere; quantize an earlier checkpoint"
            )


def _coded(
    weight: Weight, rule: Rule, moment: Tensor | None, spec: QuantSpec, samples: int | None = None
) -> tuple[QuantizedWeight, float | None]:
    """One weight coded by its rule, and the damping if GPTQ made its codes."""
    try:
        return _round(weight.tensor.detach(), rule, moment, spec, samples)
    except CheckpointError as error:
        raise CheckpointError(f"weight {weight.name!r}: {error}") from error


def _round(
    tensor: Tensor, rule: Rule, moment: Tensor | None, spec: QuantSpec, samples: int | None
) -> tuple[QuantizedWeight, float | None]:
    """The coded weight, and the damping if GPTQ made its codes."""
    if rule.bits == 16:
        half = tensor.half()
        if not half.isfinite().all():
            raise CheckpointError(
                f"{float(tensor.abs().max()):.3g} is too large for float16; "
                "the weights have diverged, so quantize an earlier checkpoint"
            )
        return Float16Weight(half.cpu().numpy()), None
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
        samples=samples,
    )
    return to_grid(codes, scale, rule.bits), damping
