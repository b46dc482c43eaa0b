"""What ``quantize`` and ``demo`` share: a checkpoint is coded part by part, and kept."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from segpt.atomic import remove_directory
from segpt.config.base import encode, fingerprint
from segpt.config.quant import QuantSpec
from segpt.stages import quantized_io, unfinished
from segpt.stages.calibrate import quantize_on, share
from segpt.train.mesh import pick
from segpt.values import Checkpoint, Quantized, QuantizeProgress, Tokens

from . import _latest, _report


def origin_of(checkpoint: Checkpoint, spec: QuantSpec) -> dict[str, str]:
    """What is quantized, and how: two quantizations with the same origin are the same."""
    return {"checkpoint": checkpoint.fingerprint, "quantize": fingerprint(spec)}


def run(
    checkpoint: Checkpoint,
    spec: QuantSpec,
    splits: tuple[Tokens, Tokens],
    place: Path,
    *,
    recipe: str,
    budget: int,
    device: str,
    resume: QuantizeProgress | None = None,
    begun: Mapping[str, str] | None = None,
) -> Quantized:
    """Quantize a checkpoint, saving every part that is done, and make it the newest.

    Args:
        checkpoint: the model.
        spec: how it is quantized.
        splits: the text it was trained on, and the one that the damage is measured on.
        place: the directory to write.
        recipe: the name of the model's recipe.
        budget: bytes that the packed file will have to keep to.
        device: where to compute, as ``--device`` says it.
        resume: what an interrupted call left.
        begun: what an interrupted call leaves beside the origin.
    """
    tokens, held_out = splits
    partial = _latest.partial_of(place)
    origin = origin_of(checkpoint, spec) | dict(begun or {})
    with _report.Bar("quantize") as bar:
        quantized = quantize_on(
            checkpoint,
            spec,
            tokens,
            held_out,
            device=pick(device),
            report=lambda p: bar(share(p, spec), p.task),
            resume=resume,
            save=lambda state: unfinished.save_partial(partial, state, origin),
        )
    assert quantized.report is not None  # of what was just quantized
    report = dataclasses.replace(
        quantized.report,
        budget=budget,
        spec=encode(spec),
        text=checkpoint.about.text,
        recipe=recipe,
        measured_on=_report.in_chunks(
            held_out.split, held_out.count, spec.report_tokens, checkpoint.spec.context
        ),
    )
    quantized = dataclasses.replace(quantized, report=report)
    quantized_io.save_quantized(place, quantized)
    remove_directory(partial)
    _latest.remember("quantized", place)
    return quantized
