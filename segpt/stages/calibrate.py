"""Quantize on prepared text: training text calibrates, held-out text measures."""

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray

from segpt.config.quant import QuantSpec
from segpt.data.batches import sequential
from segpt.data.mix import Mix, TrainingText, blocks_of
from segpt.data.tokenizer import load
from segpt.data.tokens import ids
from segpt.errors import DataError
from segpt.values import Checkpoint, Quantized, QuantizeProgress, Tokens

from .quantize import HeldOut, PartProgress, Resumption, Task, quantize

ROWS = 16  # sequences per batch
SEED = 0  # of the calibration blocks
SEEN_TOKENS, CHUNK = 100_000_000, 1 << 20


def quantize_on(
    checkpoint: Checkpoint,
    spec: QuantSpec,
    tokens: TrainingText,
    held_out: Tokens,
    *,
    device: str = "cpu",
    report: Callable[[PartProgress], None] = lambda _: None,
    resume: QuantizeProgress | None = None,
    save: Callable[[QuantizeProgress], None] = lambda _: None,
) -> Quantized:
    """Quantize a checkpoint with blocks drawn from the text it was trained on.

    One that was trained elsewhere takes any text under its tokenizer.

    Raises:
        DataError: if ``tokens`` is not that text; validation text may not calibrate.
    """
    if not checkpoint.trained_elsewhere:
        if tokens.fingerprint != checkpoint.origin.get("tokens"):
            raise DataError(
                "the calibration text is not the one the checkpoint was trained on; name that "
                "with --data"
            )
    elif {tokens.tokenizer.fingerprint, held_out.tokenizer.fingerprint} != {
        checkpoint.tokenizer.fingerprint
    }:
        raise DataError("the texts have another tokenizer than the checkpoint; use that")
    context = spec.row(checkpoint.spec.context)
    return quantize(
        checkpoint,
        spec,
        drawn(tokens, context),
        HeldOut(in_order(held_out, context, spec.report_tokens), load(tokens.tokenizer).sizes),
        seen=seen_by(checkpoint, tokens) if spec.designed else None,
        device=device,
        report=report,
        resumption=Resumption(resume or QuantizeProgress(), save),
    )


def share(progress: PartProgress, spec: QuantSpec) -> float:
    """The fraction of all tasks that is done, by the time each usually takes."""
    times: dict[Task, float] = {"calibrate": 4, "round": 1, "measure": 5}
    if spec.designed:
        times = {"calibrate": 4, "fit": 2, "search": 5 * spec.search}
        times |= {"round": 1 + 0.5 * spec.tune_steps, "measure": 5}
    task: Task = "round" if progress.task == "tune" else progress.task  # in turns
    tasks = list(times)
    before = sum(times[earlier] for earlier in tasks[: tasks.index(task)])
    now = times[task] * min(1.0, progress.done / max(1, progress.total))
    return (before + now) / sum(times.values())


def drawn(tokens: TrainingText, context: int) -> Iterator[NDArray[np.int64]]:
    """Batches of blocks from all over the text, of a mix in its shares, without end."""
    blocks = blocks_of(tokens, context, SEED, "shuffled")
    for step in count():
        yield blocks.batch(step, ROWS)


def seen_by(checkpoint: Checkpoint, tokens: TrainingText) -> NDArray[np.bool_] | None:
    """(vocab,) which tokens a checkpoint was trained on, if that was on ``tokens``; else None.

    A text that only calibrates lacks most of a large vocabulary, whose rows are to be kept.
    """
    return None if checkpoint.trained_elsewhere else seen(tokens)


def seen(tokens: TrainingText) -> NDArray[np.bool_]:
    """(vocab,) which tokens occur in the first hundred million of the text, or of any source."""
    if isinstance(tokens, Mix):
        return np.logical_or.reduce([seen(source.tokens) for source in tokens.sources])
    stream = ids(tokens)
    occurs = np.zeros(tokens.tokenizer.vocab, np.bool_)
    end = min(len(stream), SEEN_TOKENS)
    for start in range(0, end, CHUNK):
        occurs[stream.slice(start, min(end, start + CHUNK))] = True
    return occurs


def in_order(
    tokens: Tokens, context: int, most: int, *, rest: bool = False
) -> Iterator[NDArray[np.int64]]:
    """Batches of the first ``most`` targets in whole blocks, and the ``rest`` in a shorter one."""
    rows: list[NDArray[np.int64]] = []
    for row in sequential(ids(tokens), context, most, rest=rest):
        if len(rows) == ROWS or (rows and len(row) != len(rows[0])):
            yield np.stack(rows)
            rows = []
        rows.append(row)
    if rows:
        yield np.stack(rows)
