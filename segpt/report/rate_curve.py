"""What a model loses at every rate, roughly: steps by design, with neither search nor tuning."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from segpt.config.quant import QuantSpec
from segpt.config.quant_report import CurveReport
from segpt.data.mix import TrainingText
from segpt.data.tokenizer import load
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.quant.design import Design, designs, scale_for
from segpt.quant.quality import compare
from segpt.quant.sensitivity import sensitivities
from segpt.quant.stepped import entropy, to_stepped
from segpt.stages.calibrate import drawn, in_order, seen_by
from segpt.stages.calibration_text import CalibrationText
from segpt.stages.open_model import from_checkpoint, from_quantized, without_unjoined_visits
from segpt.values import (
    Checkpoint,
    Float16Weight,
    Quantized,
    QuantizedWeight,
    Tokens,
    TrellisWeight,
)

RATES = (2.5, 3.0, 3.5, 4.0, 5.0)  # bits per weight that are aimed at
HELD_OUT_TOKENS = 8192


class Dot(NamedTuple):
    """Bits per weight as the report counts them, and KL in nats per token."""

    bits: float
    kl: float


class Curve(NamedTuple):
    """What the rates cost, what a quantized model costs, and on how many tokens."""

    dots: tuple[Dot, ...]
    here: Dot
    tokens: int

    def report(self) -> CurveReport:
        """As the report of a quantized model holds it."""
        return CurveReport(dots=self.dots, here=self.here, tokens=self.tokens)


def curve(
    checkpoint: Checkpoint,
    quantized: Quantized,
    spec: QuantSpec,
    tokens: TrainingText,
    held_out: Tokens,
    *,
    rates: Sequence[float] = RATES,
    device: str = "cpu",
    report: Callable[[float], None] = lambda _: None,
) -> Curve:
    """KL at several rates, and of ``quantized``, on the same few held-out tokens.

    Args:
        checkpoint: the model.
        quantized: what was made of it, with its report.
        spec: how its steps were designed, where they were.
        tokens: the text that it was trained on.
        held_out: the text to measure on.
        rates: bits per weight to aim at, the fewest first.
        device: where to compute.
        report: told the fraction that is done.
    """
    now = without_unjoined_visits(checkpoint)
    model = from_checkpoint(now, device)
    context, sizes = spec.row(now.spec.context), load(tokens.tokenizer).sizes

    def kl(weights_of: Quantized) -> float:
        blocks = in_order(held_out, context, HELD_OUT_TOKENS)
        return compare(model, from_quantized(weights_of, device), blocks, sizes).kl_mean

    text = CalibrationText(drawn(tokens, context), now.spec.vocab)
    sensitivity = sensitivities(model, text.first(spec.calibration_tokens, lambda _: None))
    occurs = seen_by(checkpoint, tokens)
    known = None if occurs is None else torch.from_numpy(occurs)
    plans = designs(model, sensitivity, spec, known)
    dots: list[Dot] = []
    missed = 0.0  # bits by which the last rate was missed
    for number, rate in enumerate(rates):
        report((number + 1) / (len(rates) + 1))
        scale = scale_for(model, plans, rate - missed)
        coded = dict(_coded(model, plans, scale, spec.states))
        whole = Quantized(now.spec, coded, checkpoint.tokenizer, checkpoint.origin)
        dots.append(Dot(_bits(coded), kl(whole)))
        missed += dots[-1].bits - rate
    assert quantized.report is not None  # as it comes from quantizing
    this_model = Dot(quantized.report.bits_per_weight, kl(quantized))
    blocks = in_order(held_out, context, HELD_OUT_TOKENS)
    return Curve(tuple(sorted(dots)), this_model, sum(b[:, 1:].size for b in blocks))


def _coded(
    model: Model, plans: dict[str, Design], scale: float, states: int
) -> Iterator[tuple[str, QuantizedWeight]]:
    for weight in weights(model):
        tensor, plan = weight.tensor.detach(), plans.get(weight.name)
        if plan is None:
            yield weight.name, Float16Weight(tensor.half().cpu().numpy())
        else:
            yield weight.name, to_stepped(tensor, plan, scale, states)


def _bits(coded: dict[str, QuantizedWeight]) -> float:
    """The entropy of the codes and 16 per float16, over all weights."""
    bits = sum(
        entropy(w) if isinstance(w, TrellisWeight) else 16.0 * int(np.prod(w.shape))
        for w in coded.values()
    )
    return bits / sum(int(np.prod(w.shape)) for w in coded.values())
