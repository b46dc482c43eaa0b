"""A quantization is saved part by part, and kept."""

import dataclasses
from collections.abc import Callable

from segpt.atomic import remove_directory
from segpt.config.base import encode
from segpt.data.batches import in_chunks
from segpt.data.mix import TrainingText
from segpt.stages import quantized_io, unfinished
from segpt.stages.calibrate import quantize_on, share
from segpt.values import Quantized, QuantizeProgress, Tokens

from .quantize_task import QuantizeTask


def origin_of(task: QuantizeTask, splits: tuple[TrainingText, Tokens]) -> dict[str, str]:
    """What is quantized, how and, if that is not the text of the model, on which text."""
    tokens, _ = splits
    return task.origin if task.texts is None else {**task.origin, "calibration": tokens.fingerprint}


def quantize(
    task: QuantizeTask,
    splits: tuple[TrainingText, Tokens],
    *,
    device: str,
    report: Callable[[float, str], None],
    before: QuantizeProgress | None = None,
) -> Quantized:
    """Quantize as planned, saving every part that is done.

    Args:
        task: what is quantized, how, and to where.
        splits: the text it was trained on, and the one that the damage is measured on.
        device: where to compute.
        report: is told which fraction is done, and what is done now.
        before: what an interrupted call left.
    """
    tokens, held_out = splits
    checkpoint, spec = task.checkpoint, task.spec
    origin = origin_of(task, splits) | task.begun
    quantized = quantize_on(
        checkpoint,
        spec,
        tokens,
        held_out,
        device=device,
        report=lambda progress: report(share(progress, spec), progress.task),
        resume=before,
        save=lambda state: unfinished.save_partial(task.partial, state, origin),
    )
    assert quantized.report is not None  # of what was just quantized
    about = dataclasses.replace(
        quantized.report,
        budget=task.budget,
        spec=encode(spec),
        text=checkpoint.about.text,
        recipe=task.recipe,
        measured_on=in_chunks(
            held_out.split,
            held_out.count,
            spec.report_tokens,
            spec.row(checkpoint.spec.context),
        ),
    )
    made_of = {**quantized.origin, **origin_of(task, splits)}
    quantized = dataclasses.replace(quantized, report=about, origin=made_of)
    quantized_io.save_quantized(task.place, quantized)
    remove_directory(task.partial)
    return quantized
