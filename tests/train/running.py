"""The training loop, run to its end."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpt.train.loop import Batches, StepMetrics, training
from segpt.train.trainer import Trainer


def train(
    trainer: Trainer,
    batches: Batches,
    *,
    save: Callable[[Trainer], None] = lambda _: None,
    report: Callable[[StepMetrics], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> None:
    """Take every step; ``options`` are those of :func:`segpt.train.loop.training`."""
    for event in training(trainer, batches, should_stop=stop, **options):
        if isinstance(event, StepMetrics):
            report(event)
        else:
            save(trainer)


def stream(vocab: int, batch: int, context: int) -> Callable[[int], NDArray[np.int64]]:
    """Learnable batches by step: each token mostly follows from the one before."""

    def rows(step: int) -> NDArray[np.int64]:
        generator = np.random.default_rng([7, step])
        first = generator.integers(vocab, size=(batch, 1))
        steps = np.where(generator.random((batch, context)) < 0.9, 5, 11)
        return (np.concatenate([first, steps], 1).cumsum(1) % vocab).astype(np.int64)

    return rows
