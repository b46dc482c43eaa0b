"""Quantize on prepared text: training text calibrates, held-out text measures."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from segpt.data.batches import Blocks, sequential
from segpt.data.tokenizer import load
from segpt.data.tokens import ids
from segpt.errors import DataError
from segpt.spec.quant import QuantSpec
from segpt.values import Checkpoint, Quantized, Tokens

from .quantize import HeldOut, Progress, quantize

ROWS = 16  # sequences per batch
SEED = 0  # of the calibration blocks


def quantize_on(
    checkpoint: Checkpoint,
    spec: QuantSpec,
    tokens: Tokens,
    held_out: Tokens,
    *,
    device: str = "cpu",
    report: Callable[[Progress], None] = lambda _: None,
) -> Quantized:
    """Quantize a checkpoint with blocks drawn from the text it was trained on.

    Raises:
        DataError: if ``tokens`` is not that text; validation text may not calibrate.
    """
    if tokens.fingerprint != checkpoint.origin.get("tokens"):
        raise DataError(
            "the calibration text is not the one the checkpoint was trained on; name that with "
            "--data"
        )
    context = checkpoint.spec.context
    return quantize(
        checkpoint,
        spec,
        drawn(tokens, context, spec.calibration_tokens),
        HeldOut(in_order(held_out, context, spec.report_tokens), load(tokens.tokenizer).sizes),
        device=device,
        report=report,
    )


def share(progress: Progress) -> float:
    """The fraction of all tasks that is done, by the time each usually takes."""
    before, length = {"calibrate": (0.0, 0.4), "round": (0.4, 0.1), "measure": (0.5, 0.5)}[
        progress.task
    ]
    return before + length * min(1.0, progress.done / max(1, progress.total))


def drawn(tokens: Tokens, context: int, count: int) -> Iterator[NDArray[np.int64]]:
    """Batches of about ``count`` targets from blocks all over the text."""
    blocks = Blocks(ids(tokens), context, SEED)
    for step in range(-(-count // (ROWS * context))):
        yield blocks.batch(step, ROWS)


def in_order(tokens: Tokens, context: int, count: int) -> Iterator[NDArray[np.int64]]:
    """Batches of the first ``count`` targets in whole blocks."""
    rows: list[NDArray[np.int64]] = []
    for row in sequential(ids(tokens), context, count):
        rows.append(row)
        if len(rows) == ROWS:
            yield np.stack(rows)
            rows = []
    if rows:
        yield np.stack(rows)
